"""The commands under `gradserve keys`, which work on the service's data folder, not over the network."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli_shared import show_list

if TYPE_CHECKING:
    from app.settings import Settings
    from app.storage.keys import KeyFile

keys = typer.Typer(help="Keys of the service on this machine: make, list, revoke.", no_args_is_help=True)


class Scope(StrEnum):
    """What a key may be used for; `admin` is all of it."""

    read = "read"
    predict = "predict"
    train = "train"
    admin = "admin"


def load_settings() -> "Settings":
    """The environment's, or a line for each that is wrong and exit status 1."""
    from pydantic import ValidationError

    from app.settings import Settings

    try:
        return Settings()
    except ValidationError as error:
        for fault in error.errors():
            typer.echo(f"Error: GRADSERVE_{str(fault['loc'][0]).upper()}: {fault['msg']}", err=True)
        raise typer.Exit(1) from error


def _key_file() -> "KeyFile":
    from app.storage.keys import KeyFile

    return KeyFile(load_settings().key_file)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Whose it is or what it is for, for the list.")],
    scope: Annotated[list[Scope], typer.Option(help="read, predict, train or admin; repeat it for several.")],
) -> None:
    """Make a key and print it, this once. Running services of the same GRADSERVE_DATA_DIR know it within a second."""
    made, text = _key_file().create(name, list(dict.fromkeys(map(str, scope))))
    typer.echo(f"Key {made.id} has the scopes {', '.join(made.scopes)}. It is shown this once:", err=True)
    typer.echo(text)


@keys.command("list")
def list_keys() -> None:
    """Keys, one a line, without their secret part."""
    rows = (
        {
            "id": key.id,
            "name": key.name,
            "scopes": "+".join(key.scopes),
            "created_at": f"{datetime.fromtimestamp(key.created_at, UTC):%Y-%m-%dT%H:%M:%SZ}",
        }
        for key in _key_file().read()
    )
    show_list(rows, ["id", "name", "scopes", "created_at"], limit=10_000)


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="Its id, as `gradserve keys list` has it.")]) -> None:
    """Take a key back: within a second no running service knows it."""
    gone = _key_file().revoke(key_id)
    typer.echo(f"Key {gone.id} of {gone.name} is revoked.")

"""The `gradserve` command: starts the service, and talks to one that runs. Imports what it needs when it needs it."""

import io
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from app import __version__
from app.cli_datasets import datasets
from app.cli_files import evaluate, predict, train
from app.cli_jobs import jobs
from app.cli_keys import keys
from app.cli_models import models
from app.cli_service import backup, health, restore, serve

app = typer.Typer(
    help="POST a table, get a trained neural net; POST rows, get predictions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its imports take longer than all others together
)
OF_THIS_MACHINE = {"serve", "health", "backup", "restore", "keys"}


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"gradserve {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(help="Where the service is; may also stand after the command.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Key, where the service wants one; likewise.")] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if (url or api_key) and context.invoked_subcommand in OF_THIS_MACHINE:
        raise typer.BadParameter(f"{context.invoked_subcommand} works on this machine: no --url or --api-key")


for command in (serve, health, backup, restore, train, predict, evaluate):
    app.command()(command)
app.add_typer(jobs, name="jobs")
app.add_typer(models, name="models")
app.add_typer(datasets, name="datasets")
app.add_typer(keys, name="keys")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: what the service or the network says becomes a line or two and exit status 1."""
    from app.errors import GradserveError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # other programs read UTF-8; a terminal gets what it can show
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
    try:
        app(arguments)
    except Exception as error:
        from app.client.errors import ClientError

        if not isinstance(error, ClientError | GradserveError | OSError):
            raise
        typer.echo("\n".join(_explain(error)), err=True)
        sys.exit(1)


def _explain(error: Exception) -> Iterator[str]:
    from app.client.errors import ApiError, BrokenOff, Unauthorized, Unreachable

    yield f"Error: {error.detail if isinstance(error, ApiError) else error}"
    if isinstance(error, ApiError):
        for fault in error.faults:
            yield f"  at {fault.pointer or '/'}" + (f": {fault.detail}" if fault.detail != error.detail else "")
    if isinstance(error, Unreachable) and not isinstance(error, BrokenOff):
        yield "Start a service with `gradserve serve`, or name another with --url or GRADSERVE_URL."
    if isinstance(error, Unauthorized):
        yield "Give a key with --api-key or GRADSERVE_API_KEY."


if __name__ == "__main__":
    main()

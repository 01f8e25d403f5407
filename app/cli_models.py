"""The commands under `gradserve models`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli_shared import URL, ApiKey, Limit, Url, connect, show, show_list

models = typer.Typer(help="Trained models and their versions.", no_args_is_help=True)


@models.command("list")
def list_models(limit: Limit = 50, url: Url = URL, api_key: ApiKey = None) -> None:
    """Models, one a line."""
    with connect(url, api_key) as client:
        rows = ({**model["newest"], **model["newest"]["signature"], "name": model["name"]} for model in client.models())
        show_list(rows, ["name", "version", "task", "num_parameters", "num_bytes", "created_at"], limit)


@models.command("show")
def show_model(
    name: str, version: Annotated[str | None, typer.Option()] = None, url: Url = URL, api_key: ApiKey = None
) -> None:
    """A model, or one version of it, as JSON."""
    with connect(url, api_key) as client:
        show(client.model(name, version))


@models.command("delete")
def delete_model(
    name: str,
    version: Annotated[str | None, typer.Option(help="Only this version.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Delete a model with all its versions, or one of them."""
    with connect(url, api_key) as client:
        what = f"version {version} of model {name}" if version is not None else f"model {name} with all its versions"
        if not yes:
            typer.confirm(f"Delete {what}?", abort=True)
        client.delete_model(name, version)


@models.command("download")
def download_model(
    name: str,
    version: Annotated[str | None, typer.Option(help="Version or alias (default: the newest)")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder (default: NAME/VERSION, as models/ has it)")] = None,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Fetch a version's files; the folder serves in another service's models/."""
    with connect(url, api_key) as client:
        found = client.model(name)["newest"] if version is None else client.model(name, version)
        folder = output or Path(name) / found["version"]
        folder.mkdir(parents=True, exist_ok=True)
        for file in found["files"]:
            client.download(name, found["version"], file, folder / file)
        typer.echo(f"{folder}: {', '.join(found['files'])}")


@models.command("upload")
def upload_model(
    name: str,
    source: Annotated[Path, typer.Argument(help="A version's folder, or a tar or zip of it.")],
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Publish a version that was downloaded, from here or elsewhere, as the newest of a model."""
    with connect(url, api_key) as client:
        stored = client.upload_version(name, source)
        typer.echo(f"{client.base_url}/models/{name}/versions/{stored['version']}")


@models.command("export")
def export_model(
    name: str,
    output: Annotated[Path, typer.Argument(help="ONNX file to write.")],
    version: Annotated[str | None, typer.Option(help="Version or alias (default: the newest)")] = None,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Write a version as an ONNX file, features included."""
    with connect(url, api_key) as client:
        found = client.model(name)["newest"]["version"] if version is None else version
        client.export(name, found, output)
        typer.echo(f"version {found} of {name} written to {output}", err=not output.is_file())


@models.command("alias")
def alias_model(
    name: str,
    alias: str,
    version: Annotated[str | None, typer.Argument(help="Number of a version; absent: show the alias.")] = None,
    canary: Annotated[str | None, typer.Option(help="VERSION:PERCENT that answers a share of the requests.")] = None,
    shadow: Annotated[str | None, typer.Option(help="VERSION or VERSION:PERCENT that is only compared.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the alias.")] = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Point an alias at a version; what it had beside it ends unless it is said again."""
    if (version is None and (canary or shadow)) or (delete and version):
        raise typer.BadParameter("--canary and --shadow go with a VERSION, --delete goes without one")
    with connect(url, api_key) as client:
        if delete:
            client.delete_alias(name, alias)
        elif version is None:
            show(client.alias(name, alias))
        else:
            show(client.set_alias(name, alias, version, canary=_beside(canary, whole=False), shadow=_beside(shadow)))


def _beside(text: str | None, *, whole: bool = True) -> dict[str, Any] | None:
    """`2:10` -> version 2, for 10 per cent of the requests; `2` -> for all of them, where that may be."""
    if text is None:
        return None
    version, sign, percent = text.partition(":")
    try:
        return {"version": version} | ({} if whole and not sign else {"percent": float(percent)})
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not VERSION:PERCENT, as in 2:10") from error

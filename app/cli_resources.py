"""The commands under `gradserve jobs`, `models` and `datasets`, and what all commands share."""

import csv
import json
import re
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from app.client import Client

jobs = typer.Typer(help="Training runs: list, show, follow, stop, forget.", no_args_is_help=True)
models = typer.Typer(help="Trained models and their versions.", no_args_is_help=True)
datasets = typer.Typer(help="Tables that the service keeps.", no_args_is_help=True)
URL = "http://127.0.0.1:8000"


def _or_before(context: typer.Context, parameter: typer.CallbackParam, value: str | None) -> str | None:
    """An option that stands before the command, where it does not stand after it."""
    assert parameter.name
    source = context.get_parameter_source(parameter.name)
    before: str | None = context.find_root().params.get(parameter.name)
    return value if before is None or (source and source.name == "COMMANDLINE") else before


Url = Annotated[str, typer.Option(envvar="GRADSERVE_URL", callback=_or_before, help="Where the service is.")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="GRADSERVE_API_KEY", callback=_or_before, help="Key, where the service wants one."),
]
Limit = Annotated[int, typer.Option(min=1, help="At most so many.")]
FewRows = Annotated[int, typer.Option(min=1, max=200, help="At most so many.")]
NoHeader = Annotated[bool, typer.Option("--no-header", help="The CSV's first line is a row: columns are x0, x1, ….")]
AsCsv = Annotated[bool, typer.Option("--csv", help="As CSV, with all digits.")]


def connect(url: str, api_key: str | None) -> "Client":
    from app.client import Client

    return Client(url, api_key)


def show(answer: Any) -> None:
    from rich import print_json

    print_json(json.dumps(answer))


def show_list(rows: Iterable[dict[str, Any]], columns: list[str], limit: int) -> None:
    from rich.console import Console

    from app.terminal import listing

    width = None if sys.stdout.isatty() else 1000  # what reads a pipe wants whole values
    Console(width=width).print(listing(islice(rows, limit), columns))


def show_rows(rows: list[dict[str, Any]], as_csv: bool) -> None:
    """Rows whose columns are not known before; one that a row does not have is missing in it."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if as_csv:
        writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        show_list(rows, columns, len(rows))


def name_of(file: Path) -> str:
    """A dataset's name from a file's: `Iris 2.csv.gz` -> `iris-2`."""
    stem = file.name.split(".")[0] or file.stem
    return re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_")[:64] or "table"


# ---- jobs


@jobs.command("list")
def list_jobs(
    state: Annotated[str | None, typer.Option(help="queued, running, paused, succeeded, failed, cancelled, …")] = None,
    model: Annotated[str | None, typer.Option(help="Only runs of this model.")] = None,
    limit: Limit = 20,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Jobs, one a line."""
    columns = ["id", "state", "model", "version", "stop_reason", "created_at", "finished_at"]
    with connect(url, api_key) as client:
        show_list(client.jobs(state, model), columns, limit)


@jobs.command("show")
def show_job(job_id: str, url: Url = URL, api_key: ApiKey = None) -> None:
    """All of a job, as JSON."""
    with connect(url, api_key) as client:
        show(client.job(job_id))


@jobs.command("events")
def follow_job(job_id: str, url: Url = URL, api_key: ApiKey = None) -> None:
    """A job's events up to its end, live, one JSON object a line."""
    with connect(url, api_key) as client:
        for event in client.events(job_id):
            typer.echo(json.dumps(event._asdict()))


@jobs.command("cancel")
def cancel_job(job_id: str, url: Url = URL, api_key: ApiKey = None) -> None:
    """End a job without a model."""
    with connect(url, api_key) as client:
        typer.echo(f"Job {job_id} is {client.cancel(job_id)['state']}")


@jobs.command("pause")
def pause_job(job_id: str, url: Url = URL, api_key: ApiKey = None) -> None:
    """Stop a job so that it can go on later."""
    with connect(url, api_key) as client:
        typer.echo(f"Job {job_id} is {client.pause(job_id)['state']}")


@jobs.command("resume")
def resume_job(job_id: str, url: Url = URL, api_key: ApiKey = None) -> None:
    """Go on with a paused job."""
    with connect(url, api_key) as client:
        typer.echo(f"Job {job_id} is {client.resume(job_id)['state']}")


@jobs.command("history")
def show_history(job_id: str, as_csv: AsCsv = False, url: Url = URL, api_key: ApiKey = None) -> None:
    """Metrics of each epoch, one a line."""
    with connect(url, api_key) as client:
        show_rows(client.history(job_id), as_csv)


@jobs.command("delete")
def delete_job(job_id: str, url: Url = URL, api_key: ApiKey = None) -> None:
    """Forget a job that has ended, with its events; the version that it published stays."""
    with connect(url, api_key) as client:
        client.delete_job(job_id)


# ---- models


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


# ---- datasets


@datasets.command("list")
def list_datasets(limit: Limit = 50, url: Url = URL, api_key: ApiKey = None) -> None:
    """Datasets, one a line."""
    with connect(url, api_key) as client:
        show_list(client.datasets(), ["name", "num_rows", "num_bytes", "digest", "created_at"], limit)


@datasets.command("show")
def show_dataset(name: str, url: Url = URL, api_key: ApiKey = None) -> None:
    """A dataset's columns and what they hold, as JSON."""
    with connect(url, api_key) as client:
        show(client.dataset(name))


@datasets.command("rows")
def show_dataset_rows(
    name: str, limit: FewRows = 50, as_csv: AsCsv = False, url: Url = URL, api_key: ApiKey = None
) -> None:
    """A dataset's first rows, one a line."""
    with connect(url, api_key) as client:
        show_rows(client.dataset_rows(name, limit), as_csv)


@datasets.command("upload")
def upload_dataset(
    file: Path,
    name: Annotated[str | None, typer.Option(help="Name of the dataset (default: the file's)")] = None,
    no_header: NoHeader = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Upload a table, replacing the dataset of that name."""
    with connect(url, api_key) as client:
        stored = client.upload_dataset(name or name_of(file), file, has_header=not no_header)
        show_list(
            stored["columns"],
            ["name", "kind", "num_missing", "num_unique", "min", "max", "mean"],
            len(stored["columns"]),
        )
        typer.echo(f"{stored['num_rows']} rows: {client.base_url}/datasets/{stored['name']}")


@datasets.command("delete")
def delete_dataset(name: str, url: Url = URL, api_key: ApiKey = None) -> None:
    """Delete a dataset; jobs that use it keep its rows."""
    with connect(url, api_key) as client:
        client.delete_dataset(name)

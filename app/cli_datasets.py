"""The commands under `gradserve datasets`."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli_shared import (
    TABLE,
    URL,
    ApiKey,
    AsCsv,
    FewRows,
    Limit,
    NoHeader,
    Url,
    connect,
    name_of,
    show,
    show_list,
    show_rows,
)

datasets = typer.Typer(help="Tables that the service keeps.", no_args_is_help=True)


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
    file: Annotated[Path, TABLE],
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

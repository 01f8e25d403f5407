"""What the commands of `gradserve` share: options, the client, and how answers are shown."""

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

URL = "http://127.0.0.1:8000"
MAX_WIDTH = 10**6  # of lists that go elsewhere than to a terminal


def _or_before(context: typer.Context, parameter: typer.CallbackParam, value: str | None) -> str | None:
    """An option that stands before the command, where it does not stand after it."""
    assert parameter.name
    source = context.get_parameter_source(parameter.name)
    before: str | None = context.find_root().params.get(parameter.name)
    return value if before is None or (source and source.name == "COMMANDLINE") else before


def _standard_input(file: Path | None) -> Path | None:
    return Path("/dev/stdin") if file == Path("-") else file


Url = Annotated[str, typer.Option(envvar="GRADSERVE_URL", callback=_or_before, help="Where the service is.")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="GRADSERVE_API_KEY", callback=_or_before, help="Key, where the service wants one."),
]
TABLE = typer.Argument(
    help="Table: CSV, TSV, NDJSON, Parquet or Arrow, also gzipped; - is standard input.",
    callback=_standard_input,
    dir_okay=False,
)
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

    width = None if sys.stdout.isatty() else MAX_WIDTH  # what reads a pipe wants whole values
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

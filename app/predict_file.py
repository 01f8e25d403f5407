"""A file of rows to the same rows with predictions beside them. Files may be of any size: a part is held at a time."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import polars as pl

from app.client.bodies import HEADERLESS
from app.storage.arrow_stream import write_arrow_file
from app.storage.row_stream import RowStream, open_rows
from app.storage.uploads import Upload, read_upload, unpack

if TYPE_CHECKING:
    from app.client import Client

BLOCK_BYTES = 2**20
STREAM = "application/vnd.apache.arrow.stream"
SENT_AS_THEY_ARE = {"csv": "text/csv", "arrow_file": "application/vnd.apache.arrow.file", "arrow_stream": STREAM}


def predict_file(
    client: "Client",
    model: str,
    file: Path,
    *,
    version: str | None = None,
    routing_key: str | None = None,
    has_header: bool = True,
) -> Iterator[pl.DataFrame]:
    """The rows, part by part, with the columns of `Client.predict` for frames added; of a CSV they stay text.

    Raises:
        ClientError, Unparseable, InvalidInput
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        body, media_type, rows = _open(file, folder, has_header)
        stream, answer = folder / "answer.stream", folder / "answer.arrow"
        with stream.open("wb") as target:
            target.writelines(
                client.predict_table(model, body, media_type, version=version, accept=STREAM, routing_key=routing_key)
            )
        write_arrow_file(stream, answer)
        predicted = pl.scan_ipc(answer, glob=False)
        predicted = predicted.rename({name: _free(name, rows.names) for name in predicted.collect_schema().names()})
        start = 0
        for part in rows.parts:
            yield pl.concat([part, predicted.slice(start, part.height).collect()], how="horizontal")
            start += part.height


def _free(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _open(file: Path, folder: Path, has_header: bool) -> tuple[Path, str, RowStream]:
    """A table to send, its media type, and its rows; what is neither CSV nor Arrow becomes an Arrow file."""
    upload = Upload(folder, sys.maxsize, None, has_header)
    with file.open("rb") as source:
        while block := source.read(BLOCK_BYTES):
            upload.write(block)
    upload.body, found = unpack(upload)
    if found not in SENT_AS_THEY_ARE:
        table = pl.scan_parquet(read_upload(upload, sys.maxsize), glob=False)
        upload.body, found = folder / "table.arrow", "arrow_file"
        table.sink_ipc(upload.body, compat_level=pl.CompatLevel.oldest())
    media_type = SENT_AS_THEY_ARE[found] if has_header or found != "csv" else HEADERLESS
    return upload.body, media_type, open_rows(upload, sys.maxsize)

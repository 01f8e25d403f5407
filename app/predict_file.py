"""A file of rows to the same rows with predictions beside them."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import polars as pl

from app.storage.uploads import Upload, read_upload

if TYPE_CHECKING:
    from app.client import Client

CHUNK_BYTES = 2**20


def predictions_of(
    client: "Client", model: str, version: str | None, rows: pl.DataFrame, rows_per_request: int
) -> pl.DataFrame:
    """`rows` with `prediction` (or one column per target) and, for classifiers, `probability_<class>` added."""
    parts = [_columns(client.predict(model, part, version)) for part in rows.iter_slices(rows_per_request)]
    return pl.concat([rows, pl.concat(parts)], how="horizontal") if parts else rows


def _columns(answer: dict[str, Any]) -> pl.DataFrame:
    predictions = answer["predictions"]
    if predictions and isinstance(predictions[0], list):
        columns = [pl.Series(f"prediction_{i}", column) for i, column in enumerate(zip(*predictions, strict=True))]
    else:
        columns = [pl.Series("prediction", predictions)]
    if "probabilities" in answer:
        by_class = zip(answer["classes"], zip(*answer["probabilities"], strict=True), strict=True)
        columns += [pl.Series(f"probability_{label}", column) for label, column in by_class]
    return pl.DataFrame(columns)


def read_rows(file: Path) -> pl.DataFrame:
    """A table file, read as the service reads an upload, so that columns have the types they were trained with.

    Raises:
        Unparseable, InvalidInput
    """
    with TemporaryDirectory() as folder, file.open("rb") as source:
        upload = Upload(Path(folder), sys.maxsize, None)
        while chunk := source.read(CHUNK_BYTES):
            upload.write(chunk)
        return pl.read_parquet(read_upload(upload, sys.maxsize))

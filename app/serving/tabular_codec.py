"""Predictions for tables that come and go in parts: CSV and Arrow IPC, and the JSON of `/predict` as an answer.

Shape suffixes: N rows, F encoded numbers, T targets, L classes.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import IO, Any, Literal, Protocol

import numpy as np
import orjson
import polars as pl
from torch import Tensor

from app.errors import InvalidInput, ShapeMismatch, UnknownColumn
from app.learning.features import Features
from app.serving.columns import fit_column
from app.serving.encode import DTYPES, encode_frame, escape
from app.serving.served_model import ServedModel
from app.serving.signature import flags_of, labels_of, unknown_rows
from app.specs.sentences import some_of, unknown_column
from app.specs.table import Signature
from app.storage.arrow_stream import ArrowParts
from app.storage.row_stream import RowStream

Form = Literal["csv", "arrow", "json", "mlflow"]

VALUES_AT_ONCE = 2**20  # numbers that the widest of a part's tensors may hold


def match_columns(signature: Signature, names: Sequence[str], *, has_header: bool) -> list[str | None]:
    """The table's column for each of the model's, None for one whose values are all missing.

    Columns that no header names, `x0`, `x1`, …, may also be the model's in their order, and so may those that come to a
    model of plain numbers under other names.

    Raises:
        UnknownColumn, ShapeMismatch, InvalidInput
    """
    wanted = [column.name for column in signature.inputs]
    if (signature.positional or not has_header) and not set(wanted) <= set(names):
        if len(names) != len(wanted):
            taken = f"{len(wanted)} numbers a row" if signature.positional else f"{len(wanted)}: {some_of(wanted)}"
            raise ShapeMismatch.at("", f"the table has {len(names)} columns; the model takes {taken}")
        return list(names)
    known = {*wanted, *signature.ignored, *(column.name for column in signature.targets)}
    for name in names:
        if name not in known:
            raise UnknownColumn.at(f"/{escape(name)}", unknown_column(name, wanted))
    if not set(names) & set(wanted):
        raise InvalidInput.at("", f"the table has none of the model's columns: {some_of(wanted)}")
    return [name if name in names else None for name in wanted]


class RowReader:
    """From a table's parts to the network's input."""

    def __init__(self, model: ServedModel, rows: RowStream) -> None:
        self.features: Features = model.model.features
        self.signature = model.model.signature
        self.sources = match_columns(self.signature, rows.names, has_header=rows.has_header)
        self.untyped, self.decimal_comma = rows.untyped, rows.decimal_comma
        self.num_rows = 0

    def encode(self, part: pl.DataFrame) -> Tensor:
        """The next rows, to `[N, F]`.

        Raises:
            InvalidInput: with a pointer `/row/column` for each fault, rows counted from 0 through the whole table.
        """
        columns = []
        for column, source in zip(self.signature.inputs, self.sources, strict=True):
            if source is None:
                columns.append(pl.Series(column.name, [None] * part.height, dtype=DTYPES[column.kind]))
                continue
            cells = part[source]
            if self.decimal_comma and column.kind == "numeric":
                cells = cells.str.replace(",", ".", literal=True)
            columns.append(fit_column(column, cells, partial(self._at, source), untyped=self.untyped))
        names = [source or column.name for column, source in zip(self.signature.inputs, self.sources, strict=True)]
        encoded = encode_frame(self.features, pl.DataFrame(columns), lambda row, column: self._at(names[column], row))
        self.num_rows += part.height
        return encoded

    def _at(self, name: str, row: int) -> str:
        return f"/{self.num_rows + row}/{escape(name)}"


def rows_at_once(model: ServedModel) -> int:
    """Rows of a part that a prediction may take at once."""
    classes = model.model.signature.classes or ()
    return max(1, VALUES_AT_ONCE // max(model.model.features.num_inputs, len(classes), 1))


# ---- answers


class Writer(Protocol):
    """Writes an answer from values `[N, T]` or probabilities `[N, L]`, part by part."""

    media_type: str

    def write(self, values: Tensor) -> bytes:
        """The next rows."""

    def finish(self) -> Iterator[bytes]:
        """What comes after the last."""


def predictions_frame(signature: Signature, values: Tensor) -> pl.DataFrame:
    """A column `prediction`, or `prediction_<target>` for each of several; of classifiers `probability_<class>` too.

    What is not finite is missing, and so are the labels of such a row.
    """
    numbers = values.numpy()
    unknown = unknown_rows(numbers)
    numbers = np.where(np.isfinite(numbers), numbers, np.nan) if len(unknown) else numbers
    if signature.task == "regression":
        targets = [f"prediction_{column.name}" for column in signature.targets]
        names = ["prediction"] if len(targets) == 1 else targets
        return pl.DataFrame({name: numbers[:, place] for place, name in enumerate(names)}).fill_nan(None)
    assert signature.classes is not None
    if signature.task == "multilabel":
        flags = zip(signature.targets, flags_of(signature, numbers), strict=True)
        columns: dict[str, Any] = {f"prediction_{target.name}": column for target, column in flags}
    else:
        columns = {"prediction": labels_of(signature, values)}
    for place, name in enumerate(signature.classes):
        columns[f"probability_{str(name).lower() if isinstance(name, bool) else name}"] = numbers[:, place]
    frame = pl.DataFrame(columns).fill_nan(None)
    if len(unknown):
        is_known = ~pl.int_range(pl.len()).is_in(unknown)
        frame = frame.with_columns(pl.when(is_known).then(pl.col("^prediction.*$")))
    return frame


class CsvWriter:
    media_type = "text/csv"

    def __init__(self, signature: Signature) -> None:
        self._signature, self._started = signature, False

    def write(self, values: Tensor) -> bytes:
        text = predictions_frame(self._signature, values).write_csv(include_header=not self._started)
        self._started = True
        return text.encode()

    def finish(self) -> Iterator[bytes]:
        yield from ()


class ArrowWriter:
    media_type = "application/vnd.apache.arrow.stream"

    def __init__(self, signature: Signature) -> None:
        self._signature, self._parts = signature, ArrowParts()

    def write(self, values: Tensor) -> bytes:
        return self._parts.part(predictions_frame(self._signature, values))

    def finish(self) -> Iterator[bytes]:
        yield self._parts.END


class JsonWriter:
    """The answer of `/predict`. Probabilities come after all predictions, and wait for that in `later`, a file."""

    media_type = "application/json"

    def __init__(self, model: ServedModel, later: IO[bytes]) -> None:
        self._model, self._later, self._started = model, later, False

    def write(self, values: Tensor) -> bytes:
        answer = self._model.answer(values)
        predictions = _inner(answer.pop("predictions"))
        if "probabilities" in answer:
            self._later.write((b"," if self._started else b"") + _inner(answer.pop("probabilities")))
        if self._started:
            return b"," + predictions
        self._started = True
        return orjson.dumps(answer)[:-1] + b',"predictions":[' + predictions

    def finish(self) -> Iterator[bytes]:
        if self._later.tell():
            yield b'],"probabilities":['
            self._later.seek(0)
            yield from iter(lambda: self._later.read(2**20), b"")
        yield b"]}"


class MlflowWriter:
    """The answer of `/invocations`."""

    media_type = "application/json"

    def __init__(self, model: ServedModel) -> None:
        self._model, self._started = model, False

    def write(self, values: Tensor) -> bytes:
        before = b"," if self._started else b'{"predictions":['
        self._started = True
        return before + _inner(self._model.answer(values)["predictions"])

    def finish(self) -> Iterator[bytes]:
        yield b"]}"


def _inner(values: Any) -> bytes:
    """The elements of a JSON array, without its brackets."""
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def writer_of(form: Form, model: ServedModel, later: IO[bytes]) -> Writer:
    """`later` is a file for what has to wait until the end."""
    signature = model.model.signature
    if form == "json":
        return JsonWriter(model, later)
    if form == "mlflow":
        return MlflowWriter(model)
    return CsvWriter(signature) if form == "csv" else ArrowWriter(signature)

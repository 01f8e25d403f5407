"""Whether an ONNX file says what the model does: onnxruntime's predictions of rows made for it against our own."""

import random
import string
from itertools import accumulate
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.errors import InvalidInput
from app.learning.features import MEASURES_OF_KIND, Features
from app.learning.model import Model
from app.serving.calendar import MISSING_TIME
from app.serving.encode import DTYPES
from app.serving.signature import MATRIX, labels_of

NUM_CHECKED_ROWS = 64
MICROSECONDS_PER_YEAR = 31_556_952 * 10**6  # on average
TOLERANCE = 1e-4  # relative, of outputs that differ by the order in which float32 numbers are added up


def not_exportable(reason: str) -> InvalidInput:
    return InvalidInput(f"this model can't be exported to ONNX: {reason}", code="not_exportable")


def check_predictions(model: Model, content: bytes) -> None:
    """Raise InvalidInput unless onnxruntime gives the same as `Model.predict`, for one row and for many."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    for num_rows in (NUM_CHECKED_ROWS, 1):
        frame = sample_rows(model, num_rows)
        values = model.predict(model.features.transform(frame))
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            found = session.run(None, feed_of(model, frame))
        except Exception as error:  # its errors have no base of their own
            raise not_exportable(f"onnxruntime does not run it: {error}") from error
        _compare(model, values, found)


def _compare(model: Model, values: Tensor, found: list[NDArray[Any]]) -> None:
    expected = values.numpy()
    numbers = found[0] if len(found) == 1 else found[1]
    scale = np.abs(expected).max(initial=1e-30, where=np.isfinite(expected))
    if not np.allclose(numbers, expected, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True):
        raise not_exportable(
            f"onnxruntime's answers differ from this service's by up to {np.nanmax(np.abs(numbers - expected)):.3g}"
        )
    if len(found) == 1:
        return
    labels = np.array(labels_of(model.signature, torch.from_numpy(numbers))).reshape(found[0].shape)
    if (labels != found[0]).any():
        raise not_exportable("onnxruntime's labels differ from this service's")


def sample_rows(model: Model, num_rows: int) -> pl.DataFrame:
    """Rows as `Features.transform` takes them, with gaps where the model takes gaps, and words that it never saw."""
    features, chance = model.features, random.Random(0)  # noqa: S311
    places = first_measures(features)
    impute = features.spec is not None and features.spec.missing == "impute"
    series = []
    for column in features.columns:
        if column.kind == "categorical":
            words = [*features.vocabularies[column.name], *string.ascii_letters, *([None] if impute else [])]
            cells: list[Any] = [chance.choice(words) for _ in range(num_rows)]
            series.append(pl.Series(column.name, cells, dtype=pl.String))
            continue
        place = places[column.name]
        if column.kind == "datetime":
            years = [chance.gauss(features.mean[place], features.std[place] + 1) for _ in range(num_rows)]
            moments = [round((year - 1970) * MICROSECONDS_PER_YEAR) for year in years]
            cells = [None if impute and chance.random() < 0.2 else moment for moment in moments]
            series.append(pl.Series(column.name, cells, dtype=pl.Int64).cast(DTYPES["datetime"]))
            continue
        numbers = np.array([chance.gauss(features.mean[place], features.std[place]) for _ in range(num_rows)])
        cells = numbers.astype(np.float32).tolist()  # which is what a model of plain rows is given
        if column.kind == "boolean":
            cells = [float(chance.random() < 0.5) for _ in cells]
        if impute and column.kind == "numeric":
            cells = [None if chance.random() < 0.2 else cell for cell in cells]
        series.append(pl.Series(column.name, cells, dtype=pl.Float64))
    return pl.DataFrame(series)


def feed_of(model: Model, frame: pl.DataFrame) -> dict[str, NDArray[Any]]:
    """The rows as the file's inputs."""
    if model.signature.positional:
        return {MATRIX: frame.to_numpy().astype(np.float32)}
    feed: dict[str, NDArray[Any]] = {}
    for column in model.features.columns:
        cells = frame[column.name]
        if column.kind == "categorical":
            feed[column.name] = np.array(cells.fill_null("").to_list(), dtype=object)[:, None]
        elif column.kind == "datetime":
            feed[column.name] = cells.dt.timestamp("us").fill_null(MISSING_TIME).to_numpy()[:, None]
        else:
            numbers = cells.fill_null(float("nan")).to_numpy()[:, None]
            feed[column.name] = numbers != 0 if column.kind == "boolean" else numbers
    return feed


def first_measures(features: Features) -> dict[str, int]:
    """By column, the place of its measure, or of the first of them, among all."""
    widths = [MEASURES_OF_KIND[column.kind] for column in features.columns]
    return dict(zip((column.name for column in features.columns), accumulate(widths, initial=0), strict=False))

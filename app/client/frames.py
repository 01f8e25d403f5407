"""Frames of polars and pandas as Arrow streams, there and back. Neither is imported before it is used."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

ARROW = "application/vnd.apache.arrow.stream"
CELLS_AT_ONCE = 2**20


def is_frame(value: Any) -> bool:
    return _library(value) is not None


def _library(value: Any) -> str | None:
    """`polars` or `pandas`, where the value is a frame of theirs or of a class derived from one."""
    for base in type(value).__mro__:
        library = base.__module__.partition(".")[0]
        if library in ("polars", "pandas") and base.__name__ in ("DataFrame", "LazyFrame"):
            return library
    return None


def arrow_stream(frame: Any) -> Iterator[bytes]:
    """A frame as an Arrow stream, some rows at a time; what has a dictionary goes as the text it stands for.

    Raises:
        TypeError: a column of what no table holds, such as pandas' periods.
    """
    import polars as pl

    table = polars_frame(frame)
    for name, cells in table.select(pl.col(pl.Object)).to_dict().items():
        kind = type(next(cell for cell in cells if cell is not None)).__name__
        raise TypeError(f"column {name!r} is of type {kind}, which no table holds; make it numbers, text or times")
    return _blocks(table.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String)))


def _blocks(table: "pl.DataFrame") -> Iterator[bytes]:
    from app.storage.arrow_stream import ArrowParts

    parts = ArrowParts()
    rows_at_once = max(1, CELLS_AT_ONCE // max(1, table.width))
    for start in range(0, max(1, table.height), rows_at_once):
        yield parts.part(table.slice(start, rows_at_once))
    yield parts.END


def polars_frame(frame: Any) -> "pl.DataFrame":
    """A frame of either library as one of polars; a lazy one is collected."""
    import polars as pl

    if _library(frame) == "pandas":
        return pl.DataFrame([_series(str(name), cells) for name, cells in frame.items()])
    collected: pl.DataFrame = frame.collect() if isinstance(frame, pl.LazyFrame) else frame
    return collected


def _series(name: str, cells: Any) -> "pl.Series":
    """A column of a pandas frame, without pyarrow, which `polars.from_pandas` wants."""
    import numpy as np
    import polars as pl

    if getattr(cells.dtype, "tz", None) is not None:
        cells = cells.dt.tz_convert("UTC").dt.tz_localize(None)
    if isinstance(cells.dtype, np.dtype) and cells.dtype.kind in "biufM":
        return pl.Series(name, cells.to_numpy(), nan_to_null=True)
    return pl.Series(name, cells.astype(object).where(cells.notna(), None).tolist(), strict=False)


def frame_like(frame: Any, stream: Iterable[bytes]) -> Any:
    """An Arrow stream as a frame of the library of another one, whose rows it belongs to."""
    import polars as pl

    answer = pl.read_ipc_stream(b"".join(stream))
    if _library(frame) == "polars":
        return answer
    import pandas as pd

    return pd.DataFrame({column.name: column.to_numpy() for column in answer}, index=frame.index)

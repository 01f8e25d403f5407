"""Features that are the target under another name, as a label's number beside the label."""

from collections.abc import Iterable, Iterator

import polars as pl

from app.specs.table import StoredData, Table
from app.specs.training import TrainingSpec

MIN_ROWS, MIN_ROWS_PER_CLASS = 50, 10  # fewer may be alike by chance, or made up by hand


def leaks(spec: TrainingSpec, facts: Table, frames: Iterable[pl.DataFrame]) -> Iterator[str]:
    """A warning for each feature with the numbers of the target, or with a value of its own for each label.

    Only those are looked at that have as many different values as the target.

    Args:
        facts: of the table whose rows `frames` are.
    """
    data = spec.data
    assert isinstance(data, StoredData)
    target, *others = (facts.column(name) for name in data.targets)
    assert target is not None
    classes = 0 if spec.task == "regression" else target.num_unique
    if others or data.positional or facts.num_rows < max(MIN_ROWS, MIN_ROWS_PER_CLASS * classes):
        return
    for column in facts.columns:
        if column.name not in (data.features or ()) or column.num_unique != target.num_unique:
            continue
        pairs = (frame.select(column.name, target.name).drop_nulls(target.name) for frame in frames)
        if _are_as_many(pairs, classes) if classes else column.kind == target.kind and all(map(_are_same, pairs)):
            yield (
                f"column {column.name!r} tells {target.name!r} exactly: name it in data.ignored_columns, unless it "
                "will be known of the rows to predict"
            )


def _are_as_many(pairs: Iterable[pl.DataFrame], number: int) -> bool:
    return pl.concat(part.unique() for part in pairs).n_unique() == number


def _are_same(pairs: pl.DataFrame) -> bool:
    return bool((pairs.to_series(0) == pairs.to_series(1)).all())

"""Tables: the kinds of their columns, the part of a request that names them, and a model's signature."""

from collections.abc import Collection
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, WithJsonSchema

from app.specs.base import Items, Name, NonNegativeInt, Spec

Kind = Literal["numeric", "boolean", "categorical", "datetime", "text"]
Task = Literal["regression", "binary", "multiclass", "multilabel"]
Label = bool | int | float | str
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
MAX_EXAMPLE_CHARACTERS = 200  # of a column's profile; longer ones are clipped
ColumnName = Annotated[str, Field(min_length=1, max_length=1000)]


def as_key(label: Label) -> str:
    """A label as a JSON key; 2 and 2.0 are the same."""
    if isinstance(label, bool):
        return str(label).lower()
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


class Column(Spec):
    name: str
    kind: Kind


class ColumnProfile(Column):
    """What a dataset's column holds.

    `num_unique` leaves missing values out; `integral`: numbers, all of them whole. `note`: why text may have been meant
    as something else, or numbers as times.
    """

    num_missing: NonNegativeInt
    num_unique: NonNegativeInt
    integral: bool = False
    min: Any = None
    max: Any = None
    mean: float | None = None
    examples: Items[Any] = ()
    note: str | None = None

    def label_beyond(self, known: Collection[str]) -> Label | None:
        """A value that is none of these labels (`as_key`), if the profile shows one; what was clipped may be any."""
        shown = [*self.examples, *((self.min, self.max) if self.kind == "numeric" and self.num_unique else ())]
        keys = {as_key(value): value for value in shown}
        return next((keys[key] for key in keys if key not in known and len(key) < MAX_EXAMPLE_CHARACTERS), None)


class Table(Spec):
    """A stored table's facts, enough to resolve a spec without reading a row."""

    digest: Digest
    num_rows: NonNegativeInt
    columns: Items[ColumnProfile]

    def column(self, name: str) -> ColumnProfile | None:
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, ColumnProfile]:
        return {column.name: column for column in self.columns}


class Signature(Spec):
    """What a model takes and gives.

    `ignored`: columns of the training table that are no inputs, which rows may carry along. `positional`: the
    training rows were plain lists of numbers, so the columns have no names of the user's.
    """

    task: Task
    inputs: Items[Column]
    targets: Items[Column]
    classes: Items[Label] | None = None
    ignored: Items[str] = ()
    positional: bool = False


# ---- the `data` of a request

Rows = Annotated[
    list[Any],
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "boolean"}, {"type": "null"}]}},
        }
    ),
]
Targets = Annotated[
    list[Any],
    WithJsonSchema(
        {
            "type": "array",
            "items": {"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "boolean"}, {"type": "array"}]},
        }
    ),
]
Records = Annotated[list[Any], WithJsonSchema({"type": "array", "items": {"type": "object"}})]
TargetNames = ColumnName | Annotated[Items[ColumnName], Field(min_length=1)]


class StoredData(Spec):
    """Columns of a stored table: a dataset by name, or (as resolved specs have it) any table by its digest."""

    dataset: Name | None = None
    digest: Digest | None = None
    target: TargetNames
    features: Annotated[Items[ColumnName], Field(min_length=1)] | None = None
    ignored_columns: Items[ColumnName] = ()
    sample_weight: ColumnName | None = None
    positional: bool = False

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,) if isinstance(self.target, str) else self.target


class RecordsData(Spec):
    """Rows as objects, in the request itself."""

    records: Records
    target: TargetNames
    features: Annotated[Items[ColumnName], Field(min_length=1)] | None = None
    ignored_columns: Items[ColumnName] = ()
    sample_weight: ColumnName | None = None


class InputsData(Spec):
    """Rows as lists of numbers, in the request itself. `sample_weight`: a number per row."""

    inputs: Rows
    targets: Targets
    sample_weight: list[Any] | None = None


def _form(value: Any) -> str:
    """Which class a value is meant for. No tag is also a field, so that pointers to faults can leave tags out."""
    keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", ())
    return "inputs_data" if "inputs" in keys else "records_data" if "records" in keys else "stored_data"


DataSpec = Annotated[
    Annotated[StoredData, Tag("stored_data")]
    | Annotated[RecordsData, Tag("records_data")]
    | Annotated[InputsData, Tag("inputs_data")],
    Discriminator(_form),
]

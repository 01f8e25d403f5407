"""Writes the tables of the documentation from the code: settings and everything that POST /train can be told.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; tests/unit/test_docs.py fails when one is out of date.
"""

import inspect
import json
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from app.settings import Settings
from app.specs.descent import DescentSpec, StopSpec
from app.specs.layers import LAYER_SPECS
from app.specs.losses import LOSS_SPECS
from app.specs.network import DenseNetwork, InitSpec
from app.specs.optimizers import OPTIMIZER_SPECS
from app.specs.schedules import SCHEDULE_SPECS
from app.specs.training import (
    FeaturesSpec,
    TrainingSpec,
    ValidationDataset,
    ValidationFolds,
    ValidationFraction,
)

DOCS = Path(__file__).parent.parent / "docs"


def settings_table() -> str:
    rows = ["| variable | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        rows.append(f"| `GRADSERVE_{name.upper()}` | {_setting_default(field)} | {field.description} |")
    return "\n".join(rows)


def _setting_default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "see right"
    value = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    return "" if value in (None, "") else f"`{os.fspath(value) if isinstance(value, Path) else value}`"


def types_table(specs: Iterable[type[BaseModel]]) -> str:
    """A row per `type`: its fields with their defaults, and its docstring."""
    rows = ["| type | fields and their defaults | |", "|---|---|---|"]
    for spec in specs:
        types = ", ".join(f"`{name}`" for name in get_args(spec.model_fields["type"].annotation))
        rows.append(f"| {types} | {_fields(spec)} | {_doc(spec)} |")
    return "\n".join(rows)


def forms_table(specs: Iterable[type[BaseModel]]) -> str:
    """A row per spec of a union without `type`."""
    rows = ["| fields and their defaults | |", "|---|---|"]
    return "\n".join([*rows, *(f"| {_fields(spec)} | {_doc(spec)} |" for spec in specs)])


def fields_table(spec: type[BaseModel]) -> str:
    rows = [_doc(spec), "", "| field | default | or |", "|---|---|---|"]
    rows += [f"| `{name}` | {_default(field)} | {_choices(field)} |" for name, field in spec.model_fields.items()]
    return "\n".join(rows)


def _choices(field: FieldInfo) -> str:
    return ", ".join(f"`{_as_json(word)}`" for word in _words(field.annotation) if word != field.default)


def _words(annotation: Any) -> list[Any]:
    """What the `Literal`s of an annotation allow."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return [word for part in get_args(annotation) for word in _words(part)]
    return []


def _fields(spec: type[BaseModel]) -> str:
    own = {name: field for name, field in spec.model_fields.items() if name != "type"}
    return ", ".join(f"`{name}` {_default(field)}{_alternatives(field)}" for name, field in own.items())


def _alternatives(field: FieldInfo) -> str:
    choices = _choices(field)
    return f" (or {choices})" if choices else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(required)"
    return f"`{_as_json(field.get_default(call_default_factory=True))}`"


def _as_json(value: Any) -> str:
    if isinstance(value, BaseModel):
        return json.dumps(value.model_dump(mode="json", include=_telling(value)))
    return json.dumps(value)


def _telling(value: BaseModel) -> set[str] | None:
    """Of a spec in a union the `type` says enough: its fields have a table of their own."""
    return {"type"} if "type" in type(value).model_fields else None


def _doc(spec: type[BaseModel]) -> str:
    own = spec.__dict__.get("__doc__")
    return " ".join(inspect.cleandoc(own).split()) if own else ""


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "settings.md": {"settings": settings_table},
    "training.md": {
        "fields": lambda: fields_table(TrainingSpec),
        "network": lambda: fields_table(DenseNetwork),
        "layers": lambda: types_table(LAYER_SPECS),
        "losses": lambda: types_table(LOSS_SPECS),
        "optimizers": lambda: types_table(OPTIMIZER_SPECS),
        "descent": lambda: fields_table(DescentSpec),
        "schedules": lambda: types_table(SCHEDULE_SPECS),
        "stop": lambda: fields_table(StopSpec),
        "validation": lambda: forms_table([ValidationFraction, ValidationDataset, ValidationFolds]),
        "features": lambda: fields_table(FeaturesSpec),
        "init": lambda: fields_table(InitSpec),
    },
}


def up_to_date(file: str) -> str:
    """The text of a page with its tables as the code has them today."""
    text = (DOCS / file).read_text()
    for name, table in TABLES[file].items():
        between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        assert between.search(text), f"docs/{file} has no place <!-- {name} --> for its table"
        text = between.sub(partial(_with, table()), text)
    return text


def _with(table: str, place: re.Match[str]) -> str:
    return f"{place[1]}{table}\n{place[2]}"


if __name__ == "__main__":
    for page in TABLES:
        (DOCS / page).write_text(up_to_date(page))

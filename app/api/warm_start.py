"""What a run takes over from the version that it goes on from, and whether its table fits that."""

from typing import NamedTuple

from app.api.services import Services
from app.errors import InvalidInput, UnknownColumn
from app.specs.network import LayeredNetwork
from app.specs.resolve import count_outputs, signature_of
from app.specs.resolve_columns import are_whole, note_of
from app.specs.resolve_network import with_outputs
from app.specs.sentences import some_of, unknown_column
from app.specs.table import Signature, StoredData, Table, as_key
from app.specs.training import TrainingSpec, WarmStart
from app.storage.version import Version


class Start(NamedTuple):
    """A version whose weights a run begins with, and the spec of the run that it is of."""

    version: Version
    spec: TrainingSpec
    signature: Signature

    def __str__(self) -> str:
        return f"version {self.version.version} of {self.version.model!r}"


def find_start(deps: Services, start: WarmStart) -> Start:
    version = deps.models.get(start.model, deps.models.resolve(start.model, start.version))
    spec, signature = version.config["spec"], version.config["signature"]
    return Start(version, TrainingSpec.model_validate(spec), Signature.model_validate(signature))


def filled_in_from(start: Start, spec: TrainingSpec, table: Table) -> tuple[TrainingSpec, Table, list[str]]:
    """What the spec leaves out as it is for the version, the table as if it had all classes, and warnings.

    Raises:
        UnknownColumn, InvalidInput: columns or labels that the version has not learnt.
    """
    data = spec.data
    assert isinstance(data, StoredData)
    goes_on = [column.name for column in start.signature.targets] == list(data.targets)
    left_out = {"network", "features", *(("task", "loss") if goes_on else ())} - spec.model_fields_set
    data, news = _columns_of(start, data, table)
    spec = spec.model_copy(update={name: getattr(start.spec, name) for name in left_out} | {"data": data})
    if goes_on and spec.task == start.spec.task in ("binary", "multiclass"):
        table = _with_all_labels(start, data, table)
    return spec, table, news


def _columns_of(start: Start, data: StoredData, table: Table) -> tuple[StoredData, list[str]]:
    """`data` with the columns that the version was trained on, where it names none; and a warning of those left out.

    Plain numbers are left alone, as no name says which of them are which, and so is a target among those columns.
    """
    inputs, signature = [column.name for column in start.signature.inputs], start.signature
    others = {*data.targets, *data.ignored_columns, data.sample_weight}
    if data.features is not None or data.positional or others & set(inputs):
        return data, []
    for column in signature.inputs:
        found = table.column(column.name)
        if found is None:
            sentence = unknown_column(column.name, [known.name for known in table.columns])
            raise UnknownColumn.at("/warm_start", f"{start} takes {column.name!r}: {sentence}")
        if found.kind != column.kind:
            raise InvalidInput.at(
                "/warm_start",
                f"{start} takes {column.name!r} as {column.kind}; here it is {found.kind}{note_of(found)}",
            )
    known = others.union(inputs, signature.ignored, (column.name for column in signature.targets))
    left_out = [column.name for column in table.columns if column.name not in known]
    news = [f"warm_start: columns that are new to the version are left out: {some_of(left_out)}"] if left_out else []
    return data.model_copy(update={"features": tuple(inputs)}), news


def _with_all_labels(start: Start, data: StoredData, table: Table) -> Table:
    """The table as if it had a row of each class that the version knows.

    Raises:
        InvalidInput: it has more labels than that, or its profile shows one that is none of them.
    """
    (target,), classes = start.signature.targets, start.signature.classes or ()
    found = table.column(target.name)
    if found is None or not found.num_unique:
        return table
    if are_whole(table, (data.sample_weight,)):
        unknown = found.label_beyond([as_key(label) for label in classes])
        too_many = found.num_unique > len(classes)
        if too_many or unknown is not None:
            has = f"{found.num_unique} labels" if too_many else f"the label {unknown!r}"
            knows = f"{start} knows {len(classes)}: {some_of([repr(label) for label in classes])}"
            raise InvalidInput.at("/warm_start", f"{target.name!r} has {has}, and {knows}")
    whole = found.model_copy(update={"num_unique": len(classes)})
    return Table(
        digest=table.digest,
        num_rows=table.num_rows,
        columns=tuple(whole if column is found else column for column in table.columns),
    )


def go_on_from(start: Start, spec: TrainingSpec, table: Table) -> tuple[TrainingSpec, list[str]]:
    """The resolved spec with the version and its network, and a warning where the output layer has to be a new one.

    Raises:
        InvalidInput: another network, other columns or other features.
    """
    assert spec.warm_start is not None
    assert isinstance(start.spec.network, LayeredNetwork)
    num_outputs = count_outputs(spec, table)
    network = with_outputs(start.spec.network, num_outputs)
    if spec.network not in (network, start.spec.network):
        raise InvalidInput.at("/warm_start", f"{start} has another network; leave it out, and its own is taken")
    if start.signature.inputs != signature_of(spec, table).inputs:
        columns = some_of([f"{column.name} ({column.kind})" for column in start.signature.inputs])
        raise InvalidInput.at("/warm_start", f"{start} has other input columns: {columns}")
    if start.spec.features != spec.features:
        raise InvalidInput.at("/features", f"{start} has other features; leave them out, and its own are taken")
    is_new, output = network != start.spec.network, f"layers.{len(network.layers) - 1}"
    if is_new and any(part.startswith(output) for part in spec.freeze):
        raise InvalidInput.at("/freeze", f"{output} is the output layer, a new one, which has nothing to keep yet")
    begun = spec.warm_start.model_copy(update={"version": start.version.version})
    spec = spec.model_copy(update={"network": network, "warm_start": begun})
    told = f"warm_start: the output layer is a new one, as the target takes {num_outputs} outputs, not those of {start}"
    return spec, [told] if is_new else []

"""What a run takes over from the version that it goes on from, and whether its table fits that."""

from typing import Any, NamedTuple

from app.api.services import Services
from app.errors import InvalidInput, UnknownColumn
from app.specs.outputs import Learnt, has_seen_held_out, new_output_layer, same_target, with_outputs
from app.specs.resolve import count_outputs, signature_of
from app.specs.resolve_columns import are_whole, note_of
from app.specs.sentences import some_of, unknown_column
from app.specs.table import Signature, StoredData, Table, as_key
from app.specs.training import TrainingSpec, WarmStart
from app.storage.lineage import learnt_of, lineage
from app.storage.version import Version


class Start(NamedTuple):
    """A version whose weights a run begins with, and what it has learnt."""

    version: Version
    learnt: Learnt

    @property
    def spec(self) -> TrainingSpec:
        return self.learnt.spec

    @property
    def signature(self) -> Signature:
        return self.learnt.signature

    def __str__(self) -> str:
        return f"version {self.version.version} of {self.version.model!r}"


def find_start(deps: Services, start: WarmStart) -> Start:
    version = deps.models.get(start.model, deps.models.resolve(start.model, start.version))
    return Start(version, learnt_of(version))


def filled_in_from(start: Start, spec: TrainingSpec, table: Table) -> tuple[TrainingSpec, Table, list[str]]:
    """What the spec leaves out as it is for the version, the table as if it had all classes, and warnings.

    Raises:
        UnknownColumn, InvalidInput: columns or labels that the version has not learnt.
    """
    data = spec.data
    assert isinstance(data, StoredData)
    names = tuple(column.name for column in start.signature.targets)
    goes_on = set(names) == set(data.targets)
    if goes_on and len(names) > 1:
        data = data.model_copy(update={"target": names})  # in the order of the version's outputs
    goes_on &= spec.task in ("auto", start.signature.task)
    if goes_on:
        _check_kinds(start, table)
    data, news = _columns_of(start, data, table)
    left_out = {"network", "features"} - spec.model_fields_set
    taken: dict[str, Any] = {name: getattr(start.spec, name) for name in left_out}
    if goes_on:
        taken["task"] = start.signature.task
        taken |= {"loss": start.spec.loss} if spec.loss.type == "auto" else {}
    spec = spec.model_copy(update=taken | {"data": data})
    if goes_on and spec.task in ("binary", "multiclass"):
        table = _with_all_labels(start, data, table)
    return spec, table, news


def _check_kinds(start: Start, table: Table) -> None:
    """Raise InvalidInput where targets are words now and were numbers, or the other way round."""
    for column in start.signature.targets:
        found = table.column(column.name)
        if found is not None and "categorical" in (found.kind, column.kind) and found.kind != column.kind:
            raise InvalidInput.at(
                "/data/target",
                f"{start} learnt {column.name!r} as {column.kind}, and here it is {found.kind}{note_of(found)}; with "
                "another task, or under another name, it is learnt anew",
            )


def _columns_of(start: Start, data: StoredData, table: Table) -> tuple[StoredData, list[str]]:
    """`data` with the columns that the version was trained on, where it names none; and a warning of those left out.

    Plain numbers are left alone, as no name says which of them are which.
    """
    inputs, signature = [column.name for column in start.signature.inputs], start.signature
    others = {*data.targets, *data.ignored_columns, data.sample_weight}
    if data.features is not None or data.positional:
        return data, []
    if taken := [name for name in inputs if name in others]:
        raise InvalidInput.at("/warm_start", f"{start} takes {taken[0]!r} as an input, and here it is to be none")
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
            cure = "" if data.positional else "; under another name the column is learnt anew, with all of its labels"
            raise InvalidInput.at("/warm_start", f"{target.name!r} has {has}, and {knows}{cure}")
    whole = found.model_copy(update={"num_unique": len(classes)})
    return Table(
        digest=table.digest,
        num_rows=table.num_rows,
        columns=tuple(whole if column is found else column for column in table.columns),
    )


def go_on_from(deps: Services, start: Start, spec: TrainingSpec, table: Table) -> tuple[TrainingSpec, list[str]]:
    """The resolved spec with the version and its network, and warnings of what is not as a reader may think.

    Raises:
        InvalidInput: another network, other columns or other features.
    """
    assert spec.warm_start is not None
    network = with_outputs(start.learnt.network, count_outputs(spec, table))
    if spec.network not in (network, start.learnt.network):
        raise InvalidInput.at("/warm_start", f"{start} has another network; leave it out, and its own is taken")
    _check_inputs(start, signature_of(spec, table))
    if start.spec.features != spec.features:
        raise InvalidInput.at("/features", f"{start} has other features; leave them out, and its own are taken")
    begun = spec.warm_start.model_copy(update={"version": start.version.version})
    spec = spec.model_copy(update={"network": network, "warm_start": begun})
    output, news = new_output_layer(start.learnt, spec), list[str]()
    if output is not None:
        if any(part.startswith(output) or output.startswith(f"{part}.") for part in spec.freeze):
            raise InvalidInput.at("/freeze", f"{output} is the output layer, a new one, which has nothing to keep yet")
        news.append(f"warm_start: the output layer is a new one, as that of {start} is of another target, task or loss")
    elif not same_target(start.learnt, spec):
        news.append(f"warm_start: all weights are those of {start}, for another target, as no linear layer ends them")
    before = lineage(deps.models, start.spec.warm_start)
    if any(has_seen_held_out(learnt, spec) for learnt in (start.learnt, *before)):
        news.append(
            f"warm_start: {start} has learnt from rows that are held out here, so the metrics may be better than on "
            "new ones; a validation dataset of others tells"
        )
    return spec, news


def _check_inputs(start: Start, signature: Signature) -> None:
    """Raise InvalidInput unless the columns are those of the version, in their order."""
    before, now = start.signature.inputs, signature.inputs
    if before == now:
        return
    kinds, kinds_now = ({column.name: column.kind for column in columns} for columns in (before, now))
    lost, added = [name for name in kinds if name not in kinds_now], [name for name in kinds_now if name not in kinds]
    changed = [f"{name!r} as {kinds[name]}" for name in kinds if kinds_now.get(name, kinds[name]) != kinds[name]]
    differences = {
        f"also {some_of(list(map(repr, lost)))}": lost,
        f"not {some_of(list(map(repr, added)))}": added,
        some_of(changed): changed,
    }
    told = [difference for difference, names in differences.items() if names] or ["the same in another order"]
    raise InvalidInput.at("/warm_start", f"{start} takes other columns: {', and '.join(told)}")

"""Whether the dataset that a run is to be judged by has what is read of it."""

from app.errors import InvalidInput, UnknownColumn
from app.specs.network import LayeredNetwork
from app.specs.resolve_columns import NUMBERS, are_whole, missing_in, note_of, refuses_gaps
from app.specs.resolve_network import check_places, embeddings_of
from app.specs.resolve_task import is_flag
from app.specs.sentences import some_of, unknown_column
from app.specs.table import StoredData, Table, as_key
from app.specs.training import TrainingSpec


def check_validation(spec: TrainingSpec, table: Table, other: Table) -> None:
    """Whether a resolved spec's validation dataset, `other`, has what the run reads of `table`.

    Raises:
        UnknownColumn, InvalidInput: a column is not there, is an empty target, has gaps where none may be, or holds
            what is no number, no time, no label or no place in an embedding.
    """
    data = spec.data
    assert isinstance(data, StoredData)
    whole = are_whole(other, (*data.targets, data.sample_weight))
    for name in (*(data.features or ()), *data.targets, *([data.sample_weight] if data.sample_weight else ())):
        learnt, found = table.column(name), other.column(name)
        assert learnt is not None
        if found is None:
            known = [column.name for column in other.columns]
            raise UnknownColumn.at("/validation", f"in the validation dataset {unknown_column(name, known)}")
        if name in data.targets and not found.num_unique:
            raise InvalidInput.at("/validation", f"{name!r} is empty in the validation dataset")
        if name in data.targets and spec.task == "multilabel" and not is_flag(found):
            raise InvalidInput.at(
                "/validation", f"{name!r} must hold only 0/1 or true/false, also in the validation dataset"
            )
        fitting = {"numeric": NUMBERS, "boolean": NUMBERS, "datetime": ("datetime",)}.get(learnt.kind, (found.kind,))
        if found.kind not in fitting and found.num_unique:
            raise InvalidInput.at(
                "/validation",
                f"{name!r} is {found.kind} in the validation dataset, and {learnt.kind} in the table that is learnt "
                f"from{note_of(found)}",
            )
        if name in (data.features or ()) and found.num_missing and whole and refuses_gaps(spec):
            raise InvalidInput.at(
                "/validation",
                f"{name!r} has {missing_in(found)} in the validation dataset; impute them with features.missing",
            )
    assert isinstance(spec.network, LayeredNetwork)
    for _, embedding, _ in embeddings_of(spec.network.layers, ""):
        check_places(spec, other, embedding, "/validation")
    if spec.task in ("binary", "multiclass") and are_whole(other, (data.sample_weight,)):
        _check_labels(data.targets[0], table, other)


def _check_labels(target: str, table: Table, other: Table) -> None:
    """Where the profile's examples are all labels that are learnt; of others the run sees it."""
    learnt, found = table.column(target), other.column(target)
    assert learnt is not None
    assert found is not None
    known = [as_key(label) for label in learnt.examples]
    unknown = found.label_beyond(known)
    if unknown is not None and len(known) == learnt.num_unique:
        raise InvalidInput.at(
            "/validation",
            f"{target!r} has the label {as_key(unknown)} in the validation dataset, and in the table that is learnt "
            f"from only {some_of(known)}: write labels alike in both, and leave out rows of any other",
        )

"""What is learnt, told by the target, and the loss that fits."""

from collections.abc import Mapping

from app.errors import InvalidInput
from app.specs.losses import AutoLoss, BinaryCrossEntropyLoss, CrossEntropyLoss, LossSpec, PlainLoss
from app.specs.resolve_columns import note_of
from app.specs.sentences import some_of
from app.specs.table import MAX_EXAMPLE_CHARACTERS, ColumnProfile, StoredData, Table, Task, as_key
from app.specs.training import TrainingSpec

MAX_AUTO_CLASSES = 20  # a whole-number target with more distinct values is a quantity
MIN_ROWS_PER_AUTO_CLASS = 10
TASKS_OF_LOSS: dict[str, tuple[Task, ...]] = {
    "mse": ("regression",),
    "mae": ("regression",),
    "log_cosh": ("regression",),
    "huber": ("regression",),
    "quantile": ("regression",),
    "poisson_nll": ("regression",),
    "cross_entropy": ("multiclass", "binary"),
    "binary_cross_entropy": ("binary", "multilabel"),
}
METRICS_OF_TASK: dict[Task, tuple[str, ...]] = {
    "regression": ("mae", "rmse", "r2"),
    "binary": ("accuracy", "f1_macro", "roc_auc"),
    "multiclass": ("accuracy", "f1_macro"),
    "multilabel": ("accuracy", "exact_match", "f1_macro"),
}


def resolve_task(spec: TrainingSpec, table: Table, warnings: list[str]) -> Task:
    assert isinstance(spec.data, StoredData)
    targets = [column for name in spec.data.targets if (column := table.column(name))]
    task = spec.task if spec.task != "auto" else _task_of(spec, targets, table.num_rows, warnings)
    for column in targets:
        if column.num_unique == 0:
            raise InvalidInput.at("/data/target", f"{column.name!r} is empty")
        if task == "regression" and column.kind not in ("numeric", "boolean"):
            wanted = "several targets are all numbers, or all 0/1" if len(targets) > 1 else "regression needs numbers"
            raise InvalidInput.at("/data/target", f"{column.name!r} is {column.kind}; {wanted}{note_of(column)}")
        if task == "multilabel" and not is_flag(column):
            detail = f"{column.name!r} must hold only 0/1 or true/false: multilabel has a column for each label"
            raise InvalidInput.at("/data/target", detail)
        if column.num_unique == 1 and table.num_rows > 2:
            warnings.append(f"target {column.name!r} has the same value in every row, which leaves nothing to learn")
    if task in ("binary", "multiclass"):
        _check_classes(task, targets)
        if targets[0].num_unique == table.num_rows > 2:
            warnings.append(
                f"target {targets[0].name!r} has another label in every row; a class is learned from several"
            )
        if targets[0].note:
            warnings.append(f"target {targets[0].name!r} is taken as classes{note_of(targets[0])}")
    return task


def _check_classes(task: Task, targets: list[ColumnProfile]) -> None:
    if len(targets) != 1:
        raise InvalidInput.at("/data/target", f"{task} has one target; for several of 0/1 use multilabel")
    column = targets[0]
    if column.kind in ("datetime", "text"):
        raise InvalidInput.at(
            "/data/target",
            f"{column.name!r} is {column.kind} with {column.num_unique} values; no classes{note_of(column)}",
        )
    if column.num_unique < 2 or (task == "binary" and column.num_unique != 2):
        wanted = "exactly 2" if task == "binary" else "at least 2"
        found = f"{column.num_unique} distinct values" if column.num_unique > 1 else "the same value in every row"
        raise InvalidInput.at("/data/target", f"{column.name!r} has {found}; {task} needs {wanted}")
    if column.num_unique > 10_000:
        raise InvalidInput.at(
            "/data/target",
            f"{column.name!r} has {column.num_unique} distinct values; is it a quantity? then use regression",
        )


def is_flag(column: ColumnProfile) -> bool:
    return column.kind == "boolean" or (column.integral and column.min in (0, 1) and column.max in (0, 1))


def _task_of(spec: TrainingSpec, targets: list[ColumnProfile], num_rows: int, warnings: list[str]) -> Task:
    by_loss = TASKS_OF_LOSS.get(spec.loss.type)
    if len(targets) > 1:
        return "multilabel" if all(map(is_flag, targets)) and by_loss != ("regression",) else "regression"
    column = targets[0]
    if by_loss == ("regression",):
        return "regression"
    if column.kind != "numeric" or by_loss or _looks_like_classes(column, num_rows):
        if column.kind == "numeric" and not by_loss and not is_flag(column):
            warnings.append(
                f"target {column.name!r} holds {column.num_unique} distinct whole numbers and was taken as classes; "
                "set task to regression if it is a quantity"
            )
        return "binary" if column.num_unique == 2 else "multiclass"
    return "regression"


def _looks_like_classes(column: ColumnProfile, num_rows: int) -> bool:
    if not column.integral:
        return False
    enough = column.num_unique * MIN_ROWS_PER_AUTO_CLASS <= num_rows - column.num_missing
    return is_flag(column) or (column.num_unique <= MAX_AUTO_CLASSES and enough)


def resolve_loss(spec: TrainingSpec, task: Task, table: Table) -> LossSpec:
    loss = spec.loss
    if isinstance(loss, AutoLoss):
        if task == "regression":
            if loss.class_weight is not None:
                raise InvalidInput.at("/loss/class_weight", "class weights need a classification task")
            return PlainLoss(type="mse")
        fitting = CrossEntropyLoss if task == "multiclass" else BinaryCrossEntropyLoss
        loss = fitting(class_weight=loss.class_weight)
    if task not in TASKS_OF_LOSS[loss.type]:
        fits = " or ".join(name for name, tasks in TASKS_OF_LOSS.items() if task in tasks)
        raise InvalidInput.at("/loss/type", f"{loss.type} does not fit the task {task}; use {fits}")
    if task == "multilabel" and isinstance(loss, BinaryCrossEntropyLoss) and loss.class_weight is not None:
        raise InvalidInput.at("/loss/class_weight", "class weights need one target; multilabel has several")
    if isinstance(loss, BinaryCrossEntropyLoss | CrossEntropyLoss) and isinstance(loss.class_weight, Mapping):
        _check_labels(loss.class_weight, spec, table)
    if loss.type == "poisson_nll":
        _check_rates(spec, table)
    return loss


def _check_labels(weights: Mapping[str, float], spec: TrainingSpec, table: Table) -> None:
    """Where the profile's examples are all labels that there are; of others the run sees it."""
    assert isinstance(spec.data, StoredData)
    target = table.column(spec.data.targets[0])
    assert target is not None
    labels = [as_key(label) for label in target.examples]
    unknown = [key for key in weights if key not in labels and len(key) < MAX_EXAMPLE_CHARACTERS]
    if unknown and len(labels) == target.num_unique:
        raise InvalidInput.at("/loss/class_weight", f"{unknown[0]!r} is no class; the classes are {some_of(labels)}")


def _check_rates(spec: TrainingSpec, table: Table) -> None:
    assert isinstance(spec.data, StoredData)
    for name in spec.data.targets:
        column = table.column(name)
        if column and column.kind == "numeric" and column.min < 0:
            raise InvalidInput.at(
                "/loss/type", f"poisson_nll needs a target that is not negative, and {name!r} begins at {column.min:g}"
            )

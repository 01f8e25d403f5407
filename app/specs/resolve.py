"""From what a user asked for to a `TrainingSpec` with nothing left open. Resolving twice changes nothing."""

from collections.abc import Iterable, Iterator

from app.errors import InvalidInput
from app.specs.axes import mixed_up
from app.specs.layers import Convolution
from app.specs.network import LayeredNetwork
from app.specs.resolve_columns import check_features, resolve_columns
from app.specs.resolve_network import resolve_network, resolve_whole_numbers
from app.specs.resolve_task import METRICS_OF_TASK, resolve_loss, resolve_task
from app.specs.schedules import PlateauSchedule
from app.specs.table import Column, Signature, StoredData, Table
from app.specs.training import TrainingSpec, ValidationDataset, ValidationFolds, ValidationFraction

DEFAULT_EPOCHS = 100
DEFAULT_BATCH_SIZE = 32
MAX_COLORS = 4  # channels of a picture
FEW_ROWS = 20  # of validation: by fewer, neither an epoch nor a model is told from another


def resolve(spec: TrainingSpec, table: Table) -> tuple[TrainingSpec, list[str]]:
    """Fill in all that follows from the spec and its table's facts; device, engine and threads are left to the planner.

    Args:
        spec: its data are `StoredData` with the digest of `table`.
        table: the facts of the stored table.

    Returns:
        The spec, and sentences that the user should read.

    Raises:
        UnknownColumn, InvalidInput: with a pointer for each fault.
    """
    assert isinstance(spec.data, StoredData)
    warnings: list[str] = []
    data = resolve_columns(spec.data, table, warnings)
    spec = spec.model_copy(update={"data": data.model_copy(update={"digest": table.digest})})
    task = resolve_task(spec, table, warnings)
    spec = spec.model_copy(update={"task": task})
    check_features(spec, table)
    loss = resolve_loss(spec, task, table)
    spec = spec.model_copy(update={"loss": loss})
    num_outputs = count_outputs(spec, table)
    spec = spec.model_copy(update={"network": resolve_network(spec, num_outputs)})
    spec = resolve_whole_numbers(spec, table)
    spec = _resolve_descent(spec, table, warnings)
    return spec, [*warnings, *_surprises(spec, table)]


def signature_of(spec: TrainingSpec, table: Table) -> Signature:
    """What a model of a resolved spec takes and gives; its classes are known once the rows are read."""
    data = spec.data
    assert isinstance(data, StoredData)
    assert data.features is not None
    assert spec.task != "auto"
    used = {*data.features, *data.targets}
    return Signature(
        task=spec.task,
        inputs=_columns(table, data.features),
        targets=_columns(table, data.targets),
        ignored=tuple(column.name for column in table.columns if column.name not in used),
        positional=data.positional,
    )


def count_outputs(spec: TrainingSpec, table: Table) -> int:
    """How many numbers the network gives for a row."""
    assert isinstance(spec.data, StoredData)
    if spec.loss.type == "cross_entropy":
        target = table.column(spec.data.targets[0])
        assert target is not None
        return max(2, target.num_unique)
    return len(spec.data.targets)


def _columns(table: Table, names: Iterable[str]) -> tuple[Column, ...]:
    found = [(name, table.column(name)) for name in names]
    return tuple(Column(name=name, kind=column.kind) for name, column in found if column)


def _resolve_descent(spec: TrainingSpec, table: Table, warnings: list[str]) -> TrainingSpec:
    num_rows = table.num_rows
    if isinstance(spec.validation, ValidationFraction):
        num_validation = max(1, round(num_rows * spec.validation.fraction))
        if num_rows - num_validation < 1:
            warnings.append(f"{num_rows} row(s) are too few to hold some out; there is no validation")
            spec = spec.model_copy(update={"validation": None})
        elif num_validation < FEW_ROWS <= num_rows and "validation" not in spec.model_fields_set:
            warnings.append(
                f"{num_validation} of {num_rows} rows are held out for validation, too few to go by much: "
                '{"validation": {"folds": 5}} measures with every row, and publishes a model that has learnt from all'
            )
    if isinstance(spec.validation, ValidationFolds) and spec.validation.folds > num_rows:
        raise InvalidInput.at(
            "/validation/folds", f"{num_rows} rows can't be divided into {spec.validation.folds} folds"
        )
    _check_extras(spec)
    descent, stop = spec.descent, spec.stop
    if descent.variant == "full_batch":
        if descent.batch_size is not None:
            raise InvalidInput.at(
                "/descent/batch_size", "full_batch sees all rows in every step; leave batch_size out, or use mini_batch"
            )
        if descent.accumulate_steps != 1:
            raise InvalidInput.at(
                "/descent/accumulate_steps", "full_batch has one gradient an epoch; there is nothing to accumulate"
            )
    else:
        size = 1 if descent.variant == "stochastic" else descent.batch_size or DEFAULT_BATCH_SIZE
        descent = descent.model_copy(update={"batch_size": size})
    if stop.max_epochs is None and stop.max_steps is None and stop.max_seconds is None:
        stop = stop.model_copy(update={"max_epochs": DEFAULT_EPOCHS})
    if stop.restore_best is None:
        stop = stop.model_copy(update={"restore_best": spec.validation is not None or stop.patience is not None})
    if isinstance(spec.schedule, PlateauSchedule) and stop.patience and stop.patience <= spec.schedule.patience:
        warnings.append(
            f"stop.patience ends the run after {stop.patience} epochs that got no better, and schedule.patience would "
            f"wait for {spec.schedule.patience} before the learning rate falls: it never does"
        )
    if spec.schedule.type in ("cosine", "linear", "one_cycle") and stop.max_epochs is None and stop.max_steps is None:
        raise InvalidInput.at(
            "/schedule/type", f"{spec.schedule.type} needs to know its end: set stop.max_epochs or stop.max_steps"
        )
    return spec.model_copy(update={"descent": descent, "stop": stop})


def _surprises(spec: TrainingSpec, table: Table) -> Iterator[str]:
    """What is allowed, and perhaps not what was meant."""
    if isinstance(spec.validation, ValidationDataset) and spec.validation.digest == table.digest:
        yield "the validation dataset is the table that is learnt from: its metrics say nothing of rows that are new"
    if spec.stop.metric != "loss" and spec.stop.target_loss is not None:
        yield f"stop.target_loss is of the loss, whatever stop.metric is: the run does not wait for {spec.stop.metric}"
    if spec.freeze and spec.warm_start is None:
        yield "freeze without warm_start: what is frozen keeps the random weights that it begins with"
    if getattr(spec.loss, "class_weight", None) == "balanced" and spec.descent.sampling == "class_balanced":
        yield "loss.class_weight and descent.sampling both balance the classes: rows of rare ones count twice over"
    assert isinstance(spec.network, LayeredNetwork)
    yield from mixed_up(spec.network.layers)
    shape, is_convolved = spec.network.input_shape, isinstance(next(iter(spec.network.layers), None), Convolution)
    if shape is not None and len(shape) == 3 and is_convolved and shape[2] <= MAX_COLORS < min(shape[:2]):
        yield (
            f"network.input_shape is [channels, height, width], and {list(shape)} has {shape[0]} channels; pictures of "
            f"{shape[2]} are {[shape[2], *shape[:2]]}, with the rows' numbers in that order"
        )


def _check_extras(spec: TrainingSpec) -> None:
    assert spec.task != "auto"
    metric = spec.stop.metric
    if metric != "loss":
        if spec.validation is None:
            raise InvalidInput.at(
                "/stop/metric", f"{metric} is measured on validation rows, and there is no validation"
            )
        if metric not in METRICS_OF_TASK[spec.task]:
            fits = ", ".join(("loss", *METRICS_OF_TASK[spec.task]))
            raise InvalidInput.at("/stop/metric", f"{metric} does not fit the task {spec.task}; use {fits}")
    if spec.mixup is not None and (spec.descent.variant == "stochastic" or spec.descent.batch_size == 1):
        raise InvalidInput.at(
            "/mixup", "rows of a gradient are mixed with each other, and here a gradient sees one row"
        )
    clipped, least = spec.descent.max_grad_norm, spec.stop.min_grad_norm
    if clipped is not None and least is not None and least >= clipped:
        raise InvalidInput.at(
            "/stop/min_grad_norm",
            f"every gradient is clipped to a norm of {clipped:g}, so the first epoch would be the last",
        )
    if spec.descent.sampling == "class_balanced" and spec.task not in ("binary", "multiclass"):
        raise InvalidInput.at("/descent/sampling", f"class_balanced needs classes; the task is {spec.task}")

"""From what a user asked for to a `TrainingSpec` with nothing left open. Resolving twice changes nothing."""

import difflib
from collections.abc import Iterable

from app.errors import Fault, InvalidInput, UnknownColumn
from app.specs.layers import BatchNorm, Dropout, EmbeddingLayer, Initializer, Layer, LayerNorm, Linear
from app.specs.losses import AutoLoss, BinaryCrossEntropyLoss, CrossEntropyLoss, LossSpec, PlainLoss
from app.specs.network import MAX_DEPTH, MAX_LAYERS, DenseNetwork, LayeredNetwork
from app.specs.table import Column, ColumnProfile, Signature, StoredData, Table, Task
from app.specs.training import TrainingSpec, ValidationFolds, ValidationFraction

DEFAULT_EPOCHS = 100
DEFAULT_BATCH_SIZE = 32
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
    data = _resolve_columns(spec.data, table, warnings)
    spec = spec.model_copy(update={"data": data.model_copy(update={"digest": table.digest})})
    task = _resolve_task(spec, table, warnings)
    spec = spec.model_copy(update={"task": task})
    _check_features(spec, table)
    loss = _resolve_loss(spec, task)
    spec = spec.model_copy(update={"loss": loss})
    num_outputs = count_outputs(spec, table)
    spec = spec.model_copy(update={"network": _resolve_network(spec, num_outputs)})
    spec = _resolve_whole_numbers(spec, table)
    return _resolve_descent(spec, table, warnings), warnings


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


# ---- columns


def _columns(table: Table, names: Iterable[str]) -> tuple[Column, ...]:
    found = [(name, table.column(name)) for name in names]
    return tuple(Column(name=name, kind=column.kind) for name, column in found if column)


def _resolve_columns(data: StoredData, table: Table, warnings: list[str]) -> StoredData:
    faults = [*_unknown("/data/target", data.targets, table), *_unknown("/data/features", data.features or (), table)]
    if data.sample_weight is not None:
        faults += _unknown("/data/sample_weight", [data.sample_weight], table)
    if faults:
        raise UnknownColumn(faults[0].detail, faults)
    _refuse_repeats(data)
    weight = table.column(data.sample_weight) if data.sample_weight else None
    if weight and weight.kind not in ("numeric", "boolean"):
        raise InvalidInput.at("/data/sample_weight", f"{weight.name!r} is {weight.kind}; a weight must be a number")
    reserved = {*data.targets, data.sample_weight}
    features = data.features
    if features is None:
        features = _usable(table, reserved, warnings)
    for index, name in enumerate(features):
        column = table.column(name)
        if name in reserved:
            raise InvalidInput.at(f"/data/features/{index}", f"{name!r} is also the target or the sample weight")
        if column and column.kind == "text":
            raise InvalidInput.at(
                f"/data/features/{index}", f"{name!r} is free text, which is no feature yet; leave it out{_why(column)}"
            )
    if not features:
        raise InvalidInput.at("/data/features", "no column is left to learn from")
    return data.model_copy(update={"features": tuple(features)})


def _refuse_repeats(data: StoredData) -> None:
    for pointer, names in [("/data/target", data.targets), ("/data/features", data.features or ())]:
        if len(set(names)) < len(names):
            index = next(index for index, name in enumerate(names) if name in names[:index])
            raise InvalidInput.at(f"{pointer}/{index}", f"{names[index]!r} is there twice")
    if data.sample_weight in data.targets:
        raise InvalidInput.at("/data/sample_weight", f"{data.sample_weight!r} is also the target")


def _usable(table: Table, reserved: set[str | None], warnings: list[str]) -> tuple[str, ...]:
    candidates = [column for column in table.columns if column.name not in reserved]
    for column in candidates:
        if column.kind == "text":
            num_unique = column.num_unique
            warnings.append(
                f"column {column.name!r} is free text ({num_unique} distinct values) and is left out{_why(column)}"
            )
        elif column.num_unique == 0:
            warnings.append(f"column {column.name!r} is empty and is left out")
        elif column.note:
            warnings.append(f"column {column.name!r} is taken as categories{_why(column)}")
    return tuple(column.name for column in candidates if column.kind != "text" and column.num_unique > 0)


def _why(column: ColumnProfile) -> str:
    return f": {column.note}" if column.note else ""


def _unknown(pointer: str, names: Iterable[str], table: Table) -> list[Fault]:
    known = [column.name for column in table.columns]
    return [Fault(pointer, unknown_column(name, known)) for name in names if table.column(name) is None]


def unknown_column(name: str, known: list[str]) -> str:
    """The sentence for a column that is not there, with the nearest spelling."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known[:20])}"
    return f"there is no column {name!r}; {hint}"


def _check_features(spec: TrainingSpec, table: Table) -> None:
    assert isinstance(spec.data, StoredData)
    for name in spec.data.features or ():
        column = table.column(name)
        if spec.features is None and column and column.kind not in ("numeric", "boolean"):
            raise InvalidInput.at(
                "/features", f"features null takes numbers as they are, but {name!r} is {column.kind}"
            )
        missing_refused = spec.features is None or spec.features.missing == "error"
        if missing_refused and column and column.num_missing:
            raise InvalidInput.at(
                "/features", f"{name!r} has {column.num_missing} missing values; impute them with features.missing"
            )


# ---- task and loss


def _resolve_task(spec: TrainingSpec, table: Table, warnings: list[str]) -> Task:
    assert isinstance(spec.data, StoredData)
    targets = [column for name in spec.data.targets if (column := table.column(name))]
    task = spec.task if spec.task != "auto" else _task_of(spec, targets, table.num_rows, warnings)
    for column in targets:
        if column.num_unique == 0:
            raise InvalidInput.at("/data/target", f"{column.name!r} is empty")
        if task == "regression" and column.kind not in ("numeric", "boolean"):
            raise InvalidInput.at(
                "/data/target", f"{column.name!r} is {column.kind}; regression needs numbers{_why(column)}"
            )
        if task == "multilabel" and not _is_flag(column):
            raise InvalidInput.at("/data/target", f"{column.name!r} must hold only 0/1 or true/false for multilabel")
    if task in ("binary", "multiclass"):
        _check_classes(task, targets)
    return task


def _check_classes(task: Task, targets: list[ColumnProfile]) -> None:
    if len(targets) != 1:
        raise InvalidInput.at("/data/target", f"{task} has one target; for several of 0/1 use multilabel")
    column = targets[0]
    if column.kind in ("datetime", "text"):
        raise InvalidInput.at(
            "/data/target",
            f"{column.name!r} is {column.kind} with {column.num_unique} values; no classes{_why(column)}",
        )
    if column.num_unique < 2 or (task == "binary" and column.num_unique != 2):
        wanted = "exactly 2" if task == "binary" else "at least 2"
        raise InvalidInput.at(
            "/data/target", f"{column.name!r} has {column.num_unique} distinct values; {task} needs {wanted}"
        )
    if column.num_unique > 10_000:
        raise InvalidInput.at(
            "/data/target",
            f"{column.name!r} has {column.num_unique} distinct values; is it a quantity? then use regression",
        )


def _is_flag(column: ColumnProfile) -> bool:
    return column.kind == "boolean" or (column.integral and column.min in (0, 1) and column.max in (0, 1))


def _task_of(spec: TrainingSpec, targets: list[ColumnProfile], num_rows: int, warnings: list[str]) -> Task:
    by_loss = TASKS_OF_LOSS.get(spec.loss.type)
    if len(targets) > 1:
        return "multilabel" if all(map(_is_flag, targets)) and by_loss != ("regression",) else "regression"
    column = targets[0]
    if by_loss == ("regression",):
        return "regression"
    if column.kind != "numeric" or by_loss or _looks_like_classes(column, num_rows):
        if column.kind == "numeric" and not by_loss and not _is_flag(column):
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
    return _is_flag(column) or (column.num_unique <= MAX_AUTO_CLASSES and enough)


def _resolve_loss(spec: TrainingSpec, task: Task) -> LossSpec:
    loss = spec.loss
    if isinstance(loss, AutoLoss):
        if task == "regression":
            if loss.class_weight is not None:
                raise InvalidInput.at("/loss/class_weight", "class weights need a classification task")
            return PlainLoss(type="mse")
        if task == "multiclass":
            return CrossEntropyLoss(class_weight=loss.class_weight)
        loss = BinaryCrossEntropyLoss(class_weight=loss.class_weight)
    if task not in TASKS_OF_LOSS[loss.type]:
        fits = " or ".join(name for name, tasks in TASKS_OF_LOSS.items() if task in tasks)
        raise InvalidInput.at("/loss/type", f"{loss.type} does not fit the task {task}; use {fits}")
    if task == "multilabel" and isinstance(loss, BinaryCrossEntropyLoss) and loss.class_weight is not None:
        raise InvalidInput.at("/loss/class_weight", "class weights need one target; multilabel has several")
    return loss


# ---- network, descent, stop


def _resolve_network(spec: TrainingSpec, num_outputs: int) -> LayeredNetwork:
    network = spec.network
    layers: list[Layer] = list(_dense_layers(network) if isinstance(network, DenseNetwork) else network.layers)
    if isinstance(network, DenseNetwork) or network.head:
        # an output of zero (the target's mean, or equal odds) is the best guess of a net that has learnt nothing yet
        init: Initializer | None = "zeros" if layers and "init" not in spec.model_fields_set else None
        layers.append(Linear(out_features=num_outputs, init=init))
    if sum(1 for _ in _all(layers)) > MAX_LAYERS:
        raise InvalidInput.at("/network/layers", f"a network may have {MAX_LAYERS} layers at most")
    if _depth(layers) > MAX_DEPTH:
        raise InvalidInput.at("/network/layers", f"layers may be inside of each other {MAX_DEPTH} deep at most")
    shape = None if isinstance(network, DenseNetwork) else network.input_shape
    return LayeredNetwork(layers=tuple(layers), head=False, input_shape=shape)


def _resolve_whole_numbers(spec: TrainingSpec, table: Table) -> TrainingSpec:
    """A network that begins with an embedding takes its inputs as they are: whole numbers that have a place in it."""
    assert isinstance(spec.network, LayeredNetwork)
    assert isinstance(spec.data, StoredData)
    first, features = next(iter(spec.network.layers), None), spec.features
    if not isinstance(first, EmbeddingLayer):
        return spec
    last = first.num_embeddings - 1
    for name in spec.data.features or ():
        column = table.column(name)
        assert column is not None
        if column.num_missing or not _fits(column, last):
            raise InvalidInput.at(
                "/network/layers/0",
                f"embedding takes whole numbers from 0 to {last}, and {name!r} {_holds(column)}",
            )
    if features is None or features.standardize is not True:
        return spec
    if "standardize" in features.model_fields_set:
        raise InvalidInput.at(
            "/features/standardize", "an embedding takes whole numbers as they are; use target, or leave it out"
        )
    return spec.model_copy(update={"features": features.model_copy(update={"standardize": "target"})})


def _fits(column: ColumnProfile, last: int) -> bool:
    if column.kind == "boolean":
        return last > 0
    return column.kind == "numeric" and column.integral and column.min >= 0 and column.max <= last


def _holds(column: ColumnProfile) -> str:
    if column.kind != "numeric":
        return f"is {column.kind}"
    if column.num_missing:
        return f"has {column.num_missing} missing values"
    return f"goes from {column.min:g} to {column.max:g}" + ("" if column.integral else ", not all of them whole")


def _dense_layers(network: DenseNetwork) -> Iterable[Layer]:
    norms: dict[str, Layer] = {"batch_norm": BatchNorm(), "layer_norm": LayerNorm()}
    for width in network.hidden_features:
        yield Linear(out_features=width)
        if network.normalization:
            yield norms[network.normalization]
        yield _activation(network.activation)
        if network.dropout:
            yield Dropout(p=network.dropout)


def _activation(name: str) -> Layer:
    return LayeredNetwork.model_validate({"layers": [{"type": name}]}).layers[0]


def _resolve_descent(spec: TrainingSpec, table: Table, warnings: list[str]) -> TrainingSpec:
    num_rows = table.num_rows
    if isinstance(spec.validation, ValidationFraction):
        num_validation = max(1, round(num_rows * spec.validation.fraction))
        if num_rows - num_validation < 1:
            warnings.append(f"{num_rows} row(s) are too few to hold some out; there is no validation")
            spec = spec.model_copy(update={"validation": None})
    if isinstance(spec.validation, ValidationFolds) and spec.validation.folds > num_rows:
        raise InvalidInput.at(
            "/validation/folds", f"{num_rows} rows can't be divided into {spec.validation.folds} folds"
        )
    _check_extras(spec)
    _check_batch_norm(spec, num_rows)
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
    if spec.schedule.type in ("cosine", "linear", "one_cycle") and stop.max_epochs is None and stop.max_steps is None:
        raise InvalidInput.at(
            "/schedule/type", f"{spec.schedule.type} needs to know its end: set stop.max_epochs or stop.max_steps"
        )
    return spec.model_copy(update={"descent": descent, "stop": stop})


METRICS_OF_TASK: dict[Task, tuple[str, ...]] = {
    "regression": ("mae", "rmse", "r2"),
    "binary": ("accuracy", "f1_macro", "roc_auc"),
    "multiclass": ("accuracy", "f1_macro"),
    "multilabel": ("accuracy", "exact_match", "f1_macro"),
}


def _check_extras(spec: TrainingSpec) -> None:
    assert spec.task != "auto"
    metric, layers = spec.stop.metric, getattr(spec.network, "layers", ())
    if metric != "loss":
        if spec.validation is None:
            raise InvalidInput.at(
                "/stop/metric", f"{metric} is measured on validation rows, and there is no validation"
            )
        if metric not in METRICS_OF_TASK[spec.task]:
            fits = ", ".join(("loss", *METRICS_OF_TASK[spec.task]))
            raise InvalidInput.at("/stop/metric", f"{metric} does not fit the task {spec.task}; use {fits}")
    if spec.descent.sampling == "class_balanced" and spec.task not in ("binary", "multiclass"):
        raise InvalidInput.at("/descent/sampling", f"class_balanced needs classes; the task is {spec.task}")
    if spec.mixup is not None and layers and layers[0].type == "embedding":
        raise InvalidInput.at("/mixup", "whole numbers for an embedding can't be mixed")


def _check_batch_norm(spec: TrainingSpec, num_rows: int) -> None:
    """A single row has no variance."""
    network, descent = spec.network, spec.descent
    assert isinstance(network, LayeredNetwork)
    if network.input_shape is not None or not any(layer.type == "batch_norm" for layer in _all(network.layers)):
        return
    one_row = descent.variant == "stochastic" or descent.batch_size == 1
    if one_row or num_rows < (2 if spec.validation is None else 3):
        raise InvalidInput.at(
            "/descent/batch_size" if one_row else "/data",
            "batch_norm needs at least 2 rows a gradient; use a larger batch_size, or layer_norm",
        )


def _all(layers: Iterable[Layer]) -> Iterable[Layer]:
    """Layers, and those inside them."""
    for layer in layers:
        yield layer
        for inner in _inside(layer):
            yield from _all(inner)


def _depth(layers: Iterable[Layer]) -> int:
    return max((1 + max(map(_depth, _inside(layer))) for layer in layers), default=0)


def _inside(layer: Layer) -> Iterable[Iterable[Layer]]:
    return (getattr(layer, "layers", ()), *getattr(layer, "branches", ()))

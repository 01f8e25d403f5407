"""From what a user says of a network to all of its layers, held against the rows that they are to see."""

from collections.abc import Iterable, Iterator

from app.errors import InvalidInput
from app.specs.layers import (
    BatchNorm,
    Dropout,
    EmbeddingLayer,
    Initializer,
    Layer,
    LayerNorm,
    Linear,
    Parallel,
    Residual,
)
from app.specs.network import MAX_DEPTH, MAX_LAYERS, DenseNetwork, LayeredNetwork
from app.specs.resolve_columns import missing_in
from app.specs.table import ColumnProfile, StoredData, Table
from app.specs.training import TrainingSpec, ValidationFolds, ValidationFraction


def resolve_network(spec: TrainingSpec, num_outputs: int) -> LayeredNetwork:
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


def resolve_whole_numbers(spec: TrainingSpec, table: Table) -> TrainingSpec:
    """A network that begins with an embedding takes its inputs as they are: whole numbers that have a place in it."""
    assert isinstance(spec.network, LayeredNetwork)
    embeddings = list(embeddings_of(spec.network.layers, "/network/layers"))
    if not embeddings:
        return spec
    for pointer, embedding, is_first in embeddings:
        if not is_first:
            raise InvalidInput.at(
                pointer,
                "embedding takes the rows' own whole numbers; before it, there may only be layers that move them",
            )
        check_places(spec, table, embedding, pointer)
    if spec.mixup is not None:
        raise InvalidInput.at("/mixup", "whole numbers for an embedding can't be mixed")
    features = spec.features
    if features is None or features.standardize is not True:
        return spec
    if "standardize" in features.model_fields_set:
        raise InvalidInput.at(
            "/features/standardize", "an embedding takes whole numbers as they are; use target, or leave it out"
        )
    return spec.model_copy(update={"features": features.model_copy(update={"standardize": "target"})})


def embeddings_of(
    layers: Iterable[Layer], pointer: str, is_first: bool = True
) -> Iterator[tuple[str, EmbeddingLayer, bool]]:
    """All of them, with where they are and whether the rows' own numbers come to them."""
    for index, layer in enumerate(layers):
        here = f"{pointer}/{index}"
        if isinstance(layer, EmbeddingLayer):
            yield here, layer, is_first
        if isinstance(layer, Residual):
            yield from embeddings_of(layer.layers, f"{here}/layers", is_first)
        if isinstance(layer, Parallel):
            for number, branch in enumerate(layer.branches):
                yield from embeddings_of(branch, f"{here}/branches/{number}", is_first)
        is_first = is_first and layer.type in ("identity", "flatten", "reshape", "transpose")


def check_places(spec: TrainingSpec, table: Table, embedding: EmbeddingLayer, pointer: str) -> None:
    assert isinstance(spec.data, StoredData)
    last = embedding.num_embeddings - 1
    for name in spec.data.features or ():
        column = table.column(name)
        assert column is not None
        if column.num_missing or not _fits(column, last):
            raise InvalidInput.at(
                pointer, f"embedding takes whole numbers from 0 to {last}, and {name!r} {_holds(column)}"
            )


def _fits(column: ColumnProfile, last: int) -> bool:
    if column.kind == "boolean":
        return last > 0
    return column.kind == "numeric" and column.integral and column.min >= 0 and column.max <= last


def _holds(column: ColumnProfile) -> str:
    if column.kind != "numeric":
        return f"is {column.kind}"
    if column.num_missing:
        return f"has {missing_in(column)}"
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


def is_laid_out(spec: TrainingSpec) -> bool:
    """Whether each number of a row has its place, so that none may come beside them."""
    return isinstance(spec.network, LayeredNetwork) and spec.network.input_shape is not None


def num_training_rows(spec: TrainingSpec, num_rows: int) -> int:
    """How many of a table's rows are learnt from: with folds, in the fit that holds out most."""
    if isinstance(spec.validation, ValidationFraction):
        return max(1, num_rows - max(1, round(num_rows * spec.validation.fraction)))
    if isinstance(spec.validation, ValidationFolds):
        return max(1, num_rows - -(-num_rows // spec.validation.folds))
    return num_rows


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

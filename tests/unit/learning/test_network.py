"""Networks from specs: every layer, shapes that fit or don't, and how weights start."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from app.errors import InvalidInput, ShapeMismatch
from app.learning.features import InputColumns
from app.learning.layers import ACTIVATIONS, LAYERS, build_sequence
from app.learning.network import INITIALIZERS, build_network, count_parameters, freeze, initialize
from app.specs.layers import LAYER_SPECS, ActivationName, Initializer, Layer, PlainActivation
from app.specs.network import InitSpec, LayeredNetwork

Shape = tuple[int, ...]

ELEMENTWISE = [*get_args(PlainActivation), "leaky_relu", "elu", "celu", "gelu", "softplus", "prelu", "dropout"]
EXAMPLES: list[tuple[dict[str, Any], Shape, Shape]] = [
    *[({"type": name}, (4,), (4,)) for name in ELEMENTWISE],
    ({"type": "linear", "out_features": 3}, (4,), (3,)),
    ({"type": "linear", "out_features": 3, "bias": False}, (5, 4), (5, 3)),
    ({"type": "batch_norm"}, (4,), (4,)),
    ({"type": "batch_norm"}, (4, 5), (4, 5)),
    ({"type": "batch_norm"}, (4, 5, 6), (4, 5, 6)),
    ({"type": "layer_norm"}, (4,), (4,)),
    ({"type": "rms_norm"}, (4,), (4,)),
    ({"type": "group_norm", "num_groups": 2}, (4, 5), (4, 5)),
    ({"type": "conv1d", "out_channels": 3}, (2, 7), (3, 7)),
    ({"type": "conv1d", "out_channels": 3, "padding": "valid", "stride": 2}, (2, 7), (3, 3)),
    ({"type": "conv2d", "out_channels": 3, "dilation": 2}, (2, 7, 8), (3, 7, 8)),
    ({"type": "conv2d", "out_channels": 4, "groups": 2, "padding": 1, "bias": False}, (2, 7, 8), (4, 7, 8)),
    ({"type": "max_pool1d"}, (2, 7), (2, 3)),
    ({"type": "max_pool2d", "stride": 1}, (2, 7, 8), (2, 6, 7)),
    ({"type": "avg_pool1d"}, (2, 7), (2, 3)),
    ({"type": "avg_pool2d", "padding": 1}, (2, 7, 8), (2, 4, 5)),
    ({"type": "global_avg_pool"}, (2, 7, 8), (2,)),
    ({"type": "global_max_pool"}, (2, 7), (2,)),
    ({"type": "mean_over_sequence"}, (7, 2), (2,)),
    ({"type": "max_over_sequence"}, (7, 2), (2,)),
    ({"type": "last_place"}, (7, 2), (2,)),
    ({"type": "flatten"}, (7, 2, 3), (42,)),
    ({"type": "reshape", "shape": [3, 2]}, (6,), (3, 2)),
    ({"type": "transpose"}, (7, 2), (2, 7)),
    ({"type": "embedding", "num_embeddings": 9, "embedding_features": 3}, (7,), (7, 3)),
    ({"type": "positional_embedding"}, (7, 2), (7, 2)),
    ({"type": "gru", "hidden_features": 3}, (7, 2), (3,)),
    ({"type": "gru", "hidden_features": 3, "num_layers": 2, "bidirectional": True, "dropout": 0.1}, (7, 2), (6,)),
    ({"type": "lstm", "hidden_features": 3}, (7, 2), (3,)),
    ({"type": "lstm", "hidden_features": 3, "bidirectional": True, "output": "sequence"}, (7, 2), (7, 6)),
    ({"type": "self_attention", "num_heads": 2}, (7, 4), (7, 4)),
    ({"type": "transformer_encoder", "num_heads": 2, "feedforward_features": 8, "num_layers": 2}, (7, 4), (7, 4)),
    ({"type": "residual", "layers": [{"type": "linear", "out_features": 4}]}, (4,), (4,)),
    ({"type": "residual", "layers": [{"type": "linear", "out_features": 3}]}, (4,), (3,)),
    ({"type": "residual", "layers": [{"type": "conv2d", "out_channels": 4}]}, (2, 7, 8), (4, 7, 8)),
    ({"type": "residual", "layers": [{"type": "conv2d", "out_channels": 2, "stride": 3, "padding": 1}]},
     (2, 7, 8), (2, 3, 3)),
    ({"type": "residual", "layers": [{"type": "conv1d", "out_channels": 4, "stride": 2, "padding": 1}]},
     (2, 7), (4, 4)),
    ({"type": "parallel", "branches": [[{"type": "linear", "out_features": 3}], []]}, (4,), (7,)),
    ({"type": "parallel", "merge": "sum", "branches": [[{"type": "tanh"}], [{"type": "relu"}]]}, (4,), (4,)),
]  # fmt: skip


def layer(fields: dict[str, Any]) -> Any:
    return TypeAdapter(Layer).validate_python(fields)


def build(*layers: dict[str, Any], shape: Shape = (4,)) -> nn.Sequential:
    """The layers with memory and initial weights."""
    with torch.device("meta"):
        module, _ = build_sequence([layer(fields) for fields in layers], shape, "/network/layers")
    initialize(module, InitSpec())
    return module


def network(
    *layers: dict[str, Any], num_inputs: int = 4, num_outputs: int = 1, input_shape: Shape | None = None
) -> nn.Sequential:
    spec = LayeredNetwork.model_validate({"layers": layers, "head": False, "input_shape": input_shape})
    return build_network(spec, InputColumns(num_inputs, [], "embedding"), num_inputs, num_outputs)


def rows(shape: Shape, num_rows: int = 5) -> Tensor:
    return torch.randn((num_rows, *shape), generator=torch.Generator().manual_seed(0))


@contextmanager
def uninitialized_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# ---- registries


def test_every_layer_has_a_builder_and_an_example() -> None:
    assert set(LAYERS) == set(LAYER_SPECS)
    types = {name for spec in LAYER_SPECS for name in get_args(spec.model_fields["type"].annotation)}
    assert {fields["type"] for fields, _, _ in EXAMPLES} == types


def test_every_activation_has_a_module() -> None:
    assert set(ACTIVATIONS) == set(get_args(PlainActivation))
    for name in get_args(ActivationName):
        layer({"type": name})


# ---- layers


@pytest.mark.parametrize(("fields", "shape", "out"), EXAMPLES)
def test_layers_give_the_shape_that_was_inferred(fields: dict[str, Any], shape: Shape, out: Shape) -> None:
    with torch.device("meta"):
        module, inferred = build_sequence([layer(fields)], shape, "")
    assert inferred == out
    initialize(module, InitSpec())
    assert module(rows(shape)).shape == (5, *out)


@pytest.mark.parametrize(("fields", "shape", "out"), EXAMPLES)
def test_gradients_reach_inputs_and_parameters(fields: dict[str, Any], shape: Shape, out: Shape) -> None:
    torch.manual_seed(0)
    module, x = build(fields, shape=shape), rows(shape).requires_grad_()
    weights = rows(out).abs()  # a plain sum has no gradient through a norm
    (module(x) * weights).sum().backward()
    leaves = dict(module.named_parameters()) | ({} if fields["type"] == "embedding" else {"x": x})
    for name, leaf in leaves.items():
        assert leaf.grad is not None, name
        assert leaf.grad.isfinite().all(), name
        assert leaf.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("fields", "shape", "out"), EXAMPLES)
def test_all_memory_is_initialized(fields: dict[str, Any], shape: Shape, out: Shape) -> None:
    with uninitialized_memory_is_nan():
        module = build(fields, shape=shape)
    for name, value in module.state_dict().items():
        assert value.isfinite().all(), name
        if not value.is_floating_point():
            assert (value == 0).all(), name  # how many batches a norm has seen


@pytest.mark.parametrize(
    ("fields", "function"),
    [
        ({"type": "leaky_relu", "negative_slope": 0.5}, lambda x: torch.where(x > 0, x, 0.5 * x)),
        ({"type": "elu", "alpha": 2.0}, lambda x: torch.where(x > 0, x, 2 * torch.expm1(x))),
        ({"type": "celu", "alpha": 2.0}, lambda x: torch.where(x > 0, x, 2 * torch.expm1(x / 2))),
        ({"type": "gelu"}, lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2),
        ({"type": "softplus", "beta": 2.0}, lambda x: torch.log1p(torch.exp(2 * x)) / 2),
        ({"type": "prelu", "init": 0.5}, lambda x: torch.where(x > 0, x, 0.5 * x)),
        ({"type": "silu"}, lambda x: x * torch.sigmoid(x)),
        ({"type": "identity"}, lambda x: x),
        ({"type": "dropout", "p": 0.0}, lambda x: x),
    ],
)
def test_parameters_of_activations_are_used(fields: dict[str, Any], function: Any) -> None:
    torch.testing.assert_close(build(fields)(rows((4,))), function(rows((4,))))


def test_dropout_acts_in_training_only() -> None:
    dropout = build({"type": "dropout", "p": 0.75})
    x = torch.ones(1000, 4)
    dropped = dropout(x)
    assert dropped.unique().tolist() == [0.0, 4.0]
    assert (dropped == 0).float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.equal(dropout.eval()(x), x)


def test_residual_adds_its_input() -> None:
    x = rows((4,))
    torch.testing.assert_close(build({"type": "residual", "layers": [{"type": "tanh"}]})(x), x + torch.tanh(x))


def test_residual_projects_where_the_width_changes() -> None:
    block = build({"type": "residual", "layers": [{"type": "linear", "out_features": 3}]})[0]
    x = rows((4,))
    torch.testing.assert_close(block(x), x @ block.shortcut.weight.T + block.body(x))
    assert block.shortcut.bias is None


def test_residual_projects_channels_with_the_stride_of_its_layers() -> None:
    """As the blocks of a ResNet do, of which each picture that is half as wide has twice the channels."""
    body = [{"type": "conv2d", "out_channels": 4, "stride": 2, "padding": 1}, {"type": "relu"}]
    block = build({"type": "residual", "layers": body}, shape=(2, 7, 8))[0]
    x = rows((2, 7, 8))
    seen = torch.einsum("bchw,oc->bohw", x[:, :, ::2, ::2], block.shortcut.weight[:, :, 0, 0])
    torch.testing.assert_close(block(x), seen + block.body(x))
    assert block.shortcut.bias is None


CONV = {"type": "conv1d", "out_channels": 4}
HALVING = {**CONV, "stride": 2, "padding": 1}


@pytest.mark.parametrize(
    ("body", "shape", "stride"),
    [
        ([{**CONV, "stride": 2, "padding": 1}, CONV], (2, 8), 2),
        ([HALVING, {"type": "relu"}, HALVING], (2, 9), 4),
        ([{"type": "residual", "layers": [HALVING]}, HALVING], (2, 9), 4),
        ([CONV, {"type": "max_pool1d"}], (2, 8), 2),
        ([CONV, {"type": "max_pool1d", "kernel_size": 3, "stride": 1, "padding": 1}], (2, 8), 1),
        ([HALVING], (2, 1), 2),
        ([{"type": "parallel", "branches": [[CONV], [{**CONV, "kernel_size": 5}]]}], (2, 8), 1),
        ([{"type": "parallel", "branches": [[HALVING], [HALVING]], "merge": "sum"}], (2, 8), 2),
    ],
)
def test_a_projection_has_all_strides_of_its_layers(body: list[dict[str, Any]], shape: Shape, stride: int) -> None:
    shortcut = build({"type": "residual", "layers": body}, shape=shape)[0].shortcut
    assert (shortcut.kernel_size, shortcut.stride) == ((1,), (stride,))


def test_where_the_last_axis_alone_changes_the_projection_is_linear() -> None:
    """Of places as well, as it is in versions that have been trained so."""
    assert build({"type": "residual", "layers": [HALVING]}, shape=(4, 8))[0].shortcut.weight.shape == (4, 8)


def test_residual_projects_the_features_of_a_sequence_that_is_convolved() -> None:
    body = [{"type": "transpose"}, CONV, {"type": "transpose"}]
    shortcut = build({"type": "residual", "layers": body}, shape=(7, 2))[0].shortcut
    assert shortcut.weight.shape == (4, 2)


@pytest.mark.parametrize(
    ("body", "shape", "hint"),
    [
        ([{**CONV, "kernel_size": 5, "padding": "valid"}], (2, 8), "strides of 1 in all make lengths of [8] [8]: use"),
        ([{**CONV, "padding": "valid", "stride": 2}], (2, 8), "strides of 2 in all make lengths of [8] [4]"),
        ([HALVING, {"type": "max_pool1d"}], (2, 9), "strides of 4 in all make lengths of [9] [3]"),
        ([{"type": "reshape", "shape": [4, 4]}], (2, 8), "no projection does"),
        ([{"type": "flatten"}, {"type": "reshape", "shape": [1, 4, 4]}], (2, 8), "no projection does"),
    ],
)  # fmt: skip
def test_what_shortens_otherwise_than_by_strides_has_no_projection(
    body: list[dict[str, Any]], shape: Shape, hint: str
) -> None:
    with pytest.raises(ShapeMismatch) as caught:
        build({"type": "residual", "layers": body}, shape=shape)
    assert hint in caught.value.detail


def test_parallel_puts_branches_side_by_side_or_adds_them() -> None:
    x, branches = rows((4,)), [[{"type": "tanh"}], [{"type": "relu"}]]
    outs = [torch.tanh(x), torch.relu(x)]
    torch.testing.assert_close(build({"type": "parallel", "branches": branches})(x), torch.cat(outs, 1))
    torch.testing.assert_close(build({"type": "parallel", "branches": branches, "merge": "sum"})(x), outs[0] + outs[1])


def test_the_last_output_of_a_sequence_is_its_last_state() -> None:
    for kind in ("gru", "lstm"):
        torch.manual_seed(0)
        whole = build({"type": kind, "hidden_features": 3, "output": "sequence"}, shape=(7, 2))(rows((7, 2)))
        torch.manual_seed(0)
        last = build({"type": kind, "hidden_features": 3}, shape=(7, 2))(rows((7, 2)))
        torch.testing.assert_close(whole[:, -1], last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_recurrent_layers_compute_in_half_the_bits(kind: str, dtype: torch.dtype) -> None:
    layer, x = (
        build({"type": kind, "hidden_features": 3, "num_layers": 2, "bidirectional": True}, shape=(7, 2)),
        rows((7, 2)),
    )
    with torch.autocast("cpu", dtype=dtype):
        found = layer(x)
    torch.testing.assert_close(found.float(), layer(x), rtol=0.05, atol=0.05)
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


# ---- shapes that don't fit


def sequence_of(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"type": "residual", "layers": layers}


@pytest.mark.parametrize(
    ("layers", "pointer", "words"),
    [
        ([{"type": "linear", "out_features": 2}], "/network/layers/0", "needs [1]"),
        ([], "/network/layers/0", "needs [1]"),
        ([{"type": "reshape", "shape": [2, 2]}], "/network/layers/0", "gives [2, 2] a row, and the target needs [1]"),
        ([{"type": "relu"}, {"type": "conv1d", "out_channels": 2}], "/network/layers/1", "input_shape"),
        ([{"type": "reshape", "shape": [2, 2]}, {"type": "conv2d", "out_channels": 2}],
         "/network/layers/1", "got [2, 2]; with one channel that is [1, 2, 2]"),
        ([{"type": "group_norm", "num_groups": 3}], "/network/layers/0", "3 groups"),
        ([{"type": "group_norm", "num_groups": 4}], "/network/layers/0", "no variance"),
        ([sequence_of({"type": "relu"}, {"type": "gru", "hidden_features": 2})], "/network/layers/0/layers/1", "gru"),
        ([{"type": "reshape", "shape": [2, 2]}, {"type": "gru", "hidden_features": 2}, {"type": "last_place"}],
         "/network/layers/2", '"output": "sequence"'),
        ([{"type": "reshape", "shape": [3]}], "/network/layers/0", "reshape takes 3 numbers a row for [3] and got 4"),
        ([{"type": "reshape", "shape": [2, 2]}, sequence_of({"type": "flatten"})], "/network/layers/1", "residual"),
        ([{"type": "parallel", "merge": "sum", "branches": [[{"type": "linear", "out_features": 3}], []]}],
         "/network/layers/0", "sum"),
        ([{"type": "parallel", "branches": [[], [{"type": "transpose"}]]}],
         "/network/layers/0/branches/1/0", "transpose"),
        ([{"type": "reshape", "shape": [2, 2]}, {"type": "self_attention", "num_heads": 3}],
         "/network/layers/1", "3 heads; use num_heads that divide them, or a linear before it"),
        ([{"type": "reshape", "shape": [2, 2]}, {"type": "linear", "out_features": 1}],
         "/network/layers/0", "the last layer gives [2, 2] a row, and the output layer takes a flat one"),
        ([{"type": "reshape", "shape": [2, 2]}, {"type": "relu"}],
         "/network/layers/1", "gives [2, 2] a row, and the target needs [1]; flatten or pool"),
        ([{"type": "reshape", "shape": [1, 2, 2]}, {"type": "max_pool2d", "kernel_size": 5}],
         "/network/layers/1", "max_pool2d has a window of 5 and got lengths of [2, 2]; "),
        ([{"type": "reshape", "shape": [2, 2]}, {"type": "avg_pool1d", "padding": 2}],
         "/network/layers/1", "a padding of 1 at most, half its kernel_size, and got 2"),
        ([{"type": "reshape", "shape": [1, 4]},
          {"type": "conv1d", "out_channels": 1, "padding": 1, "kernel_size": 4, "dilation": 2}],
         "/network/layers/1", "conv1d has a window of 7 and got lengths of [4] padded by 1 on each side"),
        ([{"type": "reshape", "shape": [1, 2, 2]},
          sequence_of({"type": "conv2d", "out_channels": 1, "padding": 1, "kernel_size": 1})],
         "/network/layers/1", "residual adds its input [1, 2, 2] to its layers' output [1, 4, 4]"),
        ([{"type": "reshape", "shape": [1, 1, 2, 2]}, {"type": "batch_norm"}], "/network/layers/1", "batch_norm"),
    ],
)  # fmt: skip
def test_what_does_not_fit_names_the_layer(layers: list[dict[str, Any]], pointer: str, words: str) -> None:
    with pytest.raises(ShapeMismatch) as caught:
        network(*layers)
    assert caught.value.faults[0].pointer == pointer
    assert words in caught.value.detail


GRU = {"type": "gru", "hidden_features": 2}
LAID_OUT, AS_SEQUENCE = (
    "; network.input_shape lays out a flat row",
    '; "output": "sequence" keeps the length in the gru',
)


@pytest.mark.parametrize(
    ("layers", "hint"),
    [
        ([GRU], LAID_OUT),
        ([{"type": "relu"}, {"type": "linear", "out_features": 4}, GRU], LAID_OUT),
        ([{"type": "reshape", "shape": [2, 2]}, {"type": "flatten"}, GRU], ""),
        ([{"type": "reshape", "shape": [2, 2]}, {"type": "global_avg_pool"}, {"type": "relu"}, GRU], ""),
        ([{"type": "reshape", "shape": [2, 2]}, GRU, {"type": "dropout"}, GRU], AS_SEQUENCE + " before"),
        ([{"type": "reshape", "shape": [2, 2]}, GRU, {"type": "conv2d", "out_channels": 2}], ""),
        ([{"type": "reshape", "shape": [2, 2]}, GRU, sequence_of(GRU)], ""),
    ],
)
def test_a_row_that_is_flat_is_told_what_would_help(layers: list[dict[str, Any]], hint: str) -> None:
    with pytest.raises(ShapeMismatch) as caught:
        network(*layers)
    assert caught.value.detail.partition("]")[2].partition("]")[2] == hint


def test_an_input_shape_that_the_output_layer_does_not_take_is_to_blame_itself() -> None:
    with pytest.raises(ShapeMismatch, match=r"a row is laid out as \[2, 2\], and the output layer takes") as caught:
        network({"type": "linear", "out_features": 1}, input_shape=(2, 2))
    assert caught.value.faults[0].pointer == "/network/input_shape"


def test_an_input_shape_must_hold_a_rows_numbers() -> None:
    flat = [{"type": "flatten"}, {"type": "linear", "out_features": 1}]
    assert network(*flat, input_shape=(2, 2))(torch.empty(3, 4, device="meta")).shape == (3, 1)
    with pytest.raises(ShapeMismatch) as caught:
        network(*flat, input_shape=(2, 3))
    assert caught.value.faults[0].pointer == "/network/input_shape"


def test_parameters_are_counted_without_memory() -> None:
    wide = {"type": "linear", "out_features": 1_000_000}
    found = network(wide, wide, {"type": "linear", "out_features": 1})
    assert count_parameters(found) == 4_000_000 + 1_000_000 + 10**12 + 10**6 + 10**6 + 1
    assert all(parameter.is_meta for parameter in found.parameters())


# ---- how weights start

NUM_IN, NUM_OUT = 400, 300
STATISTICS: dict[str, tuple[float, float]] = {  # deviation, and the largest that may be seen
    "kaiming_uniform": (math.sqrt(2 / NUM_IN), math.sqrt(6 / NUM_IN)),
    "kaiming_normal": (math.sqrt(2 / NUM_IN), math.inf),
    "xavier_uniform": (math.sqrt(2 / (NUM_IN + NUM_OUT)), math.sqrt(6 / (NUM_IN + NUM_OUT))),
    "xavier_normal": (math.sqrt(2 / (NUM_IN + NUM_OUT)), math.inf),
    "lecun_normal": (math.sqrt(1 / NUM_IN), math.inf),
    "orthogonal": (math.sqrt(1 / NUM_IN), math.inf),
    "normal": (0.3, math.inf),
    "truncated_normal": (0.3 * 0.8796, 0.6),
    "uniform": (0.3 / math.sqrt(3), 0.3),
    "zeros": (0.0, 0.0),
    "ones": (0.0, 1.0),
}


def weight_started(init: InitSpec, own: str | None = None) -> nn.Linear:
    torch.manual_seed(0)
    found = network({"type": "linear", "out_features": NUM_OUT, "init": own}, num_inputs=NUM_IN, num_outputs=NUM_OUT)
    initialize(found, init)
    linear = found.get_submodule("layers.0")
    assert isinstance(linear, nn.Linear)
    return linear


def test_every_initializer_has_a_row() -> None:
    assert set(INITIALIZERS) == set(get_args(Initializer)) == set(STATISTICS)


@pytest.mark.parametrize("name", STATISTICS)
def test_weights_have_the_spread_of_their_initializer(name: str) -> None:
    std, most = STATISTICS[name]
    weight = weight_started(InitSpec.model_validate({"weight": name, "std": 0.3})).weight.detach()
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert weight.mean().item() == pytest.approx(1.0 if name == "ones" else 0.0, abs=0.01)
    assert weight.abs().max().item() <= most * (1 + 1e-6)
    if math.isfinite(most):
        assert weight.abs().max().item() >= 0.99 * most


def test_orthogonal_rows_are_orthogonal() -> None:
    weight = weight_started(InitSpec(weight="orthogonal")).weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(NUM_OUT), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("bias", "std"), [("zeros", 0.0), ("ones", 0.0), ("normal", 0.3), ("uniform", 0.3 / 3**0.5)])
def test_biases_start_as_asked(bias: str, std: float) -> None:
    found = weight_started(InitSpec.model_validate({"bias": bias, "std": 0.3})).bias.detach()
    assert found.std().item() == pytest.approx(std, rel=0.1)
    assert found.mean().item() == pytest.approx(1.0 if bias == "ones" else 0.0, abs=0.05)


def test_a_layers_own_init_comes_first() -> None:
    assert weight_started(InitSpec(weight="normal"), own="zeros").weight.abs().sum() == 0


def test_the_same_seed_gives_the_same_weights() -> None:
    assert torch.equal(weight_started(InitSpec()).weight, weight_started(InitSpec()).weight)


# ---- frozen parts


def frozen(parts: list[str]) -> list[str]:
    hidden = {"type": "linear", "out_features": 3}
    found = network({"type": "residual", "layers": [hidden]}, {"type": "linear", "out_features": 1})
    freeze(found, parts)
    return [name for name, value in found.named_parameters() if not value.requires_grad]


def test_parts_of_a_network_can_be_frozen() -> None:
    assert frozen([]) == []
    assert frozen(["layers.1"]) == ["layers.1.weight", "layers.1.bias"]
    assert frozen(["layers.1.bias", "layers.0.shortcut"]) == ["layers.0.shortcut.weight", "layers.1.bias"]


@pytest.mark.parametrize(
    ("parts", "pointer", "words"),
    [
        (["layers.1", "layers.7"], "/freeze/1", "layers.0.shortcut"),
        (["layer"], "/freeze/0", "layers.1"),
        (["layers"], "/freeze", "nothing is left"),
    ],
)
def test_what_can_not_be_frozen_is_refused(parts: list[str], pointer: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        frozen(parts)
    assert caught.value.faults[0].pointer == pointer
    assert words in caught.value.detail

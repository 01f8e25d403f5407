"""The network of a spec: built on the meta device, where shapes are inferred and parameters counted without memory,
then given memory and initial weights. Shape suffixes: B batch, F features.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from app.errors import InvalidInput, ShapeMismatch
from app.learning.layers import build_sequence, shape_after
from app.learning.modules import BATCH_NORMS, Shape, reshape
from app.specs import network as specs
from app.specs.layers import Linear

FROZEN = "frozen"  # an attribute of batch norms


def build_network(spec: specs.LayeredNetwork, front: nn.Module, num_inputs: int, num_outputs: int) -> nn.Sequential:
    """The network on the meta device, of the parts `input`, `shape` and `layers`.

    `front` takes `[B, num_inputs]`, the layers give `[B, num_outputs]`.

    Raises:
        ShapeMismatch: naming the layer that does not fit.
    """
    assert not spec.head, "the spec is resolved"
    modules: OrderedDict[str, nn.Module] = OrderedDict(input=front.to("meta"))
    with torch.device("meta"):
        shape = shape_after(front, (num_inputs,), "the input", "/network")
        if spec.input_shape is not None:
            if math.prod(spec.input_shape) != math.prod(shape):
                wanted = f"{list(spec.input_shape)} holds {math.prod(spec.input_shape)} numbers"
                raise ShapeMismatch.at("/network/input_shape", f"{wanted}, and a row has {math.prod(shape)}")
            modules["shape"] = reshape(spec.input_shape)
            shape = spec.input_shape
        modules["layers"], out = build_sequence(spec.layers, shape, "/network/layers", is_row=True)
    _check_output(spec, modules["layers"], out, num_outputs)
    return nn.Sequential(modules)


def _check_output(spec: specs.LayeredNetwork, layers: nn.Module, out: Shape, num_outputs: int) -> None:
    """Raise ShapeMismatch unless a row ends as the target needs it. The output layer, which was perhaps added, is not
    to blame where it is given more than a flat row: what is before it is.
    """
    if out == (num_outputs,):
        return
    num_layers = len(spec.layers)
    if len(out) > 1 and spec.layers and isinstance(spec.layers[-1], Linear):
        given = [*out[:-1], layers.get_submodule(str(num_layers - 1)).in_features]
        at, said = f"layers/{num_layers - 2}", f"the last layer gives {given} a row"
        if num_layers == 1:
            at, said = "input_shape", f"a row is laid out as {given}"
        raise ShapeMismatch.at(
            f"/network/{at}", f"{said}, and the output layer takes a flat one: flatten or pool before it"
        )
    hint = "; flatten or pool before the output layer" if len(out) > 1 else ""
    raise ShapeMismatch.at(
        f"/network/layers/{max(0, num_layers - 1)}",
        f"the last layer gives {list(out)} a row, and the target needs [{num_outputs}]{hint}",
    )


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def least_rows(network: nn.Module, num_inputs: int) -> int:
    """How many rows a gradient needs, of a network on the meta device: batch norm has no variance of one number."""
    if not any(isinstance(module, BATCH_NORMS) for module in network.modules()):
        return 1
    try:
        with torch.no_grad():
            network(torch.empty(1, num_inputs, device="meta"))
    except ValueError:
        return 2
    return 1


def freeze(network: nn.Module, parts: Sequence[str]) -> None:
    """Let the parameters of these parts (`layers.0`, `input`) keep their values, and batch norms their statistics.

    Raises:
        InvalidInput: a part that has no parameters, or all of them frozen; a network without any.
    """
    names = [name for name, _ in network.named_parameters()]
    if not names:
        raise InvalidInput.at("/network", "no layer of the network has weights; nothing is there to train")
    for index, part in enumerate(parts):
        found = [name for name in names if name == part or name.startswith(part + ".")]
        if not found:
            known = sorted({name.rpartition(".")[0] for name in names})
            raise InvalidInput.at(
                f"/freeze/{index}", f"no part {part!r} has weights; those that have: {', '.join(known[:50])}"
            )
        for name in found:
            network.get_parameter(name).requires_grad_(False)
        for name, module in network.named_modules():
            if isinstance(module, BATCH_NORMS) and (name == part or name.startswith(part + ".")):
                vars(module)[FROZEN] = True
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InvalidInput.at("/freeze", "all weights are frozen; nothing is left to train")


def set_to_learn(network: nn.Module) -> None:
    """Training mode, but for batch norms that are frozen: they go by the statistics that they have, and keep them."""
    network.train()
    for module in network.modules():
        if FROZEN in vars(module):
            module.eval()


# ---- initial weights

Fill = Callable[[Tensor, specs.InitSpec], object]


def _lecun_normal(weight: Tensor, _spec: specs.InitSpec) -> object:
    return nn.init.normal_(weight, std=1 / math.sqrt(weight[0].numel()))


INITIALIZERS: dict[str, Fill] = {
    "kaiming_uniform": lambda weight, spec: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "kaiming_normal": lambda weight, spec: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "xavier_uniform": lambda weight, spec: nn.init.xavier_uniform_(weight),
    "xavier_normal": lambda weight, spec: nn.init.xavier_normal_(weight),
    "lecun_normal": _lecun_normal,
    "orthogonal": lambda weight, spec: nn.init.orthogonal_(weight),
    "normal": lambda weight, spec: nn.init.normal_(weight, std=spec.std),
    "truncated_normal": lambda weight, spec: nn.init.trunc_normal_(
        weight, std=spec.std, a=-2 * spec.std, b=2 * spec.std
    ),
    "uniform": lambda weight, spec: nn.init.uniform_(weight, -spec.std, spec.std),
    "zeros": lambda weight, spec: nn.init.zeros_(weight),
    "ones": lambda weight, spec: nn.init.ones_(weight),
}


def initialize(network: nn.Module, init: specs.InitSpec) -> None:
    """Give a meta network memory on the CPU, and its initial weights from torch's global generator of the CPU.

    Matrices are drawn by `init.weight`, biases by `init.bias`; every other module resets itself, as norms and
    embeddings do.
    """
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            INITIALIZERS[getattr(module, "init", None) or init.weight](module.weight, init)
            if module.bias is not None:
                INITIALIZERS[init.bias](module.bias, init)
        elif reset := getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None):
            reset()

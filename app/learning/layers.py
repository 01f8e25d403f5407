"""From a layer's spec to its module. A builder gets the shape of a row and says what it would need instead.

Shape suffixes: B batch, L length, D features of a place.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from app.errors import InvalidInput, ShapeMismatch
from app.learning.modules import (
    Function,
    Linear,
    Parallel,
    PositionalEmbedding,
    Recurrent,
    Residual,
    SelfAttention,
    Shape,
    WholeNumbers,
    reshape,
)
from app.specs import layers as specs
from app.specs.base import Spec

MAX_NUMBERS_A_ROW = 2**28  # a gibibyte in float32

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "log_sigmoid": nn.LogSigmoid,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "hardtanh": nn.Hardtanh,
    "softsign": nn.Softsign,
    "tanhshrink": nn.Tanhshrink,
    "identity": nn.Identity,
}
PROJECTIONS: dict[int, Callable[..., nn.Module]] = {2: nn.Conv1d, 3: nn.Conv2d}  # by axes of a row
KEEPS_LENGTH = ', and "output": "sequence" keeps the length in the gru or lstm before'


def need(shape: Shape, num_axes: int, layer: str, wanted: str, pointer: str) -> None:
    """Raise ShapeMismatch, naming layer, what it got and what it wants, unless a row has so many axes."""
    if len(shape) != num_axes:
        one_channel = f"; with one channel that is {[1, *shape]}" if (len(shape), num_axes) == (2, 3) else ""
        flat = "; network.input_shape lays out a flat row" + (KEEPS_LENGTH if num_axes == 2 else "")
        hint = flat if len(shape) == 1 else one_channel
        raise ShapeMismatch.at(pointer, f"{layer} takes {wanted} a row and got {list(shape)}{hint}")


def _need_window(spec: specs.Convolution | specs.Pooling, lengths: Shape, window: int, pointer: str) -> None:
    """Raise ShapeMismatch unless the window is somewhere within the padded lengths of a row."""
    padding = spec.padding if isinstance(spec.padding, int) else 0
    if spec.padding != "same" and min(lengths) + 2 * padding < window:
        padded = f" padded by {padding} on each side" if padding else ""
        raise ShapeMismatch.at(
            pointer,
            f"{spec.type} has a window of {window} and got lengths of {list(lengths)}{padded}; use a smaller "
            "kernel_size, or fewer layers that shorten before it",
        )


def _batch_norm(spec: specs.BatchNorm, shape: Shape, pointer: str) -> nn.Module:
    norms = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d}
    if len(shape) not in norms:
        raise ShapeMismatch.at(pointer, f"batch_norm takes one to three axes a row and got {list(shape)}")
    return norms[len(shape)](shape[0], eps=spec.eps, momentum=spec.momentum, affine=spec.affine)


def _group_norm(spec: specs.GroupNorm, shape: Shape, pointer: str) -> nn.Module:
    if shape[0] % spec.num_groups:
        raise ShapeMismatch.at(pointer, f"group_norm can't divide {shape[0]} channels into {spec.num_groups} groups")
    if math.prod(shape) == spec.num_groups:
        raise ShapeMismatch.at(pointer, f"group_norm has no variance of {spec.num_groups} groups of one number each")
    return nn.GroupNorm(spec.num_groups, shape[0], spec.eps, spec.affine)


def _convolution(spec: specs.Convolution, shape: Shape, pointer: str) -> nn.Module:
    one = spec.type == "conv1d"
    need(shape, 2 if one else 3, spec.type, "[channels, length]" if one else "[channels, height, width]", pointer)
    if shape[0] % spec.groups or spec.out_channels % spec.groups:
        raise ShapeMismatch.at(pointer, f"{spec.groups} groups must divide {shape[0]} and {spec.out_channels} channels")
    _need_window(spec, shape[1:], spec.dilation * (spec.kernel_size - 1) + 1, pointer)
    return (nn.Conv1d if one else nn.Conv2d)(
        shape[0],
        spec.out_channels,
        spec.kernel_size,
        stride=spec.stride,
        padding=spec.padding,
        dilation=spec.dilation,
        groups=spec.groups,
        bias=spec.bias,
    )


POOLS: dict[str, Callable[..., nn.Module]] = {
    "max_pool1d": nn.MaxPool1d,
    "max_pool2d": nn.MaxPool2d,
    "avg_pool1d": nn.AvgPool1d,
    "avg_pool2d": nn.AvgPool2d,
}


def _pooling(spec: specs.Pooling, shape: Shape, pointer: str) -> nn.Module:
    one = spec.type.endswith("1d")
    need(shape, 2 if one else 3, spec.type, "[channels, length]" if one else "[channels, height, width]", pointer)
    if spec.padding > spec.kernel_size // 2:
        most = f"a padding of {spec.kernel_size // 2} at most, half its kernel_size,"
        raise ShapeMismatch.at(pointer, f"{spec.type} takes {most} and got {spec.padding}")
    _need_window(spec, shape[1:], spec.kernel_size, pointer)
    return POOLS[spec.type](spec.kernel_size, spec.stride, spec.padding)


def _global_pooling(spec: specs.GlobalPooling, shape: Shape, pointer: str) -> nn.Module:
    if len(shape) < 2:
        raise ShapeMismatch.at(pointer, f"{spec.type} takes [channels, …] a row and got {list(shape)}")
    axes = tuple(range(2, len(shape) + 1))
    pool = torch.mean if spec.type == "global_avg_pool" else torch.amax
    return Function(lambda x: pool(x, dim=axes), spec.type)


SEQUENCE_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean_over_sequence": lambda x: x.mean(1),
    "max_over_sequence": lambda x: x.amax(1),
    "last_place": lambda x: x[:, -1],
}


def _reshape(spec: specs.Reshape, shape: Shape, pointer: str) -> nn.Module:
    if math.prod(spec.shape) != math.prod(shape):
        wanted = f"{math.prod(spec.shape)} numbers a row for {list(spec.shape)}"
        raise ShapeMismatch.at(pointer, f"reshape takes {wanted} and got {math.prod(shape)}, as {list(shape)}")
    return reshape(spec.shape)


def _sequence_pooling(spec: specs.SequencePooling, shape: Shape, pointer: str) -> nn.Module:
    need(shape, 2, spec.type, "[length, features]", pointer)
    return Function(SEQUENCE_POOLS[spec.type], spec.type)


def _transpose(_spec: specs.Transpose, shape: Shape, pointer: str) -> nn.Module:
    need(shape, 2, "transpose", "two axes", pointer)
    return Function(lambda x: x.transpose(1, 2), "transpose")


def _embedding(spec: specs.EmbeddingLayer, shape: Shape, pointer: str) -> nn.Module:
    need(shape, 1, "embedding", "[length] whole numbers", pointer)
    return WholeNumbers(spec.num_embeddings, spec.embedding_features)


def _positional(_spec: specs.PositionalEmbedding, shape: Shape, pointer: str) -> nn.Module:
    need(shape, 2, "positional_embedding", "[length, features]", pointer)
    return PositionalEmbedding(shape)


def _recurrent(spec: specs.Recurrent, shape: Shape, pointer: str) -> nn.Module:
    need(shape, 2, spec.type, "[length, features]", pointer)
    rnn = (nn.GRU if spec.type == "gru" else nn.LSTM)(
        shape[1],
        spec.hidden_features,
        spec.num_layers,
        batch_first=True,
        dropout=spec.dropout if spec.num_layers > 1 else 0.0,  # between layers; one layer has no between
        bidirectional=spec.bidirectional,
    )
    return Recurrent(rnn, spec.output)


def _check_heads(layer: str, num_heads: int, shape: Shape, pointer: str) -> None:
    need(shape, 2, layer, "[length, features]", pointer)
    if shape[1] % num_heads:
        raise ShapeMismatch.at(pointer, f"{layer} can't divide {shape[1]} features among {num_heads} heads")


def _self_attention(spec: specs.SelfAttention, shape: Shape, pointer: str) -> nn.Module:
    _check_heads("self_attention", spec.num_heads, shape, pointer)
    return SelfAttention(shape[1], spec.num_heads, spec.dropout)


def _transformer(spec: specs.TransformerEncoder, shape: Shape, pointer: str) -> nn.Module:
    _check_heads("transformer_encoder", spec.num_heads, shape, pointer)
    blocks = [
        nn.TransformerEncoderLayer(
            shape[1],
            spec.num_heads,
            spec.feedforward_features,
            spec.dropout,
            spec.activation,
            batch_first=True,
            norm_first=True,
        )
        for _ in range(spec.num_layers)
    ]
    return nn.Sequential(*blocks)


def _residual(spec: specs.Residual, shape: Shape, pointer: str) -> nn.Module:
    body, out = build_sequence(spec.layers, shape, f"{pointer}/layers")
    shortcut = _shortcut(shape, out)
    if shortcut is None:
        raise ShapeMismatch.at(
            pointer, f"residual adds its input {list(shape)} to its layers' output {list(out)}, and no projection does"
        )
    return Residual(body, shortcut)


def _shortcut(shape: Shape, out: Shape) -> nn.Module | None:
    """From one shape of a row to another in the simplest way: as it is, along the last axis, or by channels and
    strides; None where none of them leads there.
    """
    if out == shape:
        return nn.Identity()
    if out[:-1] == shape[:-1]:
        return nn.Linear(shape[-1], out[-1], bias=False)
    if len(out) != len(shape) or len(shape) not in PROJECTIONS:
        return None
    stride = max(-(-length // left) for length, left in zip(shape[1:], out[1:], strict=True))
    if out[1:] != tuple(-(-length // stride) for length in shape[1:]):
        return None
    return PROJECTIONS[len(shape)](shape[0], out[0], kernel_size=1, stride=stride, bias=False)


def _parallel(spec: specs.Parallel, shape: Shape, pointer: str) -> nn.Module:
    built = [build_sequence(branch, shape, f"{pointer}/branches/{index}") for index, branch in enumerate(spec.branches)]
    outs = [out for _, out in built]
    compared = {out[1:] if spec.merge == "concatenate" else out for out in outs}
    if len(compared) > 1:
        raise ShapeMismatch.at(
            pointer, f"the branches give {', '.join(str(list(out)) for out in outs)}: no {spec.merge}"
        )
    return Parallel([module for module, _ in built], spec.merge)


LAYERS: dict[type[Spec], Callable[[Any, Shape, str], nn.Module]] = {
    specs.Linear: lambda spec, shape, pointer: Linear(shape[-1], spec.out_features, spec.bias, spec.init),
    specs.Activation: lambda spec, shape, pointer: ACTIVATIONS[spec.type](),
    specs.LeakyReLU: lambda spec, shape, pointer: nn.LeakyReLU(spec.negative_slope),
    specs.ELU: lambda spec, shape, pointer: (nn.ELU if spec.type == "elu" else nn.CELU)(spec.alpha),
    specs.GELU: lambda spec, shape, pointer: nn.GELU(spec.approximate),
    specs.Softplus: lambda spec, shape, pointer: nn.Softplus(spec.beta),
    specs.PReLU: lambda spec, shape, pointer: nn.PReLU(init=spec.init),
    specs.Dropout: lambda spec, shape, pointer: nn.Dropout(spec.p),
    specs.BatchNorm: _batch_norm,
    specs.LayerNorm: lambda spec, shape, pointer: nn.LayerNorm(shape[-1], spec.eps, spec.affine),
    specs.RMSNorm: lambda spec, shape, pointer: nn.RMSNorm(shape[-1], spec.eps, spec.affine),
    specs.GroupNorm: _group_norm,
    specs.Convolution: _convolution,
    specs.Pooling: _pooling,
    specs.GlobalPooling: _global_pooling,
    specs.SequencePooling: _sequence_pooling,
    specs.Flatten: lambda spec, shape, pointer: nn.Flatten(),
    specs.Reshape: _reshape,
    specs.Transpose: _transpose,
    specs.EmbeddingLayer: _embedding,
    specs.PositionalEmbedding: _positional,
    specs.Recurrent: _recurrent,
    specs.SelfAttention: _self_attention,
    specs.TransformerEncoder: _transformer,
    specs.Residual: _residual,
    specs.Parallel: _parallel,
}


def build_sequence(layers: Sequence[Any], shape: Shape, pointer: str) -> tuple[nn.Sequential, Shape]:
    """The layers' modules, and the shape of a row after them. Called under the meta device.

    Raises:
        ShapeMismatch: naming the first layer that does not fit.
    """
    modules = []
    for index, layer in enumerate(layers):
        here = f"{pointer}/{index}"
        module = LAYERS[type(layer)](layer, shape, here)
        shape = shape_after(module, shape, layer.type, here)
        modules.append(module)
    return nn.Sequential(*modules), shape


def shape_after(module: nn.Module, shape: Shape, name: str, pointer: str) -> Shape:
    """The shape of a row after a module, by a forward pass on the meta device.

    Raises:
        ShapeMismatch
        InvalidInput: it is more than any machine should be asked to hold, which few parameters can bring about.
    """
    try:
        with torch.no_grad():
            out: Tensor = module(torch.empty((2, *shape), device="meta"))
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ShapeMismatch.at(pointer, f"{name} does not fit an input of {list(shape)} a row: {reason}") from error
    if (count := out[0].numel()) > MAX_NUMBERS_A_ROW:
        raise InvalidInput.at(pointer, f"{name} gives {count:,} numbers a row; a layer may give {MAX_NUMBERS_A_ROW:,}")
    return tuple(out.shape[1:])

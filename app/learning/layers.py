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
from app.specs.axes import KEEPING, PICTURE, TAKES, has_channels, written
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


def _check_axes(layers: Sequence[Any], index: int, shape: Shape, is_row: bool, pointer: str) -> None:
    """Raise ShapeMismatch, naming layer, what it got and what it wants, unless a row has as many axes as it takes.

    `is_row`: the first of the layers sees a row as it came.
    """
    takes = TAKES.get(layers[index].type)
    if takes is None or len(shape) == len(takes):
        return
    hint = f"; with one channel that is {[1, *shape]}" if (len(shape), takes) == (2, PICTURE) else ""
    if len(shape) == 1:
        hint = _hint_of_flat(layers[:index], is_row, len(takes))
    raise ShapeMismatch.at(pointer, f"{layers[index].type} takes {written(takes)} a row and got {list(shape)}{hint}")


def _hint_of_flat(before: Sequence[Any], is_row: bool, num_axes: int) -> str:
    """What would give a row the axes that it lacks, by the layer that made it flat, if there is one."""
    made = next((layer for layer in reversed(before) if not isinstance(layer, (*KEEPING, specs.Linear))), None)
    if made is None:
        return "; network.input_shape lays out a flat row" if is_row else ""
    keeps = isinstance(made, specs.Recurrent) and num_axes == 2
    return f'; "output": "sequence" keeps the length in the {made.type} before' if keeps else ""


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
    if shape[0] % spec.groups or spec.out_channels % spec.groups:
        raise ShapeMismatch.at(pointer, f"{spec.groups} groups must divide {shape[0]} and {spec.out_channels} channels")
    _need_window(spec, shape[1:], spec.dilation * (spec.kernel_size - 1) + 1, pointer)
    return (nn.Conv1d if spec.type == "conv1d" else nn.Conv2d)(
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


def _recurrent(spec: specs.Recurrent, shape: Shape, _pointer: str) -> nn.Module:
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
    if shape[1] % num_heads:
        raise ShapeMismatch.at(
            pointer,
            f"{layer} can't divide {shape[1]} features among {num_heads} heads; use num_heads that divide them, or a "
            "linear before it",
        )


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
    return Residual(body, _shortcut(spec, shape, out, pointer))


def _shortcut(spec: specs.Residual, shape: Shape, out: Shape, pointer: str) -> nn.Module:
    """From one shape of a row to another in the simplest way: as it is, along the last axis, or by channels and
    strides. Raises ShapeMismatch where none of them leads there.
    """
    if out == shape:
        return nn.Identity()
    is_convolved, stride = has_channels(spec.layers), _stride(spec.layers)
    if out[:-1] == shape[:-1]:
        return nn.Linear(shape[-1], out[-1], bias=False)
    lengths = tuple(-(-length // stride) for length in shape[1:])
    if len(shape) in PROJECTIONS and out[1:] == lengths:
        return PROJECTIONS[len(shape)](shape[0], out[0], kernel_size=1, stride=stride, bias=False)
    hint = (
        f"; strides of {stride} in all make lengths of {list(shape[1:])} {list(lengths)}: use padding same or, with a "
        "stride, (kernel_size - 1) // 2 of a kernel_size that is odd"
    )
    raise ShapeMismatch.at(
        pointer,
        f"residual adds its input {list(shape)} to its layers' output {list(out)}, and no projection does"
        + (hint if is_convolved and len(out) == len(shape) else ""),
    )


def _stride(layers: Sequence[Any]) -> int:
    """By how much layers shorten lengths on purpose: the product of the strides of convolutions and poolings, and of
    branches that have all the same.
    """
    strides = 1
    for layer in layers:
        if isinstance(layer, (specs.Convolution, specs.Pooling)):
            strides *= layer.stride or layer.kernel_size
        elif isinstance(layer, specs.Residual):
            strides *= _stride(layer.layers)
        elif isinstance(layer, specs.Parallel):
            of_branches = set(map(_stride, layer.branches))
            strides *= of_branches.pop() if len(of_branches) == 1 else 1
    return strides


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
    specs.SequencePooling: lambda spec, shape, pointer: Function(SEQUENCE_POOLS[spec.type], spec.type),
    specs.Flatten: lambda spec, shape, pointer: nn.Flatten(),
    specs.Reshape: _reshape,
    specs.Transpose: lambda spec, shape, pointer: Function(lambda x: x.transpose(1, 2), "transpose"),
    specs.EmbeddingLayer: lambda spec, shape, pointer: WholeNumbers(spec.num_embeddings, spec.embedding_features),
    specs.PositionalEmbedding: lambda spec, shape, pointer: PositionalEmbedding(shape),
    specs.Recurrent: _recurrent,
    specs.SelfAttention: _self_attention,
    specs.TransformerEncoder: _transformer,
    specs.Residual: _residual,
    specs.Parallel: _parallel,
}


def build_sequence(
    layers: Sequence[Any], shape: Shape, pointer: str, *, is_row: bool = False
) -> tuple[nn.Sequential, Shape]:
    """The layers' modules, and the shape of a row after them. Called under the meta device.

    `is_row`: the shape is that of a row as it came, before any layer.

    Raises:
        ShapeMismatch: naming the first layer that does not fit.
    """
    modules = []
    for index, layer in enumerate(layers):
        here = f"{pointer}/{index}"
        _check_axes(layers, index, shape, is_row, here)
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

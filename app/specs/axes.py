"""Which axes layers take and give: [length, features] as sequences have them, or [channels, length] as convolutions do.
Both are two numbers a row, so that one taken for the other fits all the same.
"""

from collections.abc import Iterable, Sequence

from app.specs import layers as specs
from app.specs.layers import Layer
from app.specs.sentences import MAX_NAMED

Axes = tuple[str, ...]

SEQUENCE: Axes = ("length", "features")
CHANNELS: Axes = ("channels", "length")
PICTURE: Axes = ("channels", "height", "width")
TAKES: dict[str, Axes] = {
    **dict.fromkeys(("conv1d", "max_pool1d", "avg_pool1d"), CHANNELS),
    **dict.fromkeys(("conv2d", "max_pool2d", "avg_pool2d"), PICTURE),
    **dict.fromkeys(("mean_over_sequence", "max_over_sequence", "last_place", "positional_embedding"), SEQUENCE),
    **dict.fromkeys(("gru", "lstm", "self_attention", "transformer_encoder"), SEQUENCE),
    "transpose": ("a", "b"),
    "embedding": ("length",),
}
"""Of those that want so many axes."""
POOLS_OF_ALL = ("global_avg_pool", "global_max_pool")  # whatever the number of axes, channels come first
GIVES: dict[str, Axes] = {
    **dict.fromkeys(("embedding", "positional_embedding", "self_attention", "transformer_encoder"), SEQUENCE),
    **dict.fromkeys(("conv1d", "max_pool1d", "avg_pool1d"), CHANNELS),
}
OTHER = {SEQUENCE: CHANNELS, CHANNELS: SEQUENCE}
KEEPING = (
    specs.Activation,
    specs.LeakyReLU,
    specs.ELU,
    specs.GELU,
    specs.Softplus,
    specs.PReLU,
    specs.Dropout,
    specs.BatchNorm,
    specs.LayerNorm,
    specs.RMSNorm,
    specs.GroupNorm,
)
"""Layers that keep a row's shape, and work on either."""


def written(axes: Axes) -> str:
    return f"[{', '.join(axes)}]"


def has_channels(layers: Sequence[Layer]) -> bool:
    """Whether the first of these layers that is about axes takes channels before places."""
    for layer in layers:
        if isinstance(layer, specs.Residual):
            return has_channels(layer.layers)
        if isinstance(layer, specs.Parallel):
            return any(map(has_channels, layer.branches))
        if not isinstance(layer, KEEPING):
            return TAKES.get(layer.type) in (CHANNELS, PICTURE)
    return False


def mixed_up(layers: Sequence[Layer]) -> list[str]:
    """A sentence for each of the first layers that take the axes in one order where they come in the other."""
    told: list[str] = []
    _axes_after(layers, None, "/network/layers", told)
    return told[:MAX_NAMED]


def _axes_after(layers: Iterable[Layer], axes: Axes | None, pointer: str, told: list[str]) -> Axes | None:
    """The axes that layers give, None where that can't be known."""
    for index, layer in enumerate(layers):
        here = f"{pointer}/{index}"
        if isinstance(layer, specs.Residual):
            axes = _axes_after(layer.layers, axes, f"{here}/layers", told)
        elif isinstance(layer, specs.Parallel):
            ends = {_axes_after(branch, axes, f"{here}/branches/{n}", told) for n, branch in enumerate(layer.branches)}
            axes = ends.pop() if len(ends) == 1 else None
        elif isinstance(layer, specs.Transpose):
            axes = OTHER.get(axes) if axes else None
        elif not isinstance(layer, KEEPING):
            takes = CHANNELS if layer.type in POOLS_OF_ALL else TAKES.get(layer.type)
            if axes is not None and OTHER[axes] == takes:
                told.append(
                    f"{layer.type} at {here} takes {written(takes)}, and what comes to it is {written(axes)}: put "
                    "transpose between"
                )
            is_sequence = isinstance(layer, specs.Recurrent) and layer.output == "sequence"
            axes = SEQUENCE if is_sequence else GIVES.get(layer.type)
    return axes

"""The network: a list of layers, or the short form of a multi-layer perceptron."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag

from app.specs.base import Fraction, Items, NonNegativeFloat, PositiveFloat, Spec

Width = Annotated[int, Field(ge=1, le=1_000_000)]
PlainActivation = Literal[
    "relu", "relu6", "selu", "silu", "mish", "tanh", "sigmoid", "log_sigmoid", "hardswish", "hardsigmoid", "hardtanh",
    "softsign", "tanhshrink", "identity",
]  # fmt: skip
ActivationName = Literal[PlainActivation, "leaky_relu", "elu", "celu", "gelu", "softplus", "prelu"]
Initializer = Literal[
    "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal", "lecun_normal", "orthogonal", "normal",
    "truncated_normal", "uniform", "zeros", "ones",
]  # fmt: skip


class Linear(Spec):
    """`y = x Wᵀ + b`: `[batch, in_features] -> [batch, out_features]`; `in_features` is inferred.

    `init`: how this layer's weight starts, if not as the spec's `init` says.
    """

    type: Literal["linear"] = "linear"
    out_features: Width
    bias: bool = True
    init: Initializer | None = None


class Activation(Spec):
    """An elementwise function without parameters."""

    type: PlainActivation


class LeakyReLU(Spec):
    type: Literal["leaky_relu"] = "leaky_relu"
    negative_slope: NonNegativeFloat = 0.01


class ELU(Spec):
    type: Literal["elu", "celu"] = "elu"
    alpha: PositiveFloat = 1.0


class GELU(Spec):
    type: Literal["gelu"] = "gelu"
    approximate: Literal["none", "tanh"] = "none"


class Softplus(Spec):
    type: Literal["softplus"] = "softplus"
    beta: PositiveFloat = 1.0


class PReLU(Spec):
    """ReLU with a learned negative slope."""

    type: Literal["prelu"] = "prelu"
    init: NonNegativeFloat = 0.25


class Dropout(Spec):
    type: Literal["dropout"] = "dropout"
    p: Fraction = 0.5


class BatchNorm(Spec):
    """Normalises each feature over the batch (Ioffe & Szegedy 2015)."""

    type: Literal["batch_norm"] = "batch_norm"
    eps: PositiveFloat = 1e-5
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    affine: bool = True


class LayerNorm(Spec):
    """Normalises each row over its features (Ba et al. 2016)."""

    type: Literal["layer_norm"] = "layer_norm"
    eps: PositiveFloat = 1e-5
    affine: bool = True


class Residual(Spec):
    """`x + layers(x)`; where the widths differ, `x` goes through a linear projection (He et al. 2016)."""

    type: Literal["residual"] = "residual"
    layers: Annotated[Items[Layer], Field(min_length=1, max_length=100)]


Layer = Annotated[
    Linear | Activation | LeakyReLU | ELU | GELU | Softplus | PReLU | Dropout | BatchNorm | LayerNorm | Residual,
    Field(discriminator="type"),
]
LAYER_SPECS: tuple[type[Spec], ...] = get_args(get_args(Layer)[0])


class LayeredNetwork(Spec):
    """Every layer in order. With `head`, the output layer that fits the target is added at the end."""

    layers: Annotated[Items[Layer], Field(max_length=1000)]
    head: bool = True


class DenseNetwork(Spec):
    """A multi-layer perceptron; `hidden_features: []` is linear regression."""

    hidden_features: Annotated[Items[Width], Field(max_length=1000)] = (64, 64)
    activation: ActivationName = "relu"
    dropout: Fraction = 0.0
    normalization: Literal["batch_norm", "layer_norm"] | None = None


def _form(value: Any) -> str:
    layered = "layers" in value if isinstance(value, dict) else isinstance(value, LayeredNetwork)
    return "layered" if layered else "dense"


NetworkSpec = Annotated[
    Annotated[DenseNetwork, Tag("dense")] | Annotated[LayeredNetwork, Tag("layered")], Discriminator(_form)
]


class InitSpec(Spec):
    """How weights start. Matrices get `weight`, biases `bias`; norm layers keep ones and zeros.

    `std` is the deviation of `normal` and `truncated_normal`, and the half-width of `uniform`.
    """

    weight: Initializer = "kaiming_uniform"
    bias: Literal["zeros", "ones", "normal", "uniform"] = "zeros"
    std: PositiveFloat = 1.0


Residual.model_rebuild()
LayeredNetwork.model_rebuild()

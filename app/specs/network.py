"""The network: a list of layers, or the short form of a multi-layer perceptron."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from app.specs.base import Fraction, Items, PositiveFloat, Spec
from app.specs.layers import ActivationName, Initializer, Layer, Width

MAX_LAYERS = 10_000  # those inside of others are counted, too
MAX_DEPTH = 32  # of layers inside of layers


class LayeredNetwork(Spec):
    """Every layer in order. With `head`, the output layer that fits the target is added at the end.

    `input_shape`: how a row's numbers are laid out for the first layer, such as `[1, 8, 8]` for an image of one
    channel or `[20, 3]` for a sequence of twenty places, where a missing number is the mean, without a flag beside it;
    absent, a row is a flat list.
    """

    layers: Annotated[Items[Layer], Field(max_length=MAX_LAYERS)]
    head: bool = True
    input_shape: Annotated[Items[Width], Field(min_length=1, max_length=6)] | None = None


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

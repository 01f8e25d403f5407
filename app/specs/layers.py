"""Layers, one class for each; `type` tells them apart. Shapes are those of one row, without the batch."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from app.specs.base import MAX_FLOAT, Fraction, Items, NonNegativeFloat, PositiveFloat, Spec

Width = Annotated[int, Field(ge=1, le=1_000_000)]
Small = Annotated[int, Field(ge=1, le=1000)]
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
    """`x` above zero, `negative_slope · x` below (Maas et al. 2013)."""

    type: Literal["leaky_relu"] = "leaky_relu"
    negative_slope: NonNegativeFloat = 0.01


class ELU(Spec):
    """Exponential below zero (Clevert et al. 2016; `celu`: Barron 2017)."""

    type: Literal["elu", "celu"] = "elu"
    alpha: Annotated[float, Field(ge=1 / MAX_FLOAT, le=MAX_FLOAT)] = 1.0


class GELU(Spec):
    """`x Φ(x)` (Hendrycks & Gimpel 2016)."""

    type: Literal["gelu"] = "gelu"
    approximate: Literal["none", "tanh"] = "none"


class Softplus(Spec):
    """A smooth ReLU: `log(1 + exp(beta · x)) / beta`."""

    type: Literal["softplus"] = "softplus"
    beta: PositiveFloat = 1.0


class PReLU(Spec):
    """ReLU with a learned negative slope."""

    type: Literal["prelu"] = "prelu"
    init: NonNegativeFloat = 0.25


class Dropout(Spec):
    """In training each number is zero with probability `p` (Srivastava et al. 2014)."""

    type: Literal["dropout"] = "dropout"
    p: Fraction = 0.5


class BatchNorm(Spec):
    """Normalises each feature or channel over the batch (Ioffe & Szegedy 2015)."""

    type: Literal["batch_norm"] = "batch_norm"
    eps: PositiveFloat = 1e-5
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    affine: bool = True


class LayerNorm(Spec):
    """Normalises over the last axis (Ba et al. 2016)."""

    type: Literal["layer_norm"] = "layer_norm"
    eps: PositiveFloat = 1e-5
    affine: bool = True


class RMSNorm(Spec):
    """Divides by the root mean square of the last axis (Zhang & Sennrich 2019)."""

    type: Literal["rms_norm"] = "rms_norm"
    eps: PositiveFloat = 1e-5
    affine: bool = True


class GroupNorm(Spec):
    """Normalises groups of channels, the first axis (Wu & He 2018)."""

    type: Literal["group_norm"] = "group_norm"
    num_groups: Width
    eps: PositiveFloat = 1e-5
    affine: bool = True


class Convolution(Spec):
    """`conv1d`: `[channels, length]`; `conv2d`: `[channels, height, width]`. `same` padding keeps the lengths."""

    type: Literal["conv1d", "conv2d"]
    out_channels: Width
    kernel_size: Small = 3
    stride: Small = 1
    padding: Literal["same", "valid"] | Annotated[int, Field(ge=0, le=1000)] = "same"
    dilation: Small = 1
    groups: Small = 1
    bias: bool = True

    @model_validator(mode="after")
    def _same_needs_stride_one(self) -> Convolution:
        if self.padding == "same" and self.stride != 1:
            raise ValueError(
                "padding same needs stride 1; give the padding as a number, such as (kernel_size - 1) // 2"
            )
        return self


class Pooling(Spec):
    """The largest or the mean of each window; `stride` is `kernel_size` where it is not given."""

    type: Literal["max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"]
    kernel_size: Small = 2
    stride: Small | None = None
    padding: Annotated[int, Field(ge=0, le=500)] = 0


class GlobalPooling(Spec):
    """Over all places: `[channels, …] -> [channels]`."""

    type: Literal["global_avg_pool", "global_max_pool"]


class SequencePooling(Spec):
    """Over the places of a sequence: `[length, features] -> [features]`; `last_place` takes the last one."""

    type: Literal["mean_over_sequence", "max_over_sequence", "last_place"]


class Flatten(Spec):
    """`[a, b, …] -> [a · b · …]`."""

    type: Literal["flatten"] = "flatten"


class Reshape(Spec):
    """To another shape of as many numbers."""

    type: Literal["reshape"] = "reshape"
    shape: Annotated[Items[Width], Field(min_length=1, max_length=6)]


class Transpose(Spec):
    """Swaps the two axes of a sequence, between `[length, features]` and the `[channels, length]` of conv1d."""

    type: Literal["transpose"] = "transpose"


class EmbeddingLayer(Spec):
    """A row's own whole numbers, 0 to `num_embeddings - 1`, to vectors: `[length] -> [length, embedding_features]`."""

    type: Literal["embedding"] = "embedding"
    num_embeddings: Width
    embedding_features: Width


class PositionalEmbedding(Spec):
    """Adds a learned vector to each place of `[length, features]`."""

    type: Literal["positional_embedding"] = "positional_embedding"


class Recurrent(Spec):
    """`[length, features] -> [length, hidden_features]` (twice that both ways), or only the last state of it. `dropout`
    is between the layers: one alone has none.
    """

    type: Literal["gru", "lstm"]
    hidden_features: Width
    num_layers: Small = 1
    bidirectional: bool = False
    dropout: Fraction = 0.0
    output: Literal["last", "sequence"] = "last"


class SelfAttention(Spec):
    """Multi-head scaled dot-product attention of `[length, features]` to itself (Vaswani et al. 2017)."""

    type: Literal["self_attention"] = "self_attention"
    num_heads: Small = 4
    dropout: Fraction = 0.0


class TransformerEncoder(Spec):
    """`num_layers` blocks of attention and a feed-forward net over `[length, features]`, normalised before each."""

    type: Literal["transformer_encoder"] = "transformer_encoder"
    num_heads: Small = 4
    feedforward_features: Width = 256
    num_layers: Small = 1
    dropout: Fraction = 0.0
    activation: Literal["relu", "gelu"] = "gelu"


class Residual(Spec):
    """`x + layers(x)`; where the last axis changes, `x` goes through a linear projection, and where convolutions change
    channels or their strides shorten lengths, through one of kernel 1 that has all their strides (He et al. 2016).
    """

    type: Literal["residual"] = "residual"
    layers: Annotated[Items[Layer], Field(min_length=1, max_length=100)]


class Parallel(Spec):
    """Each branch sees the same input; the outputs are put side by side on the first axis, or added up."""

    type: Literal["parallel"] = "parallel"
    branches: Annotated[Items[Annotated[Items[Layer], Field(max_length=100)]], Field(min_length=1, max_length=32)]
    merge: Literal["concatenate", "sum"] = "concatenate"


Layer = Annotated[
    Linear
    | Activation
    | LeakyReLU
    | ELU
    | GELU
    | Softplus
    | PReLU
    | Dropout
    | BatchNorm
    | LayerNorm
    | RMSNorm
    | GroupNorm
    | Convolution
    | Pooling
    | GlobalPooling
    | SequencePooling
    | Flatten
    | Reshape
    | Transpose
    | EmbeddingLayer
    | PositionalEmbedding
    | Recurrent
    | SelfAttention
    | TransformerEncoder
    | Residual
    | Parallel,
    Field(discriminator="type"),
]
LAYER_SPECS: tuple[type[Spec], ...] = get_args(get_args(Layer)[0])

Residual.model_rebuild()
Parallel.model_rebuild()

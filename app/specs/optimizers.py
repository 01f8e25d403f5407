"""Optimizers: the parameters and defaults of torch.optim, under our names; rates of sgd and rmsprop as in Keras."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from app.specs.base import Fraction, NonNegativeFloat, Spec

LearningRate = Annotated[float, Field(gt=0, le=1e6)] | Literal["auto"]
"""`auto`: found by a range test before the first step (Smith 2017)."""

Beta = Annotated[float, Field(ge=0, lt=1)]


class SGD(Spec):
    """Gradient descent, with momentum, dampening and Nesterov's look-ahead (Sutskever et al. 2013)."""

    type: Literal["sgd"] = "sgd"
    learning_rate: LearningRate = 0.01
    momentum: Fraction = 0.0
    dampening: Annotated[float, Field(ge=0, le=1)] = 0.0
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "SGD":
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError("nesterov needs momentum > 0 and dampening = 0")
        return self


class Adam(Spec):
    """Kingma & Ba 2015; `weight_decay` is added to the gradient."""

    type: Literal["adam"] = "adam"
    learning_rate: LearningRate = 0.001
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    eps: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    amsgrad: bool = False


class AdamW(Spec):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    type: Literal["adamw"] = "adamw"
    learning_rate: LearningRate = 0.001
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    eps: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.01
    amsgrad: bool = False


class RMSprop(Spec):
    """Tieleman & Hinton 2012."""

    type: Literal["rmsprop"] = "rmsprop"
    learning_rate: LearningRate = 0.001
    alpha: Beta = 0.99
    eps: NonNegativeFloat = 1e-8
    momentum: Fraction = 0.0
    centered: bool = False
    weight_decay: NonNegativeFloat = 0.0


class Adagrad(Spec):
    """Duchi et al. 2011."""

    type: Literal["adagrad"] = "adagrad"
    learning_rate: LearningRate = 0.01
    learning_rate_decay: NonNegativeFloat = 0.0
    initial_accumulator_value: NonNegativeFloat = 0.0
    eps: NonNegativeFloat = 1e-10
    weight_decay: NonNegativeFloat = 0.0


class Adadelta(Spec):
    """Zeiler 2012."""

    type: Literal["adadelta"] = "adadelta"
    learning_rate: LearningRate = 1.0
    rho: Beta = 0.9
    eps: NonNegativeFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.0


class NAdam(Spec):
    """Adam with Nesterov momentum (Dozat 2016)."""

    type: Literal["nadam"] = "nadam"
    learning_rate: LearningRate = 0.002
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    eps: NonNegativeFloat = 1e-8
    momentum_decay: NonNegativeFloat = 0.004
    weight_decay: NonNegativeFloat = 0.0


class RAdam(Spec):
    """Adam with a rectified variance (Liu et al. 2020)."""

    type: Literal["radam"] = "radam"
    learning_rate: LearningRate = 0.001
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    eps: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0


class Adamax(Spec):
    """Adam over the infinity norm (Kingma & Ba 2015, §7)."""

    type: Literal["adamax"] = "adamax"
    learning_rate: LearningRate = 0.002
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    eps: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0


class Muon(Spec):
    """Orthogonalised momentum for weight matrices (Jordan 2024); vectors are left to AdamW at the same rate."""

    type: Literal["muon"] = "muon"
    learning_rate: LearningRate = 0.001
    momentum: Fraction = 0.95
    nesterov: bool = True
    weight_decay: NonNegativeFloat = 0.1


OptimizerSpec = Annotated[
    SGD | Adam | AdamW | RMSprop | Adagrad | Adadelta | NAdam | RAdam | Adamax | Muon, Field(discriminator="type")
]
OPTIMIZER_SPECS: tuple[type[Spec], ...] = get_args(get_args(OptimizerSpec)[0])

"""How a network learns: loss, optimizer, descent variant, schedule, and when to stop."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from app.specs.base import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Spec

LearningRate = Annotated[float, Field(gt=0, le=1e6)] | Literal["auto"]
"""`auto`: found by a range test before the first step (Smith 2017)."""

Metric = Literal["loss", "accuracy", "f1_macro", "roc_auc", "exact_match", "mae", "rmse", "r2"]
ClassWeight = Literal["balanced"] | dict[str, PositiveFloat] | None
"""`balanced`: each class weighs `num_rows / (num_classes * its rows)`; or a weight per label."""


# ---- losses


class AutoLoss(Spec):
    """The loss that fits the task: mse, binary_cross_entropy or cross_entropy."""

    type: Literal["auto"] = "auto"
    class_weight: ClassWeight = None


class PlainLoss(Spec):
    """`mse`, `mae` and `log_cosh` of the difference; `poisson_nll` of a predicted log rate."""

    type: Literal["mse", "mae", "log_cosh", "poisson_nll"]


class HuberLoss(Spec):
    """Quadratic up to `delta` (in deviations of the target where it is standardised), linear beyond (Huber 1964)."""

    type: Literal["huber"] = "huber"
    delta: PositiveFloat = 1.0


class QuantileLoss(Spec):
    """The pinball loss, whose minimum is the target's `quantile` (Koenker & Bassett 1978)."""

    type: Literal["quantile"] = "quantile"
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5


class CrossEntropyLoss(Spec):
    """Softmax cross-entropy over classes."""

    type: Literal["cross_entropy"] = "cross_entropy"
    class_weight: ClassWeight = None
    label_smoothing: Fraction = 0.0


class BinaryCrossEntropyLoss(Spec):
    """Sigmoid cross-entropy: one output for two classes, or one per label."""

    type: Literal["binary_cross_entropy"] = "binary_cross_entropy"
    class_weight: ClassWeight = None


LossSpec = Annotated[
    AutoLoss | PlainLoss | HuberLoss | QuantileLoss | CrossEntropyLoss | BinaryCrossEntropyLoss,
    Field(discriminator="type"),
]
LOSS_SPECS: tuple[type[Spec], ...] = get_args(get_args(LossSpec)[0])


# ---- optimizers (the parameters and defaults of torch.optim, under our names; rates of sgd and rmsprop as in Keras)

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


# ---- descent, schedule, stop


class DescentSpec(Spec):
    """How many rows a gradient sees: all of them, `batch_size`, or one.

    An update takes the mean of `accumulate_steps` gradients; `max_grad_norm` clips the norm of that mean.
    `sampling`: every row once an epoch, or as many draws with replacement in which all classes are as likely.
    """

    variant: Literal["full_batch", "mini_batch", "stochastic"] = "mini_batch"
    batch_size: PositiveInt | None = None
    shuffle: bool = True
    sampling: Literal["every_row", "class_balanced"] = "every_row"
    accumulate_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    max_grad_norm: PositiveFloat | None = None

    @model_validator(mode="after")
    def _batch_size_fits_variant(self) -> "DescentSpec":
        if self.variant == "stochastic" and self.batch_size not in (None, 1):
            raise ValueError("stochastic descent has batch_size 1; for more rows a step use mini_batch")
        return self


class ConstantSchedule(Spec):
    type: Literal["constant"] = "constant"
    warmup_steps: NonNegativeInt = 0


class CosineSchedule(Spec):
    """Half a cosine from 1 down to `end_factor` at the last step (Loshchilov & Hutter 2017, without restarts)."""

    type: Literal["cosine"] = "cosine"
    end_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup_steps: NonNegativeInt = 0


class LinearSchedule(Spec):
    """A straight line from 1 to `end_factor` at the last step."""

    type: Literal["linear"] = "linear"
    end_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup_steps: NonNegativeInt = 0


class StepSchedule(Spec):
    """Times `gamma` every `every_epochs` epochs."""

    type: Literal["step"] = "step"
    every_epochs: PositiveInt = 30
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_steps: NonNegativeInt = 0


class ExponentialSchedule(Spec):
    """Times `gamma` every epoch."""

    type: Literal["exponential"] = "exponential"
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.95
    warmup_steps: NonNegativeInt = 0


class OneCycleSchedule(Spec):
    """Up from `start_factor` to 1 in `rise` of the steps, then down to `end_factor`, by half cosines (Smith 2018)."""

    type: Literal["one_cycle"] = "one_cycle"
    rise: Annotated[float, Field(gt=0, lt=1)] = 0.3
    start_factor: Annotated[float, Field(gt=0, le=1)] = 0.04
    end_factor: Annotated[float, Field(ge=0, le=1)] = 4e-6
    warmup_steps: NonNegativeInt = 0


class PlateauSchedule(Spec):
    """Times `gamma` after `patience` epochs in which the watched loss or metric got no better."""

    type: Literal["plateau"] = "plateau"
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: PositiveInt = 10
    end_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    warmup_steps: NonNegativeInt = 0


ScheduleSpec = Annotated[
    ConstantSchedule
    | CosineSchedule
    | LinearSchedule
    | StepSchedule
    | ExponentialSchedule
    | OneCycleSchedule
    | PlateauSchedule,
    Field(discriminator="type"),
]
SCHEDULE_SPECS: tuple[type[Spec], ...] = get_args(get_args(ScheduleSpec)[0])


class StopSpec(Spec):
    """Whichever comes first. `max_epochs` is 100 where neither it, `max_steps` nor `max_seconds` is given.

    What is watched is `metric` over the validation rows (the training loss where there are none). `patience`: epochs
    in which it got no better by more than `min_delta`. `target_loss` is compared with the watched loss.
    `min_grad_norm`: the norm of an epoch's last gradient. `restore_best`: the weights of the best epoch are kept
    rather than the last; absent, that is done where there is validation or patience.
    """

    max_epochs: PositiveInt | None = None
    max_steps: PositiveInt | None = None
    max_seconds: PositiveFloat | None = None
    metric: Metric = "loss"
    patience: PositiveInt | None = None
    min_delta: NonNegativeFloat = 0.0
    target_loss: float | None = None
    min_grad_norm: PositiveFloat | None = None
    restore_best: bool | None = None

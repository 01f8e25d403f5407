"""`TrainingSpec`: all of a run. As posted it may leave things open; `app.specs.resolve` leaves nothing open."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from app.specs.base import Items, Name, NonNegativeInt, Spec
from app.specs.descent import DescentSpec, StopSpec
from app.specs.losses import AutoLoss, LossSpec
from app.specs.network import DenseNetwork, InitSpec, NetworkSpec
from app.specs.optimizers import AdamW, OptimizerSpec
from app.specs.schedules import ConstantSchedule, ScheduleSpec
from app.specs.table import DataSpec, Digest

DEVICE_PATTERN = r"^(auto|cpu|cuda(:\d{1,3})?)$"


class FeaturesSpec(Spec):
    """How columns become numbers. All constants are fitted on the training rows and stored with the model.

    `standardize`: with `target`, only a regression's target is scaled and inputs stay as they are, as is done where the
    network begins with an embedding of whole numbers.
    """

    standardize: bool | Literal["target"] = True
    missing: Literal["impute", "error"] = "impute"
    categorical: Literal["embedding", "one_hot"] = "embedding"


class ValidationFraction(Spec):
    """That part of the rows is held out, drawn with the run's seed and stratified by class."""

    fraction: Annotated[float, Field(gt=0, le=0.9)] = 0.1


class ValidationDataset(Spec):
    """Another dataset with the same columns."""

    dataset: Name | None = None
    digest: Digest | None = None


class ValidationFolds(Spec):
    """Cross-validation: a run for each of `folds` parts, which it holds out; then one over all rows is published."""

    folds: Annotated[int, Field(ge=2, le=100)]


def _form(value: Any) -> str:
    """Which class a value is meant for. No tag is also a field, so that pointers to faults can leave tags out."""
    keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", ())
    if "folds" in keys:
        return "held_out_folds"
    return "held_out_dataset" if "dataset" in keys or "digest" in keys else "held_out_fraction"


ValidationSpec = Annotated[
    Annotated[ValidationFraction, Tag("held_out_fraction")]
    | Annotated[ValidationDataset, Tag("held_out_dataset")]
    | Annotated[ValidationFolds, Tag("held_out_folds")],
    Discriminator(_form),
]


class WarmStart(Spec):
    """Go on from the weights of a published version, and encode rows as it does."""

    model: Name
    version: Annotated[str, Field(min_length=1, max_length=64)] | None = None


class TrainingSpec(Spec):
    """The body of `POST /train`, and, resolved, what a run can be repeated from.

    `precision`: weights are float32 always; `tf32` (CUDA only) rounds what matrix products read, `bfloat16` and
    `float16` (with scaled losses) compute activations in half the bits. With any but `float32`, a card rounds as `tf32`
    what is judged between the steps.

    `engine`: `compiled` makes machine code of the network's steps, in about ten seconds, and runs that; `auto` does so
    where it repays itself, which a long run measures at its start. Runs of one spec on one machine are given the same
    engine, and the spec of the published version names it. `num_threads`: cores that a step's operations are spread
    over; by default as many as these keep busy, which is one where all of them are small.

    `freeze`: parts of the network that keep their weights and statistics, such as `layers.0` or `input`. `mixup`: each
    batch is mixed with itself in another order, by shares from Beta(mixup, mixup) (Zhang et al. 2018). `ema_decay`:
    validated and published is the exponential moving average of the weights, whose decay is at most (1 + n) / (10 + n)
    after n steps: 0.999 is that from step 9,000 on. `activation_checkpointing`: activations are computed again in the
    backward pass instead of being kept, in √n segments of n layers (Chen et al. 2016).
    """

    model: Name
    data: DataSpec
    task: Literal["auto", "regression", "binary", "multiclass", "multilabel"] = "auto"
    network: NetworkSpec = DenseNetwork()
    loss: LossSpec = AutoLoss()
    optimizer: OptimizerSpec = AdamW()
    descent: DescentSpec = DescentSpec()
    schedule: ScheduleSpec = ConstantSchedule()
    stop: StopSpec = StopSpec()
    validation: ValidationSpec | None = ValidationFraction()
    features: FeaturesSpec | None = FeaturesSpec()
    init: InitSpec = InitSpec()
    device: Annotated[str, Field(pattern=DEVICE_PATTERN)] = "auto"
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    engine: Literal["auto", "eager", "compiled"] = "auto"
    num_threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    seed: Annotated[NonNegativeInt, Field(le=2**53 - 1)] = 0
    warm_start: WarmStart | None = None
    freeze: Items[Annotated[str, Field(min_length=1, max_length=200)]] = ()
    activation_checkpointing: bool = False
    mixup: Annotated[float, Field(gt=0, le=10)] | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    tags: dict[str, str] = Field(default_factory=dict)
    description: Annotated[str, Field(max_length=10_000)] = ""

    @property
    def num_fits(self) -> int:
        """One; with cross-validation, one for each fold and one over all rows."""
        return self.validation.folds + 1 if isinstance(self.validation, ValidationFolds) else 1

"""Small networks with what they learn from, for tests of engines: taken step by step, killed, resumed, compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from app.learning.averaging import WeightAverage
from app.learning.batches import Batching, epoch_order
from app.learning.compiled import CompiledSteps
from app.learning.features import InputColumns
from app.learning.losses import LossFunction, build_loss
from app.learning.network import freeze, set_to_learn
from app.learning.optimizers import build_optimizers, export_state, load_state
from app.learning.rows import Rows
from app.learning.run_tensors import Loop, RunTensors
from app.learning.step_graph import StepTensors, trace_loop, trace_step
from app.learning.steps import EagerSteps
from app.specs import losses as loss_specs
from app.specs import optimizers as optimizer_specs

NUM_ROWS, ROWS_PER_STEP = 70, 8  # eight whole steps, and one of six rows
MSE = build_loss(loss_specs.PlainLoss(type="mse"))
RATES = [0.01 * (1 + step % 5) for step in range(100)]
CPU = torch.device("cpu")


def mlp(*middle: nn.Module, num_outputs: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), *middle, nn.Linear(8, num_outputs))


def everything() -> nn.Sequential:
    """Codes, an embedding that is frozen, norms with and without buffers."""
    front = InputColumns(4, [5, 4], "embedding")
    width = 4 + sum(table.embedding_dim for table in front.embeddings)
    front.embeddings[1].weight.requires_grad = False
    return nn.Sequential(front, nn.Linear(width, 8), nn.GELU(), nn.BatchNorm1d(8), nn.LayerNorm(8), nn.Linear(8, 3))


def with_frozen_norm() -> nn.Sequential:
    network = mlp(nn.BatchNorm1d(8))
    freeze(network, ["1"])
    return network


def with_dropout() -> nn.Sequential:
    return mlp(nn.Tanh(), nn.Dropout(0.4))


def some_rows(*, classes: int = 0, weighted: bool = False) -> Rows:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(NUM_ROWS, 6, generator=generator)
    inputs[:, 4:] = inputs[:, 4:].abs().long().clamp(max=3)
    targets = torch.randint(classes, (NUM_ROWS,), generator=generator) if classes else inputs[:, :1].sin()
    return Rows(inputs, targets, torch.rand(NUM_ROWS, generator=generator) if weighted else None)


def interpreted(tensors: RunTensors) -> Loop:
    """The loop that would be compiled, run by torch operation by operation."""
    return loop_of(trace_loop(trace_step(tensors.recipe, tensors.tensors), tensors.tensors), tensors.tensors)


def loop_of(graph: fx.GraphModule, tensors: StepTensors) -> Loop:
    def loop(first: int, last: int) -> None:
        with torch.no_grad():
            graph(*tensors.arguments(first, last))

    return loop


class Case:
    """A network at its start, and what it learns from."""

    def __init__(
        self,
        network: nn.Sequential,
        optimizer: Any = None,
        loss: LossFunction = MSE,
        rows: Rows | None = None,
        *,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.network, self.optimizer = network.to(device), optimizer or optimizer_specs.SGD()
        self.rows, self.device = (rows or some_rows()).to(device), device
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizers = build_optimizers(self.optimizer, trained)
        self.batching = Batching(NUM_ROWS, ROWS_PER_STEP)
        self.average = WeightAverage(network, ema_decay) if ema_decay else None
        self.eager = EagerSteps(
            network, loss, self.optimizers, self.batching, max_grad_norm=max_grad_norm, average=self.average
        )
        self.warnings: list[str] = []

    def compiled(self, folder: Path, **changes: Any) -> CompiledSteps:
        options: dict[str, Any] = {"eager_steps": 1, "compile_seconds": 10.0, "warn": self.warnings.append} | changes
        return CompiledSteps(self.eager, self.optimizer, folder, **options)

    def train(
        self, engine: Any, num_steps: int, *, first: int = 0, at_once: int = 100, rates: Sequence[float] = RATES
    ) -> Tensor:
        """Steps `first` to `num_steps` of a run, in calls of `at_once` steps at most; returns their losses."""
        losses: list[Tensor] = []
        step = first
        while step < num_steps:
            epoch, place = divmod(step, self.batching.steps_per_epoch)
            order = epoch_order(self.batching, 3, epoch, self.device)
            num = min(at_once, self.batching.steps_per_epoch - place, num_steps - step)
            losses.append(engine.run(self.rows, order, place, rates[step : step + num]))
            step += len(losses[-1])
        return torch.cat(losses)

    def state(self) -> dict[str, Tensor]:
        tensors = self.network.state_dict() | export_state(self.optimizers)
        return tensors | {f"average.{k}": v for k, v in (self.average.average if self.average else {}).items()}


def build(make: Any, **options: Any) -> Case:
    torch.manual_seed(0)
    network = make()
    set_to_learn(network)
    return Case(network, **options)


def assert_close(found: Case, expected: Case) -> None:
    assert found.state().keys() == expected.state().keys()
    for name, value in expected.state().items():
        torch.testing.assert_close(found.state()[name], value, rtol=2e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def assert_identical(found: Case, expected: Case) -> None:
    assert [name for name, value in expected.state().items() if not torch.equal(found.state()[name], value)] == []


def case_of_everything(device: torch.device = CPU) -> Case:
    rows = some_rows(classes=3, weighted=True)
    loss = build_loss(loss_specs.CrossEntropyLoss())
    return build(
        everything,
        optimizer=optimizer_specs.AdamW(),
        loss=loss,
        rows=rows,
        max_grad_norm=1.0,
        ema_decay=0.9,
        device=device,
    )


def resume(case: Case, killed: Case, folder: Path, first: int, **options: Any) -> CompiledSteps:
    """An engine that goes on from step `first` with what a checkpoint of another case would hold."""
    case.network.load_state_dict(killed.network.state_dict())
    load_state(case.optimizers, {name: value.clone() for name, value in export_state(killed.optimizers).items()})
    if case.average:
        assert killed.average
        case.average.load(killed.average.average, first)
    engine = case.compiled(folder, **options)
    engine.steps_done = first
    return engine

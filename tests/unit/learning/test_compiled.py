"""The compiled engine takes the steps of the eager one, whatever it compiles, and however its steps come in calls."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from app.learning.averaging import WeightAverage
from app.learning.batches import Batching, epoch_order
from app.learning.compiled import CompiledSteps, RunTensors, why_not_compiled
from app.learning.features import InputColumns
from app.learning.losses import LossFunction, build_loss
from app.learning.optimizers import build_optimizers, export_state, load_state
from app.learning.rows import Rows
from app.learning.step_graph import trace_loop, trace_step
from app.learning.steps import EagerSteps
from app.learning.update_rules import UPDATE_RULES
from app.specs import optimization as specs
from app.specs.table import StoredData
from app.specs.training import TrainingSpec

NUM_ROWS, ROWS_PER_STEP = 70, 8  # eight whole steps, and one of six rows
MSE = build_loss(specs.PlainLoss(type="mse"))
RATES = [0.01 * (1 + step % 5) for step in range(100)]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where libraries are kept for the tests that compile, so that each shape is compiled once."""
    return tmp_path_factory.mktemp("libraries")


def mlp(*middle: nn.Module, num_outputs: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), *middle, nn.Linear(8, num_outputs))


def everything() -> nn.Sequential:
    """Codes, an embedding that is frozen, norms with and without buffers."""
    front = InputColumns(4, [5, 4], "embedding")
    width = 4 + sum(table.embedding_dim for table in front.embeddings)
    front.embeddings[1].weight.requires_grad = False
    return nn.Sequential(front, nn.Linear(width, 8), nn.GELU(), nn.BatchNorm1d(8), nn.LayerNorm(8), nn.Linear(8, 3))


def with_dropout() -> nn.Sequential:
    return mlp(nn.Tanh(), nn.Dropout(0.4))


def some_rows(*, classes: int = 0, weighted: bool = False) -> Rows:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(NUM_ROWS, 6, generator=generator)
    inputs[:, 4:] = inputs[:, 4:].abs().long().clamp(max=3)
    targets = torch.randint(classes, (NUM_ROWS,), generator=generator) if classes else inputs[:, :1].sin()
    return Rows(inputs, targets, torch.rand(NUM_ROWS, generator=generator) if weighted else None)


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
    ) -> None:
        self.network, self.optimizer = network, optimizer or specs.SGD()
        self.rows = rows or some_rows()
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizers = build_optimizers(self.optimizer, trained)
        self.batching = Batching(NUM_ROWS, ROWS_PER_STEP)
        self.average = WeightAverage(network, ema_decay) if ema_decay else None
        self.eager = EagerSteps(
            network, loss, self.optimizers, self.batching, max_grad_norm=max_grad_norm, average=self.average
        )
        self.warnings: list[str] = []

    def compiled(self, folder: Path, **changes: Any) -> CompiledSteps:
        options: dict[str, Any] = {"eager_steps": 1, "warn": self.warnings.append} | changes
        return CompiledSteps(self.eager, self.optimizer, folder, **options)

    def train(self, engine: Any, num_steps: int, *, first: int = 0, at_once: int = 100) -> Tensor:
        """Steps `first` to `num_steps` of a run, in calls of `at_once` steps at most; returns their losses."""
        losses: list[Tensor] = []
        step = first
        while step < num_steps:
            epoch, place = divmod(step, self.batching.steps_per_epoch)
            order = epoch_order(self.batching, 3, epoch, CPU)
            num = min(at_once, self.batching.steps_per_epoch - place, num_steps - step)
            losses.append(engine.run(self.rows, order, place, RATES[step : step + num]))
            step += len(losses[-1])
        return torch.cat(losses)

    def state(self) -> dict[str, Tensor]:
        tensors = self.network.state_dict() | export_state(self.optimizers)
        return tensors | {f"average.{k}": v for k, v in (self.average.average if self.average else {}).items()}


def build(make: Any, **options: Any) -> Case:
    torch.manual_seed(0)
    return Case(make().train(), **options)


def assert_close(found: Case, expected: Case) -> None:
    assert found.state().keys() == expected.state().keys()
    for name, value in expected.state().items():
        torch.testing.assert_close(found.state()[name], value, rtol=2e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def assert_identical(found: Case, expected: Case) -> None:
    assert [name for name, value in expected.state().items() if not torch.equal(found.state()[name], value)] == []


# ---- the graph, run by torch: what is compiled computes what is right


class Interpreted:
    """A loop that torch runs operation by operation, in the place of its library."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph

    def run(self, arguments: list[Tensor]) -> None:
        with torch.no_grad():
            self.graph(*arguments)


def train_interpreted(case: Case, num_steps: int) -> Tensor:
    first = case.train(case.eager, 1)
    tensors = RunTensors(case.eager, case.optimizer, case.rows)
    loop: Any = Interpreted(trace_loop(trace_step(tensors.recipe, tensors.tensors), tensors.tensors))
    order = epoch_order(case.batching, 3, 0, CPU)
    return torch.cat([first, tensors.run(loop, case.rows, order, 1, RATES[1:num_steps], 1)])


OPTIMIZERS = [
    specs.SGD(momentum=0.9, nesterov=True, weight_decay=0.01),
    specs.SGD(momentum=0.9, dampening=0.5),
    specs.Adam(amsgrad=True, weight_decay=0.01),
    specs.AdamW(),
    specs.RMSprop(centered=True, momentum=0.5),
    specs.Adagrad(learning_rate_decay=0.1, initial_accumulator_value=0.1),
    specs.Adadelta(),
    specs.NAdam(),
    specs.RAdam(),
    specs.Adamax(),
]
LOSSES = [
    *(specs.PlainLoss(type=name) for name in ("mse", "mae", "log_cosh", "poisson_nll")),
    specs.HuberLoss(delta=0.2),
    specs.QuantileLoss(quantile=0.2),
    specs.CrossEntropyLoss(label_smoothing=0.1),
    specs.BinaryCrossEntropyLoss(),
]


def test_tables_have_every_rule_and_loss() -> None:
    assert {type(spec) for spec in OPTIMIZERS} == set(UPDATE_RULES)
    assert {type(spec) for spec in LOSSES} == set(specs.LOSS_SPECS) - {specs.AutoLoss}


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda spec: spec.type)
def test_graph_takes_the_steps_of_every_optimizer(optimizer: Any) -> None:
    found, expected = (build(lambda: mlp(nn.Tanh()), optimizer=optimizer) for _ in range(2))
    torch.testing.assert_close(train_interpreted(found, 8), expected.train(expected.eager, 8))
    assert_close(found, expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda spec: spec.type)
def test_graph_takes_the_steps_of_every_loss(loss: Any, weighted: bool) -> None:
    classes = 3 if loss.type == "cross_entropy" else 0

    def case() -> Case:
        rows = some_rows(classes=classes, weighted=weighted)
        if loss.type == "binary_cross_entropy":
            rows.targets = (rows.targets > 0).float()
        return build(lambda: mlp(nn.ReLU(), num_outputs=classes or 1), loss=build_loss(loss), rows=rows)

    found, expected = case(), case()
    torch.testing.assert_close(train_interpreted(found, 8), expected.train(expected.eager, 8))
    assert_close(found, expected)


@pytest.mark.parametrize("max_grad_norm", [1e-3, 1e3])
def test_graph_clips(max_grad_norm: float) -> None:
    found, expected = (build(lambda: mlp(nn.ReLU()), max_grad_norm=max_grad_norm) for _ in range(2))
    torch.testing.assert_close(train_interpreted(found, 8), expected.train(expected.eager, 8))
    assert_close(found, expected)


# ---- the library


def case_of_everything() -> Case:
    rows = some_rows(classes=3, weighted=True)
    loss = build_loss(specs.CrossEntropyLoss())
    return build(everything, optimizer=specs.AdamW(), loss=loss, rows=rows, max_grad_norm=1.0, ema_decay=0.9)


def test_library_takes_the_steps_of_the_eager_engine(folder: Path) -> None:
    found, expected = case_of_everything(), case_of_everything()
    losses = found.train(found.compiled(folder), 30)
    assert found.warnings == []
    torch.testing.assert_close(losses, expected.train(expected.eager, 30), rtol=1e-4, atol=1e-6)
    assert_close(found, expected)
    assert found.average
    assert found.average.num_updates == 30


@pytest.mark.parametrize("make", [case_of_everything, lambda: build(with_dropout)], ids=["everything", "dropout"])
@pytest.mark.parametrize("at_once", [1, 3, 7])
def test_killed_and_resumed_is_undisturbed_bit_for_bit(make: Any, at_once: int, folder: Path) -> None:
    undisturbed, resumed = make(), make()
    torch.manual_seed(5)
    losses = undisturbed.train(undisturbed.compiled(folder, eager_steps=3), 25)
    torch.manual_seed(5)
    killed = make()
    torch.manual_seed(5)
    begun = killed.train(killed.compiled(folder, eager_steps=3), 13, at_once=at_once)
    generator = torch.get_rng_state()
    torch.manual_seed(6)
    resumed.network.load_state_dict(killed.network.state_dict())
    load_state(resumed.optimizers, {name: value.clone() for name, value in export_state(killed.optimizers).items()})
    if resumed.average:
        resumed.average.load(killed.average.average, 13)
    torch.set_rng_state(generator)
    engine = resumed.compiled(folder, eager_steps=3)
    engine.steps_done = 13
    rest = resumed.train(engine, 25, first=13, at_once=at_once)
    assert torch.equal(torch.cat([begun, rest]), losses)
    assert_identical(resumed, undisturbed)
    assert undisturbed.warnings == killed.warnings == resumed.warnings == []


@pytest.mark.parametrize("at_once", [1, 4])
def test_dropout_draws_other_masks_in_every_step(at_once: int, folder: Path) -> None:
    case = build(with_dropout, optimizer=specs.SGD(learning_rate=1e-9))
    inputs, targets = torch.ones(NUM_ROWS, 6), torch.zeros(NUM_ROWS, 1)
    case.rows = Rows(inputs, targets)
    engine = case.compiled(folder)
    losses = torch.cat([case.train(engine, 1), case.train(engine, 9, first=1, at_once=at_once)])
    assert len(set(losses.tolist())) == 9  # the rows are all alike: losses differ by masks alone


# ---- moving over, and staying


def test_the_first_steps_are_eager_and_the_others_wait_for_the_library(folder: Path) -> None:
    found, expected = case_of_everything(), case_of_everything()
    engine = found.compiled(folder, eager_steps=5)
    order = epoch_order(found.batching, 3, 0, CPU)
    counts = [len(engine.run(found.rows, order, 0, RATES[:8]))]
    while not counts[-1] or engine.steps_done == 5:
        counts.append(len(engine.run(found.rows, order, engine.steps_done, RATES[engine.steps_done : 8])))
    assert counts[0] == 5
    assert counts[-1] == 3
    assert set(counts[1:-1]) <= {0}
    expected.train(expected.eager, 5)
    other = expected.compiled(folder, eager_steps=1)
    other.steps_done = 5
    expected.train(other, 8, first=5)
    assert_identical(found, expected)


def test_an_epochs_last_step_leaves_its_gradient_where_it_is_asked_for(folder: Path) -> None:
    case = case_of_everything()
    case.batching = case.eager.batching = Batching(ROWS_PER_STEP * 4, ROWS_PER_STEP)
    engine = case.compiled(folder, leave_gradient=True)
    order = torch.arange(ROWS_PER_STEP * 4)
    gradients = []
    while engine.steps_done < 4:
        engine.run(case.rows, order, engine.steps_done, RATES[engine.steps_done : 4])
        gradients.append(case.eager.parameters[0].grad.clone())  # type: ignore[union-attr]
    assert torch.equal(gradients[0], gradients[-2])  # compiled steps leave none
    assert not torch.equal(gradients[0], gradients[-1])


def test_without_a_compiler_the_run_stays_eager_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    found, expected = case_of_everything(), case_of_everything()
    losses = found.train(found.compiled(tmp_path), 20)
    assert torch.equal(losses, expected.train(expected.eager, 20))
    assert_identical(found, expected)
    assert found.warnings == [
        "training goes on without the compiled engine: there is no C++ compiler (no-such-compiler) on this machine"
    ]


def test_a_compile_that_fails_leaves_the_run_eager(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    found, expected = case_of_everything(), case_of_everything()
    found.train(found.compiled(tmp_path / "taken"), 20)
    expected.train(expected.eager, 20)
    assert_identical(found, expected)
    assert "FileExistsError" in found.warnings[0]
    assert len(found.warnings) == 1


def test_a_network_that_can_not_be_traced_stays_eager(folder: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    found, expected = (build(lambda: mlp(Branching())) for _ in range(2))
    found.train(found.compiled(folder), 20)
    expected.train(expected.eager, 20)
    assert_identical(found, expected)
    assert len(found.warnings) == 1


@pytest.mark.parametrize(
    ("update", "network", "reason"),
    [
        ({}, everything(), None),
        ({"device": "cuda:0"}, mlp(), "CPU"),
        ({"precision": "bfloat16"}, mlp(), "float32"),
        ({"mixup": 0.2}, mlp(), "mixup"),
        ({"optimizer": specs.Muon()}, mlp(), "muon"),
        ({"num_threads": 2}, everything(), "embeddings"),
        ({}, mlp(nn.GRU(8, 8)), "recurrent"),
        ({}, mlp(nn.Linear(8, 3_000_000, device="meta")), "large"),
    ],
)
def test_why_not_compiled(update: dict[str, Any], network: nn.Module, reason: str | None) -> None:
    spec = TrainingSpec(
        model="m", data=StoredData(digest="sha256:" + 64 * "0", target="y"), device="cpu", num_threads=1
    ).model_copy(update=update)
    found = why_not_compiled(spec, network)
    assert found is None if reason is None else reason in (found or "")

"""The compiled engine takes the steps of the eager one, whatever it compiles, and however its steps come in calls."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.learning.batches import Batching, epoch_order
from app.learning.compiled import why_not_compiled
from app.learning.losses import build_loss
from app.learning.rows import Rows
from app.learning.run_tensors import Loop, RunTensors
from app.learning.update_rules import UPDATE_RULES
from app.specs import losses as loss_specs
from app.specs import optimizers as optimizer_specs
from app.specs.descent import DescentSpec
from app.specs.table import StoredData
from app.specs.training import TrainingSpec
from tests.unit.learning.cases import (
    CPU,
    NUM_ROWS,
    RATES,
    ROWS_PER_STEP,
    Case,
    assert_close,
    assert_identical,
    build,
    case_of_everything,
    everything,
    interpreted,
    mlp,
    resume,
    some_rows,
    with_dropout,
    with_frozen_norm,
)


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


JOINED, WEIGHTS_ALONE, ALL_ALONE = 2**16, 40, 1  # of so many numbers or more


@pytest.fixture
def min_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters from this size on are no part of the vector of all others."""
    monkeypatch.setattr("app.learning.run_tensors.MIN_ALONE", request.param)


however_they_lie = pytest.mark.parametrize("min_alone", [JOINED, WEIGHTS_ALONE, ALL_ALONE], indirect=True)


# ---- the graph, run by torch: what is compiled computes what is right


def train_with(make_loop: Callable[[RunTensors], Loop], case: Case, num_steps: int) -> Tensor:
    first = case.train(case.eager, 1)
    tensors = RunTensors(case.eager, case.optimizer, case.rows)
    order = epoch_order(case.batching, 3, 0, CPU)
    return torch.cat([first, tensors.run(make_loop(tensors), case.rows, order, 1, RATES[1:num_steps], 1)])


OPTIMIZERS = [
    optimizer_specs.SGD(momentum=0.9, nesterov=True, weight_decay=0.01),
    optimizer_specs.SGD(momentum=0.9, dampening=0.5),
    optimizer_specs.Adam(amsgrad=True, weight_decay=0.01),
    optimizer_specs.AdamW(),
    optimizer_specs.RMSprop(centered=True, momentum=0.5),
    optimizer_specs.Adagrad(learning_rate_decay=0.1, initial_accumulator_value=0.1),
    optimizer_specs.Adadelta(),
    optimizer_specs.NAdam(),
    optimizer_specs.RAdam(),
    optimizer_specs.Adamax(),
]
LOSSES = [
    *(loss_specs.PlainLoss(type=name) for name in ("mse", "mae", "log_cosh", "poisson_nll")),
    loss_specs.HuberLoss(delta=0.2),
    loss_specs.QuantileLoss(quantile=0.2),
    loss_specs.CrossEntropyLoss(label_smoothing=0.1),
    loss_specs.BinaryCrossEntropyLoss(),
]


def test_tables_have_every_rule_and_loss() -> None:
    assert {type(spec) for spec in OPTIMIZERS} == set(UPDATE_RULES)
    assert {type(spec) for spec in LOSSES} == set(loss_specs.LOSS_SPECS) - {loss_specs.AutoLoss}


@pytest.mark.usefixtures("min_alone")
@however_they_lie
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda spec: spec.type)
def test_graph_takes_the_steps_of_every_optimizer(optimizer: Any) -> None:
    found, expected = (build(lambda: mlp(nn.Tanh()), optimizer=optimizer) for _ in range(2))
    torch.testing.assert_close(train_with(interpreted, found, 8), expected.train(expected.eager, 8))
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
    torch.testing.assert_close(train_with(interpreted, found, 8), expected.train(expected.eager, 8))
    assert_close(found, expected)


@pytest.mark.usefixtures("min_alone")
@however_they_lie
@pytest.mark.parametrize("max_grad_norm", [1e-3, 1e3])
def test_graph_clips(max_grad_norm: float) -> None:
    found, expected = (build(lambda: mlp(nn.ReLU()), max_grad_norm=max_grad_norm) for _ in range(2))
    torch.testing.assert_close(train_with(interpreted, found, 8), expected.train(expected.eager, 8))
    assert_close(found, expected)


@pytest.mark.usefixtures("min_alone")
@however_they_lie
def test_graph_leaves_frozen_statistics_alone() -> None:
    found, expected = build(with_frozen_norm), build(with_frozen_norm)
    torch.testing.assert_close(train_with(interpreted, found, 8), expected.train(expected.eager, 8))
    assert_close(found, expected)
    assert found.network[1].running_mean.tolist() == [0.0] * 8


@pytest.mark.usefixtures("min_alone")
@pytest.mark.parametrize("min_alone", [WEIGHTS_ALONE], indirect=True)
def test_what_lies_alone_is_worked_on_in_place() -> None:
    case = build(lambda: mlp(nn.Tanh()), optimizer=optimizer_specs.Adam())
    case.train(case.eager, 1)
    tensors = RunTensors(case.eager, case.optimizer, case.rows)
    weight = case.network[0].weight
    assert tensors.recipe.groups == (("0.bias", "2.weight", "2.bias"), ("0.weight",))
    slots = case.optimizers[0].state[weight]
    own = [tensor.data_ptr() for tensor in (weight, slots["exp_avg"], slots["exp_avg_sq"])]
    assert [tensor.data_ptr() for tensor in tensors.tensors.state[3:6]] == own


# ---- the library


@pytest.mark.usefixtures("min_alone")
@pytest.mark.parametrize("min_alone", [JOINED, WEIGHTS_ALONE], indirect=True)
def test_library_takes_the_steps_of_the_eager_engine(folder: Path) -> None:
    found, expected = case_of_everything(), case_of_everything()
    losses = found.train(found.compiled(folder), 30)
    assert found.warnings == []
    torch.testing.assert_close(losses, expected.train(expected.eager, 30), rtol=1e-4, atol=1e-6)
    assert_close(found, expected)
    assert found.average
    assert found.average.num_updates == 30


@pytest.mark.usefixtures("min_alone")
@pytest.mark.parametrize(
    ("make", "min_alone"),
    [(case_of_everything, WEIGHTS_ALONE), (lambda: build(with_dropout), JOINED)],
    indirect=["min_alone"],
    ids=["everything", "dropout"],
)
@pytest.mark.parametrize(
    ("at_once", "step"), [(1, 13), (3, 13), (7, 13), (2, 1), (2, 2), (2, 3), (2, 4), (2, 8), (2, 9), (2, 10), (2, 18)]
)
def test_killed_and_resumed_is_undisturbed_bit_for_bit(make: Any, at_once: int, step: int, folder: Path) -> None:
    """Before, at and after the step of moving over, and around the ends of epochs, whose last steps are eager."""
    undisturbed, resumed = make(), make()
    torch.manual_seed(5)
    losses = undisturbed.train(undisturbed.compiled(folder, eager_steps=3), 25)
    killed = make()
    torch.manual_seed(5)
    begun = killed.train(killed.compiled(folder, eager_steps=3), step, at_once=at_once)
    rest = resumed.train(resume(resumed, killed, folder, step, eager_steps=3), 25, first=step, at_once=at_once)
    assert torch.equal(torch.cat([begun, rest]), losses)
    assert_identical(resumed, undisturbed)
    assert undisturbed.warnings == killed.warnings == resumed.warnings == []


@pytest.mark.parametrize("at_once", [1, 4])
def test_dropout_draws_other_masks_in_every_step(at_once: int, folder: Path) -> None:
    case = build(with_dropout, optimizer=optimizer_specs.SGD(learning_rate=1e-9))
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


def test_only_an_epochs_last_step_leaves_its_gradient_where_it_is_asked_for(folder: Path) -> None:
    case = case_of_everything()
    case.batching = case.eager.batching = Batching(ROWS_PER_STEP * 4, ROWS_PER_STEP)
    engine = case.compiled(folder, leave_gradient=True)
    order = torch.arange(ROWS_PER_STEP * 4)
    has_gradients = {}
    while engine.steps_done < 4:
        engine.run(case.rows, order, engine.steps_done, RATES[engine.steps_done : 4])
        has_gradients[engine.steps_done] = case.eager.parameters[0].grad is not None
    assert has_gradients == {1: True, 3: False, 4: True}


@pytest.mark.parametrize(
    ("batching", "leave_gradient"),
    [(Batching(NUM_ROWS, NUM_ROWS), True), (Batching(NUM_ROWS, ROWS_PER_STEP, accumulate_steps=10**6), False)],
)
def test_nothing_is_compiled_where_every_epochs_only_step_is_eager(
    batching: Batching, leave_gradient: bool, tmp_path: Path
) -> None:
    case = case_of_everything()
    case.batching = case.eager.batching = batching
    engine = case.compiled(tmp_path, leave_gradient=leave_gradient)
    assert len(case.train(engine, 3)) == 3
    assert engine._tensors is None  # nor is room made for a million batches
    assert case.warnings == []


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
        ({"device": "cuda:0"}, everything(), None),
        ({"precision": "bfloat16"}, mlp(), "float32"),
        ({"mixup": 0.2}, mlp(), "mixup"),
        ({"optimizer": optimizer_specs.Muon()}, mlp(), "muon"),
        ({"optimizer": optimizer_specs.NAdam()}, mlp(), None),
        ({"optimizer": optimizer_specs.NAdam(), "device": "cuda:0"}, mlp(), "nadam"),
        ({"num_threads": 2}, everything(), "embeddings"),
        ({"descent": DescentSpec(accumulate_steps=2)}, everything(), "batch norm"),
        ({"descent": DescentSpec(accumulate_steps=2)}, mlp(), None),
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

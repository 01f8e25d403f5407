"""Captured steps on a CUDA device are the eager engine's, and a killed run that goes on is an undisturbed one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.errors import EngineFailed
from app.learning import cuda_graph
from app.learning.cuda_graph import Turn
from app.specs import optimizers as specs
from tests.unit.learning.cases import (
    MSE,
    Case,
    assert_close,
    assert_identical,
    build,
    case_of_everything,
    resume,
    with_dropout,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = torch.device("cuda")


def case_with_dropout() -> Case:
    return build(with_dropout, optimizer=specs.Adam(), device=CUDA)


def test_captured_steps_are_those_of_the_eager_engine(tmp_path: Path) -> None:
    found, expected = case_of_everything(CUDA), case_of_everything(CUDA)
    losses = found.train(found.compiled(tmp_path), 30)
    assert found.warnings == []
    torch.testing.assert_close(losses, expected.train(expected.eager, 30), rtol=1e-3, atol=1e-5)
    assert_close(found, expected)


@pytest.mark.parametrize("at_once", [1, 3, 7])
def test_killed_and_resumed_is_undisturbed(at_once: int, tmp_path: Path) -> None:
    undisturbed, killed, resumed = (case_with_dropout() for _ in range(3))
    torch.manual_seed(5)
    losses = undisturbed.train(undisturbed.compiled(tmp_path, eager_steps=3), 25)
    torch.manual_seed(5)
    begun = killed.train(killed.compiled(tmp_path, eager_steps=3), 13, at_once=at_once)
    rest = resumed.train(resume(resumed, killed, tmp_path, 13, eager_steps=3), 25, first=13, at_once=at_once)
    assert torch.equal(torch.cat([begun, rest]), losses)
    assert_identical(resumed, undisturbed)
    assert undisturbed.warnings == killed.warnings == resumed.warnings == []


def test_dropout_draws_other_masks_in_every_step(tmp_path: Path) -> None:
    """Nothing else sets one step's loss apart from another's: all rows are alike, and nothing is learnt."""

    def losses(seed: int) -> list[float]:
        case = build(with_dropout, optimizer=specs.SGD(), device=CUDA)
        case.rows.inputs.fill_(1)
        case.rows.targets.fill_(0)
        torch.manual_seed(seed)
        found: list[float] = case.train(case.compiled(tmp_path), 8, rates=[0.0] * 8).tolist()
        assert case.warnings == []
        return found

    assert len(set(losses(1))) > 4
    assert losses(1) == losses(1) != losses(2)


@pytest.mark.parametrize("make", [lambda: case_of_everything(CUDA), case_with_dropout])
def test_a_capture_that_fails_leaves_all_as_it_was(
    make: Callable[[], Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch norm's statistics, of which zeros were seen, and the generator that masks are drawn from."""

    class Refused(torch.cuda.graph):
        def __enter__(self) -> None:
            raise RuntimeError("no graph today")

    found, expected = make(), make()
    monkeypatch.setattr(torch.cuda, "graph", Refused)
    torch.manual_seed(5)
    losses = found.train(found.compiled(tmp_path), 30)
    torch.manual_seed(5)
    torch.testing.assert_close(losses, expected.train(expected.eager, 30))
    assert_close(found, expected)
    assert found.warnings == ["training goes on without the compiled engine: RuntimeError: no graph today"]


def test_a_step_that_waits_for_the_card_is_not_captured(tmp_path: Path) -> None:
    """It is found out before the capture, in which it would leave the card's generator as if one went on."""

    def patient(outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        loss = MSE(outputs, targets, weights)
        return loss if loss.item() else loss * 2

    found = build(with_dropout, loss=patient, device=CUDA)
    torch.manual_seed(5)
    losses = found.train(found.compiled(tmp_path), 30)
    expected = build(with_dropout, loss=patient, device=CUDA)
    torch.manual_seed(5)
    torch.testing.assert_close(losses, expected.train(expected.eager, 30))
    assert "synchronizing CUDA operation" in "".join(found.warnings)


def test_a_capture_that_breaks_off_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of the card's state then; with the eager engine the run can be begun again."""

    class Breaking(Turn):
        def __call__(self) -> None:
            super().__call__()
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError("not this one")

    monkeypatch.setattr(cuda_graph, "Turn", Breaking)
    case = case_with_dropout()
    with pytest.raises(EngineFailed, match=r"not this one.* use engine eager"):
        case.train(case.compiled(tmp_path), 30)

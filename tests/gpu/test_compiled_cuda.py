"""Captured steps on a CUDA device are the eager engine's, and a killed run that goes on is an undisturbed one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from app.specs import optimizers as specs
from tests.unit.learning.cases import (
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
    case = build(with_dropout, optimizer=specs.SGD(learning_rate=1e-9), device=CUDA)
    case.rows.inputs.fill_(1)
    case.rows.targets.fill_(0)
    engine = case.compiled(tmp_path)
    losses = torch.cat([case.train(engine, 1), case.train(engine, 9, first=1)])
    assert len(set(losses.tolist())) > 1


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

"""Which engine: no compile that a run can't repay, and none where arithmetic rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.learning.cost import EAGER_START_SECONDS, StepCost

TOY = StepCost(num_modules=1, flops=600, num_threads=1)
SMALL = StepCost(num_modules=5, flops=1.2e6, num_threads=1)  # 32-64-64-1, 32 rows a step
WIDE = StepCost(num_modules=5, flops=4e9, num_threads=2)  # 256-1024-1024-1, 512 rows a step
CHAINED = StepCost(num_modules=5, flops=1.2e6, num_threads=1, num_chained=5)
UNFUSED = StepCost(num_modules=5, flops=1.2e6, num_threads=1, optimizer="rmsprop")
COSTS = st.builds(
    StepCost,
    st.integers(1, 1000),
    st.floats(0, 1e12),
    st.integers(1, 64),
    st.sampled_from(["sgd", "adam", "nadam"]),
    moved_bytes=st.floats(0, 1e12),
)
STEPS = st.integers(0, 10**12)
PACES = st.floats(0.1, 10.0)


@pytest.mark.parametrize(
    ("cost", "num_steps", "repaid"),
    [
        (TOY, 1_000, False),
        (TOY, 1_000_000, True),
        (SMALL, 10_000, False),
        (SMALL, 60_000, False),
        (UNFUSED, 60_000, True),
        (SMALL, 200_000, True),
        (CHAINED, 200_000, False),
        (CHAINED, 500_000, True),
        (WIDE, 10_000_000, False),
    ],
)
def test_repays_compiling(cost: StepCost, num_steps: int, repaid: bool) -> None:
    assert cost.repays_compiling(num_steps) is repaid


@pytest.mark.parametrize(
    ("pace", "compile_pace", "repaid"),
    [(1.0, 1.0, False), (2.0, 1.0, True), (2.0, 2.0, False), (1.0, 0.5, True), (0.5, 0.5, False)],
)
def test_what_was_measured_counts(pace: float, compile_pace: float, repaid: bool) -> None:
    assert SMALL.repays_compiling(100_000, pace, compile_pace) is repaid


def test_threads_are_woken_for_work_and_not_for_many_small_operations() -> None:
    def threads(flops: float, num_operations: float, moved_bytes: float = 0.0, num_cores: int = 64) -> int:
        cost = StepCost(5, flops, num_threads=1, moved_bytes=moved_bytes, num_operations=num_operations)
        return cost.threads_worth_waking(num_cores)

    assert threads(600, 10) == 1
    assert threads(2e9, 1000) == 1
    assert threads(2e9, 25) == 4, "a millisecond of work in an operation"
    assert threads(0, 25, moved_bytes=5e8) == 4
    assert threads(2e12, 25) == 64
    assert threads(2e12, 25, num_cores=2) == 2


@given(COSTS, STEPS, PACES, PACES)
def test_a_compile_that_is_chosen_is_repaid(cost: StepCost, num_steps: int, pace: float, compile_pace: float) -> None:
    if cost.repays_compiling(num_steps, pace, compile_pace):
        compiled = compile_pace * cost.compile_seconds + num_steps * pace * cost.compiled_seconds
        assert compiled < num_steps * pace * cost.eager_seconds


@given(COSTS, STEPS)
def test_what_may_not_repay_does_not(cost: StepCost, num_steps: int) -> None:
    if not cost.may_repay_compiling(num_steps):
        assert not cost.repays_compiling(num_steps, pace=10.0)


@given(COSTS, STEPS, STEPS)
def test_a_longer_run_is_no_less_worth_compiling(cost: StepCost, one: int, other: int) -> None:
    assert cost.repays_compiling(min(one, other)) <= cost.repays_compiling(max(one, other))


@given(COSTS, STEPS)
def test_the_eager_start_is_short(cost: StepCost, num_steps: int) -> None:
    steps = cost.eager_steps(num_steps)
    assert steps >= 1
    assert steps == 1 or (steps <= num_steps / 100 and steps * cost.eager_seconds <= EAGER_START_SECONDS)

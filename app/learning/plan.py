"""What a run will take, told before anything is allocated: parameters, memory, time, threads, engine, device."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import nn

from app.errors import InvalidInput, TooLarge
from app.learning.batches import Batching, plan_batches
from app.learning.chain import chained
from app.learning.compiled import why_not_compiled
from app.learning.cost import StepCost
from app.learning.devices import card_bytes, require_room, resolve_device, usable_cores
from app.learning.features import InputColumns, input_columns
from app.learning.fit import CHUNK_SECONDS, last_step
from app.learning.halves import HALVES, has_units
from app.learning.memory import FUSED, Memory, gathered_bytes, network_bytes, rows_bytes, run_memory, state_bytes
from app.learning.network import build_network, count_parameters, freeze, least_rows
from app.learning.rehearsal import Rehearsal, rehearse
from app.specs.network import LayeredNetwork
from app.specs.resolve import count_outputs
from app.specs.resolve_network import is_laid_out, num_training_rows
from app.specs.table import StoredData, Table
from app.specs.training import TrainingSpec

HALF_SPEED = 3.0  # of products in half the bits, in times of float32's, about, where a processor has units for them
UNITLESS_SPEED = 1 / 8  # and where it has none
UNFUSED_PASSES = 2.5  # how often an optimizer of many kernels reads and writes what it works on


@dataclass(frozen=True)
class Plan:
    num_parameters: int
    memory: Memory
    seconds_per_epoch: float

    @property
    def memory_bytes(self) -> int:
        return self.memory.num_bytes


def plan(
    spec: TrainingSpec,
    table: Table,
    *,
    device: str,
    max_parameters: int,
    max_rows_bytes: int = 2**62,
    busy: Callable[[], bool] = lambda: False,
) -> tuple[TrainingSpec, Plan, list[str]]:
    """Settle device, engine and threads of a spec that is resolved otherwise, and estimate the rest.

    `busy` tells whether other jobs run, which take memory that they will give back.

    Returns:
        The spec, the estimates, and sentences that the user should read.

    Raises:
        ShapeMismatch: layers that do not fit together.
        TooLarge: more than `max_parameters`, or than the memory that this machine or its card has, or has left.
        InvalidInput: a device that this machine does not have, or too few rows a gradient.
    """
    network, num_inputs = expected_network(spec, table)
    freeze(network, spec.freeze)
    num_parameters = count_parameters(network)
    if num_parameters > max_parameters:
        raise TooLarge(f"the network has {num_parameters:,} parameters; this service allows {max_parameters:,}")
    device = resolve_device(spec.device if spec.device != "auto" else device)
    if spec.precision == "tf32" and device == "cpu":
        raise InvalidInput.at(
            "/precision", "tf32 is of CUDA devices, and this run is on the CPU; use float32 or bfloat16"
        )
    least = least_rows(network, num_inputs)
    batching = plan_batches(spec.descent, num_training_rows(spec, table.num_rows), least=least)
    if batching.batch_size < least:
        raise InvalidInput.at(
            "/descent/batch_size" if spec.descent.batch_size == 1 else "/data",
            "batch_norm needs at least 2 rows a gradient; use a larger batch_size, or layer_norm",
        )
    num_outputs = count_outputs(spec, table)
    spec = spec.model_copy(update={"device": device})
    gradient = rehearse(spec, network, num_inputs, num_outputs, batching)
    cost, warnings = step_cost(spec, network, gradient), list[str]()
    cost = replace(cost, num_threads=spec.num_threads or cost.threads_worth_waking(usable_cores()))
    if cost.num_threads > usable_cores():
        warnings.append(
            f"num_threads is {cost.num_threads}, and this machine has {usable_cores()} cores: threads that share one "
            "wait for each other"
        )
    if spec.precision in HALVES and not has_units(spec.precision, device):
        warnings.append(
            f"this processor has no units for {spec.precision}, which takes several times as long on it as float32 does"
        )
    spec = spec.model_copy(update={"num_threads": cost.num_threads})
    spec = spec.model_copy(update={"engine": _engine(spec, network, cost, batching, warnings)})
    repays = cost.repays_compiling(num_steps_of_job(spec, batching, cost.eager_seconds))
    compiles = spec.engine == "compiled" or (spec.engine == "auto" and repays)
    seconds = cost.compiled_seconds if compiles else cost.eager_seconds
    learning = network_bytes(spec, network, gradient.peak_bytes)
    learning += gathered_bytes(batching, num_inputs, CHUNK_SECONDS / cost.eager_seconds)
    rows = rows_bytes(spec, table, num_inputs, num_outputs, max_rows_bytes)
    memory = run_memory(device, learning, rows, card_bytes(device))
    warnings += require_room(memory, device, busy=busy)
    warnings += _idle_settings(spec, batching)
    return spec, Plan(num_parameters, memory, batching.steps_per_epoch * seconds), warnings


def _idle_settings(spec: TrainingSpec, batching: Batching) -> Iterator[str]:
    """What was asked for and can't come to anything in a run as long as this one."""
    num_gradients = math.ceil(batching.num_rows / batching.batch_size)
    if num_gradients < batching.accumulate_steps:
        yield (
            f"an epoch has {num_gradients} gradient(s), and descent.accumulate_steps is {batching.accumulate_steps}: "
            "an update takes all of them, as in full_batch"
        )
    last, schedule = last_step(spec, batching), spec.schedule
    if not last:
        return
    if last < schedule.warmup_steps:
        yield (
            f"the run has {last} steps at most, and the rate rises for the first {schedule.warmup_steps}: it never "
            "gets to optimizer.learning_rate"
        )
    num_epochs = math.ceil(last / batching.steps_per_epoch)
    waits = {"step": ("every_epochs", 0), "plateau": ("patience", 1)}  # the first epoch is always better
    name, more = waits.get(schedule.type, ("", 0))
    if name and num_epochs <= getattr(schedule, name) + more:
        yield (
            f"the run has {num_epochs} epoch(s) at most, and schedule.{name} is {getattr(schedule, name)}: the "
            "learning rate never falls"
        )


def step_cost(spec: TrainingSpec, network: nn.Module, gradient: Rehearsal) -> StepCost:
    """Of a step on as many threads as the spec has been given: one, if it hasn't yet."""
    num_modules = sum(1 for module in network.modules() if not list(module.children()))
    num_chained = len(chained(network)) if isinstance(network, nn.Sequential) else 0
    speed = _speed(spec.precision, spec.device)
    weights_bytes = sum(parameter.nbytes for parameter in network.parameters())
    read_and_made = 3 * spec.descent.accumulate_steps * weights_bytes  # forward, backward, and their gradients
    return StepCost(
        num_modules=num_modules,
        flops=gradient.flops / speed + update_flops(spec, network) / _speed("bfloat16", spec.device),
        num_threads=spec.num_threads or 1,
        optimizer=spec.optimizer.type,
        num_chained=num_chained,
        moved_bytes=gradient.moved_bytes + update_bytes(spec, network),
        passed_bytes=max(0.0, gradient.moved_bytes - read_and_made),
        num_operations=gradient.num_operations,
    )


def _speed(precision: str, device: str) -> float:
    """Of products, in times of float32's."""
    if precision not in HALVES:
        return 1.0
    return HALF_SPEED if has_units(precision, device) else UNITLESS_SPEED


def update_bytes(spec: TrainingSpec, network: nn.Module) -> float:
    """What an update reads and writes: gradients, and twice the weights and the optimizer's state."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    trained_bytes = sum(parameter.nbytes for parameter in trained)
    num_passes = 1.0 if spec.optimizer.type in FUSED else UNFUSED_PASSES
    num_bytes = num_passes * (3 * trained_bytes + 2 * state_bytes(spec.optimizer, trained))
    num_more = bool(spec.ema_decay) + (spec.descent.max_grad_norm is not None)
    return num_bytes + 3 * num_more * trained_bytes


def update_flops(spec: TrainingSpec, network: nn.Module) -> float:
    """Of matrix products in bfloat16: Muon makes gradients orthogonal in five Newton-Schulz steps (Jordan 2024)."""
    if spec.optimizer.type != "muon":
        return 0.0
    shapes = [sorted(value.shape) for value in network.parameters() if value.requires_grad and value.ndim == 2]
    return sum(5.0 * (4 * short**2 * long + 2 * short**3) for short, long in shapes)


def num_steps(spec: TrainingSpec, batching: Batching, step_seconds: float) -> int:
    """How many steps of so many seconds a fit takes at most, by the nearest of its ends."""
    in_time = math.inf if spec.stop.max_seconds is None else int(spec.stop.max_seconds / step_seconds)
    return int(min(last_step(spec, batching) or math.inf, in_time))


def num_steps_of_job(spec: TrainingSpec, batching: Batching, step_seconds: float) -> int:
    """Of all fits of a cross-validation, which share what is compiled."""
    return num_steps(spec, batching, step_seconds) * spec.num_fits


def _engine(spec: TrainingSpec, network: nn.Module, cost: StepCost, batching: Batching, warnings: list[str]) -> str:
    """`auto` is left to the run where a compile is possible and may repay what it takes: there it is measured."""
    reason = None if spec.engine == "eager" else why_not_compiled(spec, network)
    if spec.engine == "compiled" and reason:
        warnings.append(f"the compiled engine can't run this, so the eager one does: {reason}")
    if spec.engine == "eager" or reason:
        return "eager"
    if spec.engine == "compiled":
        return "compiled"
    if spec.device != "cpu":
        return "eager"  # graphs on a card are for who asks for them
    may_repay = cost.may_repay_compiling(num_steps_of_job(spec, batching, cost.eager_seconds))
    return "auto" if may_repay else "eager"


def expected_network(spec: TrainingSpec, table: Table) -> tuple[nn.Sequential, int]:
    """The network on the meta device, and numbers per encoded row, as the table's profile lets expect them."""
    assert isinstance(spec.network, LayeredNetwork)
    front, num_inputs = _input_columns(spec, table)
    return build_network(spec.network, front, num_inputs, count_outputs(spec, table)), num_inputs


def encoded_bytes(spec: TrainingSpec, table: Table) -> int:
    """What all encoded rows take, as the table's profile lets expect them."""
    return 4 * table.num_rows * _input_columns(spec, table)[1]


def _input_columns(spec: TrainingSpec, table: Table) -> tuple[InputColumns, int]:
    assert isinstance(spec.data, StoredData)
    columns = [column for name in spec.data.features or () if (column := table.column(name))]
    return input_columns(columns, spec.features, flags=not is_laid_out(spec))

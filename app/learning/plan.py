"""What a run will take, told before anything is allocated: parameters, memory, time, threads, engine, device."""

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from app.errors import InvalidInput, TooLarge
from app.learning.batches import Batching, plan_batches
from app.learning.chain import chained
from app.learning.compiled import why_not_compiled
from app.learning.cost import StepCost
from app.learning.features import input_columns
from app.learning.network import build_network, count_parameters, freeze
from app.specs.network import LayeredNetwork
from app.specs.optimization import SGD
from app.specs.resolve import count_outputs
from app.specs.table import ColumnProfile, StoredData, Table
from app.specs.training import TrainingSpec, ValidationFolds, ValidationFraction

STATES_PER_PARAMETER = {"sgd": 0, "adagrad": 1, "rmsprop": 1, "muon": 1, "adadelta": 2}  # the others keep two
BASE_BYTES = 440 * 2**20  # a worker before it has a table
MAPPED_BYTES = 256 * 2**20  # parts on their way to the mapped file, and of it what is read at a time
MAX_KEPT_BYTES = 256 * 2**20  # the best epoch's weights are kept in memory up to this size, and on disk beyond
FLOPS_FOR_ALL_THREADS = 2e7  # a step below that is over before other threads are awake


@dataclass(frozen=True)
class Plan:
    num_parameters: int
    memory_bytes: int
    seconds_per_epoch: float


def plan(
    spec: TrainingSpec, table: Table, *, device: str, max_parameters: int, max_rows_bytes: int = 2**62
) -> tuple[TrainingSpec, Plan, list[str]]:
    """Settle device, engine and threads of a spec that is resolved otherwise, and estimate the rest.

    Returns:
        The spec, the estimates, and sentences that the user should read.

    Raises:
        ShapeMismatch: layers that do not fit together.
        TooLarge: more than `max_parameters`, or than this machine's memory.
        InvalidInput: a device that this machine does not have.
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
    batching = plan_batches(spec.descent, _num_training_rows(spec, table))
    flops = flops_per_row(network) * batching.rows_per_step
    num_threads = spec.num_threads or (usable_cores() if flops >= FLOPS_FOR_ALL_THREADS else 1)
    spec = spec.model_copy(update={"device": device, "num_threads": num_threads})
    cost, warnings = step_cost(network, batching, num_threads, spec.optimizer.type), list[str]()
    engine = _engine(spec, network, cost, batching, warnings)
    seconds = cost.compiled_seconds if engine == "compiled" else cost.eager_seconds
    rows_bytes = 4 * table.num_rows * num_inputs
    memory = BASE_BYTES + _memory_bytes(spec, network, num_parameters, batching)
    memory += 3 * rows_bytes if rows_bytes <= max_rows_bytes else MAPPED_BYTES
    if device == "cpu" and memory > (limit := memory_limit_bytes()):
        raise TooLarge(
            f"this run would take about {memory / 2**30:.1f} GiB, and this machine has {limit / 2**30:.1f} GiB",
            code="would_not_fit",
        )
    settled = spec.model_copy(update={"engine": engine})
    return settled, Plan(num_parameters, memory, batching.steps_per_epoch * seconds), warnings


def _num_training_rows(spec: TrainingSpec, table: Table) -> int:
    held_out = 0.0
    if isinstance(spec.validation, ValidationFraction):
        held_out = spec.validation.fraction
    elif isinstance(spec.validation, ValidationFolds):
        held_out = 1 / spec.validation.folds
    return max(1, round(table.num_rows * (1 - held_out)))


def flops_per_row(network: nn.Module) -> int:
    """Forward and backward: six for each weight of a matrix, as if convolutions used theirs once."""
    return 6 * sum(parameter.numel() for parameter in network.parameters() if parameter.ndim > 1)


def step_cost(network: nn.Module, batching: Batching, num_threads: int, optimizer: str) -> StepCost:
    num_modules = sum(1 for module in network.modules() if not list(module.children()))
    num_chained = len(chained(network)) if isinstance(network, nn.Sequential) else 0
    return StepCost(num_modules, flops_per_row(network) * batching.rows_per_step, num_threads, optimizer, num_chained)


def num_steps(spec: TrainingSpec, batching: Batching, cost: StepCost) -> int:
    """How many steps a run takes at most, by the nearest of its ends."""
    stop = spec.stop
    ends = [stop.max_steps, stop.max_epochs and stop.max_epochs * batching.steps_per_epoch]
    if stop.max_seconds is not None:
        ends.append(int(stop.max_seconds / cost.eager_seconds))
    return min(end for end in ends if end is not None)


def _engine(spec: TrainingSpec, network: nn.Module, cost: StepCost, batching: Batching, warnings: list[str]) -> str:
    """`auto` compiles where that is possible and repays what it takes; graphs on a card are for who asks for them."""
    reason = None if spec.engine == "eager" else why_not_compiled(spec, network)
    if spec.engine == "compiled" and reason:
        warnings.append(f"the compiled engine can't run this, so the eager one does: {reason}")
    if spec.engine == "eager" or reason:
        return "eager"
    if spec.engine == "auto" and spec.device != "cpu":
        return "eager"  # the cost model knows no card
    repays = cost.repays_compiling(num_steps(spec, batching, cost))
    return "compiled" if spec.engine == "compiled" or repays else "eager"


def memory_limit_bytes() -> int:
    """What this machine, or the control group that the process is in, has for it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    control_group = Path("/sys/fs/cgroup/memory.max")
    if control_group.exists() and (text := control_group.read_text().strip()).isdigit():
        limits.append(int(text))
    return min(limits)


def expected_network(spec: TrainingSpec, table: Table) -> tuple[nn.Module, int]:
    """The network on the meta device, and numbers per encoded row, as the table's profile lets expect them."""
    assert isinstance(spec.network, LayeredNetwork)
    front, num_inputs = input_columns(_inputs(spec, table), spec.features)
    return build_network(spec.network, front, num_inputs, count_outputs(spec, table)), num_inputs


def encoded_bytes(spec: TrainingSpec, table: Table) -> int:
    """What all encoded rows take, as the table's profile lets expect them."""
    return 4 * table.num_rows * input_columns(_inputs(spec, table), spec.features)[1]


def _inputs(spec: TrainingSpec, table: Table) -> list[ColumnProfile]:
    assert isinstance(spec.data, StoredData)
    return [column for name in spec.data.features or () if (column := table.column(name))]


def _memory_bytes(spec: TrainingSpec, network: nn.Module, num_parameters: int, batching: Batching) -> int:
    slots = STATES_PER_PARAMETER.get(spec.optimizer.type, 2)
    if isinstance(spec.optimizer, SGD) and spec.optimizer.momentum:
        slots = 1
    copies = 2 + slots + bool(spec.ema_decay)  # weights, gradients, optimizer state, their moving average
    if spec.stop.restore_best and 4 * num_parameters <= MAX_KEPT_BYTES:
        copies += 1
    activations = sum(parameter.shape[0] for parameter in network.parameters() if parameter.ndim > 1)
    if spec.activation_checkpointing and isinstance(spec.network, LayeredNetwork):
        activations = round(activations / max(1, math.isqrt(len(spec.network.layers))))
    return 4 * (copies * num_parameters + 3 * batching.batch_size * activations)


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_device(device: str) -> str:
    """`auto` and `cuda` to a device that is there.

    Raises:
        InvalidInput: there is none of that kind.
    """
    num_cards = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and not num_cards):
        return "cpu"
    index = int(device.partition(":")[2] or 0)
    if index >= num_cards:
        have = f"it has {num_cards} CUDA device(s)" if num_cards else "it has no CUDA device"
        raise InvalidInput.at("/device", f"this machine has no {device}: {have}; use cpu or auto")
    return f"cuda:{index}"


def devices() -> list[dict[str, str | int]]:
    """What this machine can train on, with memory in bytes."""
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpu: dict[str, str | int] = {"device": "cpu", "name": platform.machine(), "memory_bytes": memory}
    return [cpu] + [
        {"device": f"cuda:{index}", "name": card.name, "memory_bytes": card.total_memory}
        for index, card in enumerate(cards)
    ]


def memory_of_cards() -> list[tuple[int, int]]:
    """Bytes of each CUDA device that are free, and all of them."""
    return [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]

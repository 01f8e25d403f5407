"""What a run will take, told before anything is allocated: parameters, memory, time, threads, engine, device."""

import os
import platform
from dataclasses import dataclass

import torch
from torch import nn

from app.errors import InvalidInput, TooLarge
from app.learning.batches import plan_batches
from app.learning.features import input_columns
from app.learning.network import build_network, count_parameters, freeze
from app.specs.network import LayeredNetwork
from app.specs.optimization import SGD
from app.specs.resolve import count_outputs
from app.specs.table import ColumnProfile, StoredData, Table
from app.specs.training import TrainingSpec, ValidationFraction

STATES_PER_PARAMETER = {"sgd": 0, "adagrad": 1, "rmsprop": 1, "muon": 1, "adadelta": 2}  # the others keep two
BASE_BYTES = 440 * 2**20  # a worker before it has a table
MAX_KEPT_BYTES = 256 * 2**20  # the best epoch's weights are kept in memory up to this size, and on disk beyond
DISPATCH_SECONDS = 12e-6  # of one module, forward, backward and update
FLOPS_PER_THREAD = 2e10
FLOPS_FOR_ALL_THREADS = 2e7  # a step below that is over before other threads are awake


@dataclass(frozen=True)
class Plan:
    num_parameters: int
    memory_bytes: int
    seconds_per_epoch: float


def plan(spec: TrainingSpec, table: Table, *, device: str, max_parameters: int) -> tuple[TrainingSpec, Plan]:
    """Settle device, engine and threads of a spec that is resolved otherwise, and estimate the rest.

    Raises:
        ShapeMismatch: layers that do not fit together.
        TooLarge: more than `max_parameters`.
        InvalidInput: a device that this machine does not have.
    """
    network, num_inputs = expected_network(spec, table)
    freeze(network, spec.freeze)
    num_parameters = count_parameters(network)
    if num_parameters > max_parameters:
        raise TooLarge(f"the network has {num_parameters:,} parameters; this service allows {max_parameters:,}")
    held_out = spec.validation.fraction if isinstance(spec.validation, ValidationFraction) else 0
    num_rows = max(1, round(table.num_rows * (1 - held_out)))
    batching = plan_batches(spec.descent, num_rows)
    flops_per_step = 6 * num_parameters * batching.rows_per_step
    num_threads = spec.num_threads or (usable_cores() if flops_per_step >= FLOPS_FOR_ALL_THREADS else 1)
    num_modules = sum(1 for module in network.modules() if not list(module.children()))
    seconds_per_step = num_modules * DISPATCH_SECONDS + flops_per_step / (FLOPS_PER_THREAD * num_threads)
    settled = spec.model_copy(
        update={
            "device": resolve_device(spec.device if spec.device != "auto" else device),
            "engine": "eager",
            "num_threads": num_threads,
        }
    )
    memory = BASE_BYTES + _memory_bytes(
        settled, network, num_parameters, table.num_rows * num_inputs, batching.batch_size
    )
    return settled, Plan(num_parameters, memory, batching.steps_per_epoch * seconds_per_step)


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


def _memory_bytes(spec: TrainingSpec, network: nn.Module, num_parameters: int, num_cells: int, batch_size: int) -> int:
    slots = STATES_PER_PARAMETER.get(spec.optimizer.type, 2)
    if isinstance(spec.optimizer, SGD) and spec.optimizer.momentum:
        slots = 1
    copies = 2 + slots + bool(spec.ema_decay)  # weights, gradients, optimizer state, their moving average
    if spec.stop.restore_best and 4 * num_parameters <= MAX_KEPT_BYTES:
        copies += 1
    activations = sum(parameter.shape[0] for parameter in network.parameters() if parameter.ndim > 1)
    return 4 * (copies * num_parameters + 3 * num_cells + 3 * batch_size * activations)


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

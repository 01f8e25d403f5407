"""What a run takes of memory, told before anything is allocated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from app.learning.batches import Batching
from app.learning.evaluate import MAX_JUDGED
from app.learning.optimizers import build_optimizers
from app.learning.run_tensors import MIN_ALONE
from app.learning.steps import MAX_GATHER_BYTES
from app.specs.table import Kind, StoredData, Table
from app.specs.training import TrainingSpec, ValidationFraction

CUDA_BUILD_BYTES = 0 if torch.version.cuda is None else 174 * 2**20  # more of torch, also where there is no card
BASE_BYTES = 340 * 2**20 + CUDA_BUILD_BYTES  # a worker's own: Python, torch, and what libraries set up at first use
SHARED_BYTES = 300 * 2**20 + CUDA_BUILD_BYTES  # of these, what it shares with the process that it was forked from
CARD_BASE_BYTES = 512 * 2**20  # what a process takes of a card before its first tensor
MAX_KEPT_BYTES = 256 * 2**20  # the best epoch's weights are kept in memory up to this size, and on disk beyond
FUSED = ("sgd", "adam", "adamw")  # the others make tensors of a parameter's size on the way to an update

PART_ROWS, PART_CELLS = 2**16, 2**22  # a part of a table on its way to tensors
PART_BYTES = 28  # of its cell: as it was, in float64 twice, in float32
STORED_BYTES: dict[Kind, float] = {"numeric": 8, "datetime": 8, "boolean": 0.125, "categorical": 24, "text": 24}
MASK_BYTES = 3  # of a row, while rows are made ready: what is usable, learnt from, held out
DRAW_BYTES = 4  # of a row: its place in a drawn order
SHARE_BYTES = 16  # of a row that is drawn by its chance; half of it only until all are added up
WEIGHT_BYTES = 4
JUDGED_BYTES = 40  # of an output that is judged: in float32 twice, then in float64
SCORE_BYTES = 10  # of a row that is judged with two classes: its score and its class, also sorted


@dataclass(frozen=True)
class Memory:
    """The most of it that a run takes at once, on the host and on a card.

    Pages of a mapped file are not in it: the system keeps as many as it has room for. `shared_bytes`: what of the
    host's is there before, because the worker shares it with the fork server.
    """

    host_bytes: int
    card_bytes: int = 0
    shared_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        return self.host_bytes + self.card_bytes

    @property
    def new_bytes(self) -> int:
        return self.host_bytes - self.shared_bytes


@dataclass(frozen=True)
class RowsBytes:
    """What a table's rows take beside each other: encoded ones all along; what they are made from, until they are;
    what is kept of them to learn from; and what their outputs take when they are judged.
    """

    encoded: int
    preparing: int
    learning: int
    judging: int


def run_memory(device: str, learning_bytes: int, rows: RowsBytes, on_card: int = 0) -> Memory:
    """One thing after the other: rows are made ready, then learnt from and judged by turns.

    `on_card`: what the card has in all, half of which, beside the network, rows may stay in.
    """
    judging = max(learning_bytes, rows.judging) if device == "cpu" else rows.judging
    host = BASE_BYTES + rows.encoded + max(rows.preparing, rows.learning + judging)
    if device == "cpu":
        return Memory(host, 0, SHARED_BYTES)
    needed = CARD_BASE_BYTES + learning_bytes
    stays = rows.encoded <= (on_card - needed) / 2
    return Memory(host, needed + rows.encoded if stays else needed, SHARED_BYTES)


def network_bytes(spec: TrainingSpec, network: nn.Module, gradient_bytes: int) -> int:
    """All that an update takes, of which its gradient takes so much at its peak, weights included."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    trained_bytes = sum(parameter.nbytes for parameter in trained)
    weights_bytes = sum(parameter.nbytes for parameter in network.parameters())
    kept = state = state_bytes(spec.optimizer, trained) + (trained_bytes if spec.ema_decay else 0)
    if spec.engine != "eager":
        kept += joined_bytes(spec, trained)
    if spec.stop.restore_best and weights_bytes <= MAX_KEPT_BYTES:
        kept += weights_bytes
    if spec.optimizer.learning_rate == "auto":
        kept = max(kept, state + trained_bytes)  # what a trial's steps are taken back to
    update = weights_bytes + trained_bytes
    if spec.optimizer.type not in FUSED:
        update += trained_bytes if spec.device != "cpu" else 2 * max(parameter.nbytes for parameter in trained)
    return kept + max(gradient_bytes, update)


def joined_bytes(spec: TrainingSpec, trained: Sequence[nn.Parameter]) -> int:
    """Of the copies that a compiled run works on: small parameters, with their state, laid end to end."""
    small = [parameter for parameter in trained if parameter.numel() < MIN_ALONE]
    own = sum(parameter.nbytes for parameter in small)
    return (state_bytes(spec.optimizer, small) if small else 0) + (2 * own if spec.ema_decay else own)


def state_bytes(optimizer: Any, parameters: Sequence[nn.Parameter]) -> int:
    """Of the optimizer's state, seen in a step with a number for each parameter."""
    if optimizer.learning_rate == "auto":
        optimizer = optimizer.model_copy(update={"learning_rate": 1e-3})
    ones = {num_axes: nn.Parameter(torch.zeros([1] * num_axes)) for num_axes in {value.ndim for value in parameters}}
    for one in ones.values():
        one.grad = torch.zeros_like(one)
    num_copies = dict.fromkeys(ones, 0)
    for built in build_optimizers(optimizer, ones.values()):
        built.step()
        for kept_for, state in built.state.items():
            alike = [value for value in state.values() if torch.is_tensor(value) and value.shape == kept_for.shape]
            num_copies[kept_for.ndim] = len(alike)
    return sum(num_copies[parameter.ndim] * parameter.nbytes for parameter in parameters)


def rows_bytes(spec: TrainingSpec, table: Table, num_inputs: int, num_outputs: int, max_rows_bytes: int) -> RowsBytes:
    """Of a table whose encoded rows stay in memory up to `max_rows_bytes`, and go to a mapped file beyond."""
    assert isinstance(spec.data, StoredData)
    features = [column for name in spec.data.features or () if (column := table.column(name))]
    encoded, num_rows = 4 * table.num_rows * num_inputs, table.num_rows
    num_judged = round(_judged_share(spec) * num_rows)
    truth, seen = _target_bytes(spec)
    weight = WEIGHT_BYTES if spec.data.sample_weight or getattr(spec.loss, "class_weight", None) else 0
    order = DRAW_BYTES if spec.descent.variant != "full_batch" else 0
    order += SHARE_BYTES if spec.descent.sampling == "class_balanced" else 0
    known = num_rows * (MASK_BYTES + DRAW_BYTES + 2 * truth + weight)
    part = PART_BYTES * num_inputs * min(num_rows, part_rows(len(features)))
    learning = num_rows * (order + seen + weight) + num_judged * truth
    judging = JUDGED_BYTES * min(num_judged * num_outputs, MAX_JUDGED)
    judging += num_judged * SCORE_BYTES if spec.task == "binary" else 0
    if encoded > max_rows_bytes:
        return RowsBytes(0, known + part, learning, judging)
    stored = num_rows * sum(STORED_BYTES[column.kind] for column in features)
    return RowsBytes(encoded, round(stored) + known + part, learning, judging)


def _target_bytes(spec: TrainingSpec) -> tuple[int, int]:
    """Of a row's targets: as metrics want them, and as the loss does."""
    assert isinstance(spec.data, StoredData)
    if spec.task in ("binary", "multiclass"):
        return 2, 8 if spec.loss.type == "cross_entropy" else 4
    return 8 * len(spec.data.targets), 4 * len(spec.data.targets)


def _judged_share(spec: TrainingSpec) -> float:
    """How many of the rows are judged at once, at most: all where none are held out, or another table's."""
    return spec.validation.fraction if isinstance(spec.validation, ValidationFraction) else 1.0


def part_rows(num_columns: int) -> int:
    """How many rows become tensors at a time, a power of two: on the way, they take several times their size."""
    return 1 << max(1, min(PART_ROWS, PART_CELLS // num_columns)).bit_length() - 1


def gathered_bytes(batching: Batching, num_inputs: int, steps_at_once: float) -> int:
    """The rows of several steps, put side by side, and of those that come next."""
    if batching.steps_per_epoch == 1:
        return 0
    step_bytes = 4 * num_inputs * batching.rows_per_step
    most = min(batching.steps_per_epoch, steps_at_once, MAX_GATHER_BYTES / step_bytes)
    return round(2 * step_bytes * max(1, most))

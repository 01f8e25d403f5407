"""What is foretold of a gradient is what a real one takes, for every kind of layer."""

import math
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from app.learning import rehearsal
from app.learning.batches import Batching
from app.learning.layers import build_sequence
from app.learning.modules import reshape
from app.learning.rehearsal import HEAP_SHARE, KEPT_FREE_BYTES, Ledger, Rehearsal, rehearse
from tests.samples import posted
from tests.unit.learning.test_network import EXAMPLES, Shape, layer

MIB = 2**20
RECURRENT = ("gru", "lstm")
DENSE: list[dict[str, Any]] = [{"type": "linear", "out_features": 64}, {"type": "gelu"}] * 8
ATTENTION = [{"type": "transformer_encoder", "num_heads": 2, "feedforward_features": 8, "num_layers": 2}]


def of(layers: list[dict[str, Any]], shape: Shape, batching: Batching, loss: str = "mae", **spec: Any) -> Rehearsal:
    with torch.device("meta"):
        module, out = build_sequence([layer(fields) for fields in layers], shape, "")
        network = nn.Sequential(OrderedDict(input=reshape(shape), layers=nn.Sequential(*module, nn.Flatten())))
    asked = posted(loss={"type": loss}, **spec)
    return rehearse(asked, network, math.prod(shape), math.prod(out), batching)


def really(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next ones be with memory, and every turn of a loop."""
    monkeypatch.setattr(rehearsal, "FakeTensorMode", lambda **_: nullcontext())
    monkeypatch.setattr(rehearsal, "AllPlacesAtOnce", lambda rnn, _ledger: rnn)


@pytest.mark.parametrize(("fields", "shape", "_out"), [case for case in EXAMPLES if case[0]["type"] not in RECURRENT])
def test_every_layer_takes_what_was_foretold(
    fields: dict[str, Any], shape: Shape, _out: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [{"type": "prelu"}] * (fields["type"] != "embedding") + [fields]
    foretold = of(layers, shape, Batching(50, 50))
    really(monkeypatch)
    assert foretold == of(layers, shape, Batching(50, 50))


@pytest.mark.parametrize(
    ("fields", "least"),
    [
        ({"type": "gru", "hidden_features": 32}, 0.75),
        ({"type": "gru", "hidden_features": 32, "num_layers": 2, "bidirectional": True}, 0.75),
        ({"type": "lstm", "hidden_features": 32, "num_layers": 2}, 0.5),  # much of oneDNN's workspace is never touched
    ],
)
def test_recurrent_layers_take_about_what_was_foretold(
    fields: dict[str, Any], least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    foretold = of([fields], (20, 16), Batching(50, 50))
    really(monkeypatch)
    found = of([fields], (20, 16), Batching(50, 50))
    assert least < foretold.peak_bytes / found.peak_bytes < 1.25


@pytest.mark.parametrize(
    ("layers", "shape", "batching", "spec"),
    [
        (DENSE, (64,), Batching(400, 100), {"precision": "bfloat16"}),
        (DENSE, (64,), Batching(400, 100), {"activation_checkpointing": True}),
        (DENSE, (64,), Batching(400, 50, 4), {}),
        (DENSE, (64,), Batching(75, 50, 2), {"precision": "bfloat16", "activation_checkpointing": True}),
        (ATTENTION, (7, 4), Batching(400, 100), {"precision": "bfloat16"}),
    ],
)
def test_whatever_the_precision_and_the_parts(
    layers: list[dict[str, Any]], shape: Shape, batching: Batching, spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    foretold = of(layers, shape, batching, **spec)
    really(monkeypatch)
    monkeypatch.setattr(rehearsal, "PARTS", 1000)
    assert foretold.peak_bytes == pytest.approx(of(layers, shape, batching, **spec).peak_bytes, rel=0.05)


@pytest.mark.parametrize(("num_freed", "kept"), [(0, 0), (1, HEAP_SHARE * 20 * MIB), (10, KEPT_FREE_BYTES)])
def test_the_heap_keeps_some_of_what_is_freed(num_freed: int, kept: float) -> None:
    with FakeTensorMode(), Ledger() as ledger:
        freed = [torch.empty(20 * MIB, dtype=torch.uint8) for _ in range(num_freed)]
        freed.clear()
        before, large = ledger.peak, torch.empty(1000 * MIB, dtype=torch.uint8)
        assert before == num_freed * HEAP_SHARE * 20 * MIB
        assert ledger.peak == large.nbytes + kept


def test_a_convolution_lays_out_anew_what_it_goes_over() -> None:
    convolution, size = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1), 4 * 1024 * 64 * 32 * 32
    with FakeTensorMode() as fake, Ledger() as forward:
        x, weight = torch.empty(1024, 64, 32, 32), torch.empty(64, 64, 1, 1)
        y = torch.ops.aten.convolution(x, weight, None, *convolution)
    assert forward.peak == pytest.approx(3 * size, rel=0.001)
    with fake, Ledger() as backward:
        torch.ops.aten.convolution_backward(y, x, weight, None, *convolution, [True, True, False])
    assert backward.peak == pytest.approx(3 * size, rel=0.001), "the inputs' gradient, and both that it goes over"


def test_what_takes_less() -> None:
    whole = of(DENSE, (64,), Batching(1000, 1000)).peak_bytes
    assert of(DENSE, (64,), Batching(1000, 1000), precision="bfloat16").peak_bytes < 0.8 * whole
    assert of(DENSE, (64,), Batching(1000, 1000), activation_checkpointing=True).peak_bytes < 0.8 * whole
    assert of(DENSE, (64,), Batching(1000, 100, 10)).peak_bytes < 0.4 * whole


def test_operations_are_counted_at_every_place() -> None:
    linear, again = (
        {"type": "linear", "out_features": 3, "bias": False},
        {"type": "linear", "out_features": 2, "bias": False},
    )
    forward, backward = 2 * (4 * 3 + 3 * 2), 2 * (4 * 3 + 2 * 3 * 2)  # no gradient of the inputs is needed
    assert of([linear, again], (4,), Batching(10, 5)).flops == 5 * (forward + backward)
    assert of([linear, again], (4,), Batching(100, 5, 10)).flops == 50 * (forward + backward)
    image = {"type": "conv2d", "out_channels": 3, "kernel_size": 3, "bias": False}
    assert of([image], (2, 8, 8), Batching(5, 5)).flops == 5 * 2 * (2 * 3 * 3 * 3 * 8 * 8) * 2
    words = {"type": "embedding", "num_embeddings": 100_000, "embedding_features": 8}
    assert of([words], (4,), Batching(5, 5)).flops == 0


def test_what_an_operation_reads_and_writes() -> None:
    def moved(operation: Callable[[Tensor, Tensor], object]) -> int:
        with FakeTensorMode(), Ledger() as ledger:
            given = torch.empty(100, 8), torch.empty(100, 8)
            operation(*given)
        return ledger.moved_bytes

    size = 4 * 100 * 8
    assert moved(lambda a, b: a + b) == 3 * size
    assert moved(lambda a, b: a.add_(b)) == 3 * size
    assert moved(lambda a, b: a @ b.T) == 2 * size + 4 * 100 * 100
    assert moved(lambda a, b: (a.detach().view(8, 100).T, torch.empty_like(b), b.new_empty(5))) == 0
    assert moved(lambda a, b: a.zero_()) == moved(lambda a, b: torch.zeros_like(a)) == size
    assert moved(lambda a, b: a.copy_(b)) == 2 * size
    assert moved(lambda a, b: a + b[:1].expand(100, 8)) == 2 * size + 4 * 8
    assert moved(lambda a, b: a.index_select(0, torch.empty(2, dtype=torch.int64))) == 2 * (4 * 2 * 8)
    rows = torch.ops.aten.embedding
    assert moved(lambda a, b: rows(a, torch.empty(2, dtype=torch.int64))) == 2 * (4 * 2 * 8)


def test_recurrent_layers_have_operations_at_every_place() -> None:
    def count(num_places: int, kind: str = "gru", **fields: Any) -> float:
        layer = {"type": kind, "hidden_features": 8} | fields
        return of([layer], (num_places, 4), Batching(5, 5)).num_operations

    per_place = count(11) - count(10)
    assert (per_place, count(11, "lstm") - count(10, "lstm")) == (30, 10)
    assert count(1000) == count(10) + 990 * per_place
    assert count(1000, num_layers=2) == pytest.approx(2 * count(1000), rel=0.01)
    assert count(1000, bidirectional=True) == pytest.approx(2 * count(1000), rel=0.01)


def test_a_table_of_words_is_moved_with_its_gradient_and_in_every_part_of_a_step() -> None:
    def moved(num_words: int, batching: Batching) -> float:
        words = {"type": "embedding", "num_embeddings": num_words, "embedding_features": 8}
        return of([words], (4,), batching).moved_bytes

    one = Batching(5, 5)
    assert moved(100_000, one) - moved(50_000, one) == 4 * 8 * 50_000
    assert moved(100_000, Batching(100, 5, 10)) > 10 * moved(100_000, one)


def test_the_network_stays_on_the_meta_device_and_no_number_is_drawn() -> None:
    with torch.device("meta"):
        network = nn.Sequential(
            OrderedDict(input=nn.Identity(), layers=nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.5)))
        )
    before = torch.get_rng_state()
    rehearse(posted(loss={"type": "mse"}, activation_checkpointing=True), network.eval(), 4, 1, Batching(5, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.is_meta and parameter.grad is None for parameter in network.parameters())
    assert not network.training

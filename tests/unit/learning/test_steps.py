"""The eager engine: updates as a loop by hand makes them, however rows are batched, gathered and chunked."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.learning import steps
from app.learning.averaging import WeightAverage
from app.learning.batches import Batching, epoch_order
from app.learning.losses import LossFunction, build_loss
from app.learning.optimizers import build_optimizers
from app.learning.rows import Rows
from app.learning.steps import EagerSteps
from app.specs.losses import CrossEntropyLoss, PlainLoss
from app.specs.optimizers import SGD

NUM_ROWS = 23
MSE, CROSS_ENTROPY = build_loss(PlainLoss(type="mse")), build_loss(CrossEntropyLoss())
CPU = torch.device("cpu")


def rows(*, weighted: bool, classes: bool = False) -> Rows:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn((NUM_ROWS, 4), generator=generator)
    targets = torch.randint(3, (NUM_ROWS,), generator=generator) if classes else inputs[:, :3].sin()
    weights = torch.rand(NUM_ROWS, generator=generator) if weighted else None
    if weights is not None:
        weights[5:9] = 0  # a whole part of an accumulated step without weight
    return Rows(inputs, targets, weights)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Identity(), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))


def train(
    batching: Batching, data: Rows, loss: LossFunction = MSE, epochs: int = 2, chunk: int = 100, **options: Any
) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and losses after some epochs in the order of seed 0."""
    network = net()
    optimizers = build_optimizers(SGD(learning_rate=0.1, momentum=0.5), network.parameters())
    engine = EagerSteps(network, loss, optimizers, batching, **({"max_grad_norm": None} | options))
    losses: list[float] = []
    for epoch in range(epochs):
        order = epoch_order(batching, 0, epoch, CPU)
        for first in range(0, batching.steps_per_epoch, chunk):
            num = min(chunk, batching.steps_per_epoch - first)
            losses += engine.run(data, order, first, [0.1] * num).tolist()
    return network.state_dict(), losses


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("weighted", [False, True])
def test_equals_a_loop_by_hand(weighted: bool) -> None:
    batching, data, network = Batching(NUM_ROWS, 5), rows(weighted=weighted), net()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.5)
    losses = []
    for epoch in range(2):
        order = epoch_order(batching, 0, epoch, CPU)
        assert order is not None
        for index in order.split(5):
            optimizer.zero_grad()
            weights = torch.ones(len(index)) if data.weights is None else data.weights[index]
            per_row = (network(data.inputs[index]) - data.targets[index]).square().mean(1)
            loss = (per_row * weights).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    found, found_losses = train(batching, data)
    assert_same(found, network.state_dict(), 1e-6)
    assert found_losses == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_full_batch_is_a_mini_batch_of_all_rows(weighted: bool) -> None:
    data = rows(weighted=weighted)
    full, _ = train(Batching(NUM_ROWS, NUM_ROWS, shuffle=False), data)
    mini, _ = train(Batching(NUM_ROWS, NUM_ROWS), data)
    assert_same(full, mini, 1e-6)


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("batch_size", "accumulate_steps"), [(4, 2), (1, 8), (2, 4), (3, 100)])
def test_accumulated_gradients_are_those_of_one_big_batch(
    classes: bool, weighted: bool, batch_size: int, accumulate_steps: int
) -> None:
    data, loss = rows(weighted=weighted, classes=classes), CROSS_ENTROPY if classes else MSE
    whole = min(NUM_ROWS, batch_size * accumulate_steps)
    one, one_losses = train(Batching(NUM_ROWS, whole), data, loss)
    parts, parts_losses = train(Batching(NUM_ROWS, batch_size, accumulate_steps), data, loss)
    assert_same(one, parts, 1e-6)
    assert parts_losses == pytest.approx(one_losses, rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_of_steps_change_nothing(chunk: int) -> None:
    data = rows(weighted=True)
    batching = Batching(NUM_ROWS, 4)
    assert train(batching, data, chunk=chunk)[1] == train(batching, data)[1]
    assert_same(train(batching, data, chunk=chunk)[0], train(batching, data)[0])


@pytest.mark.parametrize("num_bytes", [1, 100, 150])
def test_gathering_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    expected = train(Batching(NUM_ROWS, 4), rows(weighted=True))
    monkeypatch.setattr(steps, "MAX_GATHER_BYTES", num_bytes)
    found = train(Batching(NUM_ROWS, 4), rows(weighted=True))
    assert found[1] == expected[1]
    assert_same(found[0], expected[0])


def test_each_step_has_its_learning_rate() -> None:
    network, data = net(), rows(weighted=False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizers = build_optimizers(SGD(learning_rate=1.0), network.parameters())
    engine = EagerSteps(network, MSE, optimizers, Batching(NUM_ROWS, 5, shuffle=False), max_grad_norm=None)
    engine.run(data, None, 0, [0.0, 0.0])
    assert_same(network.state_dict(), before)
    first = MSE(network(data.inputs[10:15]), data.targets[10:15], None)
    gradients = torch.autograd.grad(first, list(network.parameters()))
    engine.run(data, None, 2, [0.25])
    for value, start, gradient in zip(network.parameters(), before.values(), gradients, strict=True):
        torch.testing.assert_close(value, start - 0.25 * gradient)


@pytest.mark.parametrize("accumulate_steps", [1, 3])
def test_the_norm_of_the_mean_gradient_is_clipped(accumulate_steps: int) -> None:
    network, data = net(), rows(weighted=False)
    before = [value.detach().clone() for value in network.parameters()]
    batching = Batching(NUM_ROWS, 4, accumulate_steps, shuffle=False)
    optimizers = build_optimizers(SGD(learning_rate=1.0), network.parameters())
    EagerSteps(network, MSE, optimizers, batching, max_grad_norm=1e-3).run(data, None, 0, [1.0])
    moved = [after - start for after, start in zip(network.parameters(), before, strict=True)]
    assert torch.nn.utils.get_total_norm(moved).item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(("batch_size", "num_parts"), [(23, 1), (22, 1), (11, 2), (7, 3), (1, 11)])
def test_the_mean_loss_of_rows_is_that_of_their_parts(batch_size: int, num_parts: int) -> None:
    """Batch norms go by the part, which has two rows at least; dropout is off, and no number is drawn."""
    norm, data = nn.BatchNorm1d(8), rows(weighted=False)
    network = nn.Sequential(nn.Identity(), nn.Sequential(nn.Linear(4, 8), norm, nn.Dropout(0.5), nn.Linear(8, 3)))
    engine = EagerSteps(network, MSE, [], Batching(NUM_ROWS, batch_size), max_grad_norm=None)
    expected, drawn = 0.0, torch.get_rng_state()
    for x, y in zip(data.inputs.tensor_split(num_parts), data.targets.tensor_split(num_parts), strict=True):
        hidden = nn.functional.linear(x, network[1][0].weight, network[1][0].bias)
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + norm.eps).sqrt()
        expected += len(x) * (network[1][3](hidden) - y).square().mean().item() / NUM_ROWS
    assert engine.mean_loss(data) == pytest.approx(expected, rel=1e-5)
    assert network.training
    assert norm.training
    assert torch.equal(torch.get_rng_state(), drawn)


def test_frozen_parameters_stay() -> None:
    network, data = net(), rows(weighted=False)
    network[1][0].requires_grad_(False)
    kept = network[1][0].weight.clone()
    trained = [value for value in network.parameters() if value.requires_grad]
    optimizers = build_optimizers(SGD(learning_rate=0.1), trained)
    EagerSteps(network, MSE, optimizers, Batching(NUM_ROWS, 4), max_grad_norm=1.0).run(data, None, 0, [0.1] * 3)
    assert torch.equal(network[1][0].weight, kept)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_the_bits_are_near_float32(precision: str) -> None:
    batching, data = Batching(NUM_ROWS, 4), rows(weighted=False)
    exact, rough = train(batching, data)[1], train(batching, data, precision=precision)[1]
    assert rough == pytest.approx(exact, rel=0.05)
    assert rough != exact


def test_a_float16_step_that_overflows_is_left_out_and_the_scale_halved() -> None:
    network, data = net(), rows(weighted=False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizers = build_optimizers(SGD(learning_rate=0.1, momentum=0.5), network.parameters())
    engine = EagerSteps(network, MSE, optimizers, Batching(NUM_ROWS, 4), max_grad_norm=None, precision="float16")
    assert engine.scaler
    scale = engine.scaler.get_scale()
    data.targets *= 1e4
    engine.run(data, None, 0, [0.1])
    assert_same(network.state_dict(), before)
    assert engine.scaler.get_scale() == scale / 2
    data.targets /= 1e4
    engine.scaler.update(16.0)
    engine.run(data, None, 1, [0.1])
    assert not torch.equal(network.state_dict()["1.0.weight"], before["1.0.weight"])


def test_mixed_rows_are_between_their_parents() -> None:
    network, data = net(), rows(weighted=False, classes=True)
    engine = EagerSteps(
        network, CROSS_ENTROPY, [], Batching(NUM_ROWS, NUM_ROWS, shuffle=False), max_grad_norm=None, mixup=0.4
    )
    torch.manual_seed(3)
    found = engine.run(data, None, 0, [0.1]).item()
    torch.manual_seed(3)
    share = torch._sample_dirichlet(torch.full((2,), 0.4))[0].item()
    order = torch.randperm(NUM_ROWS)
    outputs = network(share * data.inputs + (1 - share) * data.inputs[order])
    expected = share * CROSS_ENTROPY(outputs, data.targets, None)
    expected = expected + (1 - share) * CROSS_ENTROPY(outputs, data.targets[order], None)
    assert 0 < share < 1
    assert found == pytest.approx(expected.item(), rel=1e-5)


# ---- the moving average


def test_the_average_follows_the_weights() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    average = WeightAverage(network, 0.25)
    expected = 0.0
    for step in range(1, 6):
        nn.init.constant_(network.weight, float(step))
        average.update()
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert average.average["weight"].item() == pytest.approx(expected)
    with average.in_place():
        assert network.weight.item() == pytest.approx(expected)
    assert network.weight.item() == 5.0


def test_a_constant_is_its_own_average() -> None:
    network = net()
    average = WeightAverage(network, 0.999)
    for _ in range(50):
        average.update()
    for name, value in network.named_parameters():
        torch.testing.assert_close(average.average[name], value.detach())

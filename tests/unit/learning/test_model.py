"""Models in memory and on disk, forward passes in parts, and what a run will take."""

import platform
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
import torch
from torch import nn

from app.errors import BadData, InvalidInput, ShapeMismatch, TooLarge
from app.learning import evaluate
from app.learning.cost import MERGED, MOVED_PER_SECOND
from app.learning.devices import devices, resolve_device, usable_cores
from app.learning.evaluate import Judgement, forward_all, mean_loss, rows_at_once
from app.learning.features import InputColumns
from app.learning.halves import has_units
from app.learning.losses import build_loss
from app.learning.model import Model
from app.learning.modules import Recurrent, SelfAttention
from app.learning.network import count_parameters
from app.learning.plan import expected_network, plan, step_cost
from app.learning.rehearsal import Rehearsal
from app.learning.rows import Rows
from app.specs.losses import PlainLoss
from app.storage.tensors import read_tensors, write_tensors
from tests.samples import posted, prepared, resolved, table_of, untrained
from tests.unit.learning.runs import run, session

NUM_ROWS = 40
FRAME = pl.DataFrame(
    {
        "x": [None if i % 7 == 3 else i / 3 for i in range(NUM_ROWS)],
        "c": ["ab"[i % 2] for i in range(NUM_ROWS)],
        "y": [i * 0.5 for i in range(NUM_ROWS)],
        "k": ["uvw"[i % 3] for i in range(NUM_ROWS)],
        "f": [i % 2 == 0 for i in range(NUM_ROWS)],
    }
)
NETWORKS: list[dict[str, Any]] = [
    {"hidden_features": [5], "normalization": "batch_norm", "dropout": 0.5},
    {"layers": [{"type": "residual", "layers": [{"type": "linear", "out_features": 3}]}]},
]


# ---- on disk


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("categorical", ["embedding", "one_hot"])
@pytest.mark.parametrize("target", ["y", "k", "f"])
def test_models_come_back_from_disk(network: dict[str, Any], categorical: str, target: str, tmp_path: Path) -> None:
    model = untrained(
        FRAME, target, data={"features": ["x", "c"]}, network=network, features={"categorical": categorical}
    )
    tensors, config = model.export()
    write_tensors(tmp_path / "model", tensors)
    loaded = Model.load(read_tensors(tmp_path / "model")[0], orjson.loads(orjson.dumps(config)))
    encoded = loaded.features.transform(FRAME)
    assert torch.equal(loaded.predict(encoded), model.predict(model.features.transform(FRAME)))
    assert (loaded.spec, loaded.signature) == (model.spec, model.signature)
    assert config["num_parameters"] == count_parameters(loaded.network)
    assert not loaded.network.training


def test_loaded_weights_are_the_files_and_no_copies(tmp_path: Path) -> None:
    tensors, config = untrained(FRAME, data={"features": ["x", "c"]}).export()
    loaded = Model.load(tensors, config)
    for name, value in loaded.network.state_dict().items():
        assert value.data_ptr() == tensors[f"network.{name}"].data_ptr()


# ---- forward passes


class Seen(Judgement):
    def __init__(self) -> None:
        self.parts: list[torch.Tensor] = []

    def add(self, outputs: torch.Tensor) -> None:
        self.parts.append(outputs)


def test_parts_of_a_forward_pass_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)), torch.randn(17, 3)
    whole = forward_all(network, inputs)
    loss = build_loss(PlainLoss(type="mse"))
    targets, weights = torch.randn(17, 2), torch.rand(17)
    expected = loss(whole, targets, weights).item()
    monkeypatch.setitem(evaluate.MAX_ACTIVATIONS, "cpu", 20)  # four rows
    torch.testing.assert_close(forward_all(network, inputs), whole)
    for max_judged in (1, 20, 34, 100):
        monkeypatch.setattr(evaluate, "MAX_JUDGED", max_judged)
        seen = Seen()
        assert mean_loss(network, loss, Rows(inputs, targets, weights), seen) == pytest.approx(expected)
        torch.testing.assert_close(torch.cat(seen.parts), whole)


@pytest.mark.parametrize(
    ("network", "num_inputs", "width"),
    [
        (nn.Sequential(nn.Linear(3, 50), nn.Linear(50, 2)), 3, 50),
        (nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3, padding=1), nn.Flatten()), 64, 4 * 8 * 8),
        (InputColumns(1, [300, 40], "one_hot"), 3, 341),
        (InputColumns(0, [5000], "embedding"), 1, 50),
        (nn.Sequential(nn.Unflatten(1, (20, 2)), SelfAttention(2, 2, 0.0)), 40, 2 * 20 * 20),
        (nn.Sequential(nn.Unflatten(1, (20, 2)), Recurrent(nn.LSTM(2, 9, batch_first=True), "last")), 40, 20 * 9),
    ],
)
def test_a_forward_pass_takes_as_many_rows_as_its_widest_layer_has_room_for(
    network: nn.Module, num_inputs: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the weights' sizes: images are far wider than their filters, a vocabulary is not a layer's width."""
    monkeypatch.setattr(evaluate, "CACHED_ACTIVATIONS", evaluate.MAX_ACTIVATIONS["cpu"])
    rows = torch.zeros(1, num_inputs)
    assert rows_at_once(network, rows, torch.device("cpu")) == evaluate.MAX_ACTIVATIONS["cpu"] // width


@pytest.mark.parametrize(("width", "num_rows"), [(16, 2**13), (64, 2048), (256, 2048), (1024, 1024), (2**21, 1)])
def test_a_processor_takes_what_its_cache_holds(width: int, num_rows: int) -> None:
    """But not so few rows that calls take longer than the work, if memory has room for more."""
    assert rows_at_once(nn.Linear(1, width, bias=False), torch.zeros(1, 1), torch.device("cpu")) == num_rows


def test_judging_leaves_the_mode_as_it_was() -> None:
    network, loss = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.9)), build_loss(PlainLoss(type="mse"))
    rows = Rows(torch.randn(5, 3), torch.randn(5, 1))
    for training in (True, False):
        network.train(training)
        values = {mean_loss(network, loss, rows) for _ in range(3)}
        assert len(values) == 1
        assert network.training is training


def test_a_network_of_vectors_alone_has_a_forward_pass() -> None:
    assert forward_all(nn.PReLU(), torch.tensor([[-4.0]])).tolist() == [[-1.0]]


# ---- plans


def planned(frame: pl.DataFrame = FRAME, target: str = "y", max_parameters: int = 10**7, **spec: Any) -> Any:
    settled = resolved(frame, target, {"features": ["x", "c"]}, **spec)
    return plan(settled, table_of(frame), device="auto", max_parameters=max_parameters)[:2]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("categorical", ["embedding", "one_hot"])
@pytest.mark.parametrize("target", ["y", "k", "f"])
def test_parameters_are_those_of_the_network(network: dict[str, Any], categorical: str, target: str) -> None:
    spec = {"network": network, "features": {"categorical": categorical}, "validation": None}
    _, facts = planned(target=target, **spec)
    model = untrained(FRAME, target, data={"features": ["x", "c"]}, **spec)
    assert facts.num_parameters == count_parameters(model.network)


def test_too_many_parameters_are_refused_before_they_are_made() -> None:
    wide: dict[str, Any] = {"network": {"hidden_features": [1_000_000, 1_000_000]}}
    with pytest.raises(TooLarge, match=r"1,000,\d{3},\d{3},\d{3} parameters"):
        planned(**wide)
    count = planned(network={"hidden_features": [5]})[1].num_parameters
    planned(network={"hidden_features": [5]}, max_parameters=count)
    with pytest.raises(TooLarge):
        planned(network={"hidden_features": [5]}, max_parameters=count - 1)


def test_layers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeMismatch) as caught:
        planned(network={"layers": [{"type": "conv1d", "out_channels": 2}]})
    assert caught.value.faults[0].pointer == "/network/layers/0"


def test_what_can_not_be_frozen_is_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        planned(freeze=["layers.99"])
    assert caught.value.faults[0].pointer == "/freeze/0"


def test_a_network_without_weights_is_refused() -> None:
    frame = pl.DataFrame({"a": [0.5, 1.5, 2.5], "y": [1.0, 2.0, 4.0]})
    settled = resolved(frame, network={"layers": [{"type": "relu"}], "head": False})
    with pytest.raises(InvalidInput, match="no layer of the network has weights") as caught:
        plan(settled, table_of(frame), device="cpu", max_parameters=1)
    assert caught.value.faults[0].pointer == "/network"


def normalized(*shape: int) -> dict[str, Any]:
    return {"layers": [{"type": "batch_norm"}, {"type": "flatten"}], "input_shape": shape}


PAIRS = pl.DataFrame({"a": [0.5 * i for i in range(36)], "b": [0.1 * i * i for i in range(36)], "y": range(36)})


def plan_pairs(num_rows: int = 36, **spec: Any) -> None:
    frame = PAIRS[:num_rows]
    plan(resolved(frame, task="regression", **spec), table_of(frame), device="cpu", max_parameters=100)


NORMALIZED = {"hidden_features": [3], "normalization": "batch_norm"}
NESTED = {"layers": [{"type": "parallel", "branches": [[{"type": "residual", "layers": [{"type": "batch_norm"}]}]]}]}


@pytest.mark.parametrize("network", [NORMALIZED, NESTED])
@pytest.mark.parametrize("descent", [{"variant": "stochastic"}, {"batch_size": 1}])
def test_batch_norm_needs_more_than_a_row(network: dict[str, Any], descent: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="layer_norm") as caught:
        plan_pairs(network=network, descent=descent)
    assert caught.value.faults[0].pointer == "/descent/batch_size"
    plan_pairs(network=network, descent={"batch_size": 2})
    for validation, num_rows in [(None, 1), ({"fraction": 0.1}, 2), ({"fraction": 0.9}, 10), ({"folds": 2}, 3)]:
        with pytest.raises(InvalidInput, match="layer_norm") as caught:
            plan_pairs(num_rows, network=network, validation=validation)
        assert caught.value.faults[0].pointer == "/data"


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1)])
def test_one_number_of_a_channel_a_gradient_has_no_variance(shape: tuple[int, ...]) -> None:
    one = {"batch_size": 1}
    plan_pairs(network=normalized(1, 2), descent=one)
    for pointer, num_rows, spec in [("/descent/batch_size", 36, {"descent": one}), ("/data", 2, {})]:
        with pytest.raises(InvalidInput, match="layer_norm") as caught:
            plan_pairs(num_rows, network=normalized(*shape), **spec)
        assert caught.value.faults[0].pointer == pointer


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1)])
@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_rest_of_one_row_is_learnt_with_those_before_it(shape: tuple[int, ...], accumulate_steps: int) -> None:
    spec: dict[str, Any] = {
        "network": normalized(*shape),
        "descent": {"batch_size": 35, "accumulate_steps": accumulate_steps},
        "validation": None,
    }
    plan_pairs(**spec)
    assert run(session(PAIRS, "y", {}, task="regression", **spec)) == "max_epochs"


def test_rows_that_can_not_be_used_may_leave_too_few() -> None:
    frame = pl.DataFrame({"a": [1.0, 2.0, 3.0], "y": [1.5, None, None]})
    with pytest.raises(BadData, match="at least 2 rows"):
        session(frame, "y", {}, network={"hidden_features": [2], "normalization": "batch_norm"}, validation=None)


def test_more_takes_more() -> None:
    _, small = planned(network={"hidden_features": [64]})
    _, wide = planned(network={"hidden_features": [640]})
    _, many = planned(pl.concat([FRAME] * 100), network={"hidden_features": [64]})
    assert small.memory_bytes < wide.memory_bytes
    assert small.memory_bytes < many.memory_bytes
    assert small.seconds_per_epoch < wide.seconds_per_epoch
    assert 50 < many.seconds_per_epoch / small.seconds_per_epoch < 100


def test_an_update_takes_its_time() -> None:
    def seconds(optimizer: str, **spec: Any) -> float:
        network = {"hidden_features": [1000, 1000]}
        return planned(network=network, optimizer={"type": optimizer}, engine="eager", **spec)[1].seconds_per_epoch

    sgd = seconds("sgd")
    for more in ({"ema_decay": 0.9}, {"descent": {"max_grad_norm": 1.0}}):
        assert seconds("sgd", **more) > 1.1 * sgd
    assert 1.2 * sgd < seconds("adamw")
    assert seconds("radam") - sgd > 1.7 * (seconds("adamw") - sgd)
    assert seconds("muon") > 3 * seconds("radam")


def test_what_a_gradient_moves_takes_its_time() -> None:
    spec, _ = planned()
    network, _ = expected_network(spec, table_of(FRAME))
    costs = [step_cost(spec, network, Rehearsal(0, 0.0, moved_bytes, 1.0)) for moved_bytes in (1e9, 2e9)]
    assert costs[1].moved_bytes - costs[0].moved_bytes == 1e9
    assert costs[1].eager_seconds - costs[0].eager_seconds == pytest.approx(1e9 / MOVED_PER_SECOND)
    assert costs[1].compiled_seconds - costs[0].compiled_seconds == pytest.approx((1 - MERGED) * 1e9 / MOVED_PER_SECOND)


@pytest.mark.parametrize(
    ("hidden_features", "batch_size", "engine"),
    [([128, 128, 128], 256, "auto"), ([2000, 2000], 16, "eager"), ([1000, 1000], 32, "eager")],
)
def test_a_compile_saves_what_operations_pass_on_and_nothing_of_the_weights(
    hidden_features: list[int], batch_size: int, engine: str
) -> None:
    rows = pl.concat([FRAME] * 100)
    network, descent = {"hidden_features": hidden_features}, {"batch_size": batch_size}
    spec, _ = planned(rows, network=network, descent=descent, optimizer={"type": "adam"}, stop={"max_steps": 10**6})
    assert spec.engine == engine


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_products_in_half_the_bits_take_less_time_where_there_are_units_for_them(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {"hidden_features": [2000, 2000]}
    rows = pl.concat([FRAME] * 100)

    def seconds(precision: str) -> float:
        return planned(rows, network=wide, descent={"batch_size": 2000}, precision=precision)[1].seconds_per_epoch

    def warnings(precision: str) -> list[str]:
        settled = resolved(FRAME, "y", {"features": ["x", "c"]}, precision=precision)
        found: list[str] = plan(settled, table_of(FRAME), device="cpu", max_parameters=10**6)[2]
        return found

    for are_there in (True, False):
        monkeypatch.setattr("app.learning.plan.has_units", lambda *_, are_there=are_there: are_there)
        share = seconds(precision) / seconds("float32")
        assert share < 0.6 if are_there else share > 2
        told = [] if are_there else [f"this processor has no units for {precision}, which takes several times as long"]
        assert [warning.partition(" on it as")[0] for warning in warnings(precision)] == told
    assert warnings("float32") == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="it names units of these processors")
def test_units_are_those_of_this_processor() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert has_units("float16", "cpu") is bool(flags & {"avx512_fp16", "amx_fp16"})
    assert has_units("bfloat16", "cpu") or not flags & {"avx512_bf16", "amx_bf16"}
    assert has_units("float16", "cuda:0")


def test_large_operations_get_all_cores_and_small_ones_one() -> None:
    assert planned()[0].num_threads == 1
    assert planned(network={"hidden_features": [100] * 30})[0].num_threads == 1
    large = planned(pl.concat([FRAME] * 100), network={"hidden_features": [2000] * 3}, descent={"batch_size": 3000})
    assert large[0].num_threads == usable_cores()
    assert planned(num_threads=3)[0].num_threads == 3


def test_more_threads_than_cores_are_warned_of() -> None:
    def warnings(num_threads: int) -> list[str]:
        spec = resolved(FRAME, "y", {"features": ["x", "c"]}, num_threads=num_threads)
        found: list[str] = plan(spec, table_of(FRAME), device="cpu", max_parameters=10**6)[2]
        return found

    num_cores = usable_cores()
    assert warnings(num_cores) == []
    (told,) = warnings(num_cores + 1)
    assert told.startswith(f"num_threads is {num_cores + 1}, and this machine has {num_cores} cores")


def test_devices_are_those_of_this_machine() -> None:
    assert resolve_device("cpu") == "cpu"
    assert [found["device"] for found in devices()] == ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    with pytest.raises(InvalidInput, match="cuda:99") as caught:
        resolve_device("cuda:99")
    assert caught.value.faults[0].pointer == "/device"
    with pytest.raises(InvalidInput, match="cuda:99"):
        planned(device="cuda:99")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_card_means_the_cpu() -> None:
    assert resolve_device("auto") == "cpu"
    with pytest.raises(InvalidInput, match="no CUDA device"):
        resolve_device("cuda")


def test_a_signature_has_the_classes_of_the_table() -> None:
    spec = posted("k", {"features": ["x"]})
    assert spec.task == "auto"
    assert untrained(FRAME, "k", data={"features": ["x"]}).signature.classes == ("u", "v", "w")
    assert prepared(resolved(FRAME, "k", {"features": ["x"]}), FRAME).targets.num_outputs == 3

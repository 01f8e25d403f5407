"""The gradserve command against a real service."""

import csv
import gzip
import hashlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from app.cli import main
from app.client import Client, Unreachable
from scripts.service import Service, free_port
from tests.published import COLUMNS, FEATURES, columns_model, numbers_model, publish
from tests.samples import untrained
from tests.waiting import until

PENGUINS = Path(__file__).parents[2] / "examples" / "penguins.csv"
ENDLESS = ["--epochs", "100000000", "--set", "stop.max_seconds=600"]


class Cli:
    """Runs `gradserve …` in this process, against the service; gives what it printed."""

    def __init__(self, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
        self.service, self.capsys = service, capsys

    def __call__(self, *arguments: str, status: int = 0) -> str:
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--url", self.service.url])
        printed = self.capsys.readouterr()
        assert end.value.code == status, printed.out + printed.err
        return printed.out if status == 0 else printed.err


@pytest.fixture
def cli(service: Service, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(service, capsys)


def test_train_predict_and_look_around(cli: Cli, client: Client, tmp_path: Path) -> None:
    trained = cli(
        "train", str(PENGUINS), "--target", "species", "--model", "birds", "--hidden", "32", "--epochs", "20",
        "--optimizer", "sgd", "--learning-rate", "0.1", "--batch-size", "16", "--patience", "15", "--seed", "3",
        "--task", "multiclass", "--set", "optimizer.momentum=0.9", "--set", "tags.by=hand",
    )  # fmt: skip
    assert "epoch 20/20" in trained
    assert "val_accuracy" in trained
    assert f"{cli.service.url}/models/birds/versions/1" in trained
    spec = client.model("birds", "1")["spec"]
    assert spec["optimizer"] == {
        "type": "sgd", "learning_rate": 0.1, "momentum": 0.9, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0,
    }  # fmt: skip
    assert (spec["seed"], spec["stop"]["patience"], spec["descent"]["batch_size"]) == (3, 15, 16)
    assert spec["tags"] == {"by": "hand"}

    predicted = tmp_path / "predicted.csv"
    assert "344 rows" in cli("predict", "birds", str(PENGUINS), "--output", str(predicted))
    with predicted.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["prediction"] == row["species"] for row in rows) >= 0.97 * 344
    species = {row["species"] for row in rows}
    assert all(sum(float(row[f"probability_{name}"]) for name in species) == pytest.approx(1) for row in rows)
    printed = cli("predict", "birds", str(PENGUINS), "--version", "1")
    assert printed == predicted.read_text()
    answer = json.loads(cli("predict", "birds", "--row", '{"bill_length_mm": 39.1}'))
    assert answer["predictions"][0] in answer["classes"]

    assert re.search(r"^birds +1 +multiclass ", cli("models", "list"), re.MULTILINE)
    assert json.loads(cli("models", "show", "birds", "--version", "1"))["version"] == "1"
    (job,) = client.jobs(model="birds")
    assert job["id"] in cli("jobs", "list", "--model", "birds")
    assert json.loads(cli("jobs", "show", job["id"]))["state"] == "succeeded"
    events = [json.loads(line) for line in cli("jobs", "events", job["id"]).splitlines()]
    assert events[0]["data"] == {"state": "queued"}
    assert [event["data"]["epoch"] for event in events if event["type"] == "metrics"] == list(range(1, 21))


def test_what_was_made_of_the_columns_is_said(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "people.csv"
    lines = [f"{index},person {index} of many,{index}.5" for index in range(200)]
    file.write_text("\n".join(["x,name,y", *lines]))
    for more in (["--epochs", "1"], ["--detach"]):
        with pytest.raises(SystemExit, match="0"):
            main(["train", str(file), "--target", "y", *more, "--url", cli.service.url])
        said = capsys.readouterr().err.splitlines()
        assert said == ["warning: column 'name' is free text (200 distinct values) and is left out"]
    with pytest.raises(SystemExit, match="0"):
        main(["train", str(file), "--target", "y", "--ignore", "name", "--epochs", "1", "--url", cli.service.url])
    assert capsys.readouterr().err == ""


def test_a_file_of_rows_may_have_any_format(
    cli: Cli, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And be larger than a part; predictions are those of its rows, in their order."""
    monkeypatch.setattr("app.storage.row_stream.CELLS_AT_ONCE", 28)
    publish(service.root / "models", "cli-pair", columns_model(["y", "z"]))
    rows = COLUMNS.select(*FEATURES, "z")  # which is a target, and passes through
    with Client(service.url) as client:
        expected = client.predict("cli-pair", rows).with_columns(z=rows["z"])
    rows.write_csv(tmp_path / "rows.csv")
    rows.write_csv(tmp_path / "rows.tsv", separator="\t")
    rows.write_ndjson(tmp_path / "rows.ndjson")
    rows.write_parquet(tmp_path / "rows.parquet")
    rows.write_ipc(tmp_path / "rows.arrow")
    rows.write_ipc_stream(tmp_path / "rows.arrows")
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress((tmp_path / "rows.csv").read_bytes()))
    for file in sorted(tmp_path.iterdir()):
        printed = pl.read_csv(io.StringIO(cli("predict", "cli-pair", str(file))))
        assert printed.columns == [*rows.columns, "prediction_y", "prediction_z"]
        assert_frame_equal(printed.select(expected.columns), expected, rel_tol=1e-5)
        assert printed["color"].to_list() == rows["color"].to_list()
    (tmp_path / "bad.csv").write_text("size,count,kept,colour\n1,2,true,red\n")
    assert "did you mean 'color'?" in cli("predict", "cli-pair", str(tmp_path / "bad.csv"), status=1)


def test_an_output_file_is_replaced_by_a_whole_one_only(cli: Cli, service: Service, tmp_path: Path) -> None:
    """Which may be the file that is read."""
    publish(service.root / "models", "cli-numbers", numbers_model())
    file = tmp_path / "rows.csv"
    file.write_text("x0,x1\n1,2\n3,4\n")
    before = file.read_text()
    assert "no model 'nope'" in cli("predict", "nope", str(file), "--output", str(file), status=1)
    assert file.read_text() == before
    cli("predict", "cli-numbers", str(file), "--output", str(file))
    assert pl.read_csv(file).select("x0", "x1").rows() == [(1, 2), (3, 4)]
    assert pl.read_csv(file).columns == ["x0", "x1", "prediction"]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_predictions_take_names_that_no_column_has(cli: Cli, service: Service, tmp_path: Path) -> None:
    table = COLUMNS.select("size", prediction="y", prediction_="z")
    model = untrained(table, "prediction", data={"features": ["size"]})
    publish(service.root / "models", "cli-names", model)
    table.write_csv(tmp_path / "rows.csv")
    printed = pl.read_csv(io.StringIO(cli("predict", "cli-names", str(tmp_path / "rows.csv"))))
    assert printed.columns == ["size", "prediction", "prediction_", "prediction__"]


def test_predict_takes_a_file_without_a_header(cli: Cli, service: Service, tmp_path: Path) -> None:
    publish(service.root / "models", "cli-headerless", columns_model())
    file, named = tmp_path / "rows.csv", tmp_path / "named.csv"
    COLUMNS.select(FEATURES).write_csv(file, include_header=False)
    COLUMNS.select(FEATURES).write_csv(named)
    printed = pl.read_csv(io.StringIO(cli("predict", "cli-headerless", str(file), "--no-header")))
    expected = pl.read_csv(io.StringIO(cli("predict", "cli-headerless", str(named))))
    assert printed.columns[: len(FEATURES)] == [f"x{place}" for place in range(len(FEATURES))]
    assert printed.rows() == expected.rows()


def test_evaluate_measures_a_model_on_a_table(cli: Cli, client: Client, service: Service, tmp_path: Path) -> None:
    """Of any format, from a file or a pipe; the service keeps none of it, also where the answer is an error."""
    publish(service.root / "models", "cli-judged", columns_model())
    COLUMNS.write_csv(tmp_path / "rows.csv")
    COLUMNS.write_parquet(tmp_path / "rows.parquet")
    expected = client.evaluate("cli-judged", {"records": COLUMNS.to_dicts(), "target": "species"})
    printed = cli("evaluate", "cli-judged", str(tmp_path / "rows.csv"), "--version", "1")
    assert re.findall(r"^(\w+) +\S+ *$", printed, re.MULTILINE) == ["metric", "num_rows", "loss", *expected["metrics"]]
    assert f"num_rows  {COLUMNS.height} " in printed
    for file in ("rows.csv", "rows.parquet"):
        answer = json.loads(cli("evaluate", "cli-judged", str(tmp_path / file), "--target", "species", "--json"))
        assert answer["metrics"] == pytest.approx(expected["metrics"], rel=1e-4)
    piped = subprocess.run(
        [sys.executable, "-m", "app.cli", "evaluate", "cli-judged", "-", "--url", service.url],
        input=gzip.compress((tmp_path / "rows.csv").read_bytes()), stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    assert piped.stdout.decode() == printed
    assert "the model's target is species, not z" in cli(
        "evaluate", "cli-judged", str(tmp_path / "rows.csv"), "--target", "z", status=1
    )
    assert "no model 'nope'" in cli("evaluate", "nope", str(tmp_path / "rows.csv"), status=1)
    assert not [dataset for dataset in client.datasets() if dataset["name"].startswith("evaluate")]


def test_null_may_be_set_where_an_option_stands_for_the_same(cli: Cli, client: Client) -> None:
    cli(
        "train", str(PENGUINS), "--target", "species", "--model", "cli-null", "--epochs", "5",
        "--set", "stop.max_epochs=null", "--set", "stop.max_steps=3",
    )  # fmt: skip
    assert client.model("cli-null", "1")["spec"]["stop"]["max_epochs"] is None


def test_the_epoch_that_is_kept_is_said_where_it_is_not_the_last(cli: Cli, client: Client) -> None:
    steep = ["--optimizer", "sgd", "--learning-rate", "0.5", "--epochs", "25"]
    printed = cli("train", str(PENGUINS), "--target", "body_mass_g", "--model", "steep", *steep)
    best = client.model("steep", "1")["metrics"]["best_epoch"]
    assert best < 25
    assert f"; kept are the weights of epoch {best}, the best. Model" in printed
    printed = cli("train", str(PENGUINS), "--target", "body_mass_g", "--model", "steep", "--epochs", "1")
    assert "kept are the weights" not in printed


MEASURED = """
import re, sys
from pathlib import Path
from app.cli import main
try:
    main(sys.argv[1:])
finally:
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""


def test_a_large_file_takes_no_more_memory_than_a_small_one(service: Service, tmp_path: Path) -> None:
    publish(service.root / "models", "cli-large", numbers_model())
    peaks = []
    for num_rows in (1_000, 2_000_000):
        numbers = pl.int_range(num_rows, eager=True)
        rows = pl.DataFrame({"x0": numbers / 1e5, "x1": numbers + 0.123456789012})
        rows.lazy().sink_csv(tmp_path / "rows.csv")
        arguments = ("predict", "cli-large", "rows.csv", "--output", "predicted.csv", "--url", service.url)
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stderr.split()[-1]) // 1024)
        predicted = pl.scan_csv(tmp_path / "predicted.csv")
        assert predicted.select(pl.len()).collect().item() == num_rows
        assert predicted.tail(1).collect()["x1"].item() == num_rows - 1 + 0.123456789012
    assert (tmp_path / "rows.csv").stat().st_size > 30 * 2**20
    assert peaks[1] - peaks[0] < 80, peaks


def test_downloaded_files_are_the_published_ones(cli: Cli, client: Client, tmp_path: Path) -> None:
    client.train(model="sum", data={"inputs": [[1, 2], [3, 4], [5, 6]], "targets": [3, 7, 11]})
    cli("models", "download", "sum", "--output", str(tmp_path / "sum"))
    config = json.loads((tmp_path / "sum" / "config.json").read_text())
    for file, digest in config["digests"].items():
        assert f"sha256:{hashlib.sha256((tmp_path / 'sum' / file).read_bytes()).hexdigest()}" == digest
    cli("models", "delete", "sum", "--yes")
    assert "sum" not in [model["name"] for model in client.models()]
    assert "there is no model 'sum'" in cli("models", "show", "sum", status=1)


def test_versions_travel_and_aliases_point_at_them(cli: Cli, service: Service, tmp_path: Path) -> None:
    publish(service.root / "models", "cli-birds", columns_model())
    cli("models", "download", "cli-birds", "--output", str(tmp_path / "1"))
    for number in "12":
        assert f"/models/cli-moved/versions/{number}" in cli("models", "upload", "cli-moved", str(tmp_path / "1"))
    said = json.loads(cli("models", "alias", "cli-moved", "live", "1", "--canary", "2:100"))
    assert (said["version"], said["canary"]) == ("1", {"version": "2", "percent": 100})
    row = ("predict", "cli-moved", "--row", '{"size": 1}', "--version", "live", "--routing-key", "me")
    assert json.loads(cli(*row))["version"] == "2"
    shadowed = json.loads(cli("models", "alias", "cli-moved", "live", "1", "--shadow", "2"))
    assert (shadowed["shadow"], "canary" in shadowed) == ({"version": "2", "percent": 100}, False)
    assert json.loads(cli("models", "alias", "cli-moved", "live")) == shadowed
    for wrong in (("1", "--canary", "2:ten"), ("1", "--canary", "2"), ("1", "--delete"), ("--shadow", "2")):
        cli("models", "alias", "cli-moved", "live", *wrong, status=2)
    cli("models", "alias", "cli-moved", "live", "--delete")
    assert "no alias 'live'" in cli("models", "alias", "cli-moved", "live", status=1)
    onnx = tmp_path / "moved.onnx"
    assert cli("models", "export", "cli-moved", str(onnx)) == f"version 2 of cli-moved written to {onnx}\n"
    assert (tmp_path / "moved.onnx").stat().st_size > 1000


def test_where_the_service_is_may_stand_before_the_command(
    start_service: Callable[..., Service], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands after it counts more, and both count more than the environment."""
    service = start_service(GRADSERVE_API_KEYS="secret:admin")
    nowhere = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("GRADSERVE_URL", nowhere)
    monkeypatch.setenv("GRADSERVE_API_KEY", "of the environment")
    for arguments in (
        ("--url", service.url, "--api-key", "secret", "models", "list"),
        ("--url", nowhere, "--api-key", "wrong", "models", "list", "--url", service.url, "--api-key", "secret"),
        ("--url", service.url, "jobs", "list", "--api-key", "secret"),
    ):
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        assert (end.value.code, capsys.readouterr().err) == (0, ""), arguments
    with pytest.raises(SystemExit, match="1"):
        main(["--url", service.url, "predict", "m", "--row", "[1]"])
    assert "--api-key" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--url", service.url, "keys", "list"])
    assert "keys works on this machine" in capsys.readouterr().err


def test_datasets(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "Two Rows.tsv"
    file.write_text("a\tb\n1\tx\n2\ty\n")
    assert "/datasets/two-rows" in cli("datasets", "upload", str(file))
    assert "3 rows" in cli("datasets", "upload", str(file), "--name", "all-rows", "--no-header")
    assert re.search(r"^two-rows +2 ", cli("datasets", "list"), re.MULTILINE)
    assert json.loads(cli("datasets", "show", "two-rows"))["columns"][0]["name"] == "a"
    assert re.search(r"^1 +x *$", cli("datasets", "rows", "two-rows"), re.MULTILINE)
    assert cli("datasets", "rows", "two-rows", "--csv", "--limit", "1") == "a,b\n1,x\n"
    cli("datasets", "delete", "two-rows")
    assert "two-rows" not in cli("datasets", "list")


def test_a_job_can_be_detached_paused_resumed_and_cancelled(cli: Cli, client: Client) -> None:
    (job_id,) = re.findall(r"Job (\w+) is", cli("train", str(PENGUINS), "--target", "species", "--detach", *ENDLESS))
    until(lambda: client.job(job_id)["state"] == "running")
    assert "is pausing" in cli("jobs", "pause", job_id)
    until(lambda: client.job(job_id)["state"] == "paused")
    assert "is queued" in cli("jobs", "resume", job_id)
    until(lambda: client.job(job_id)["state"] == "running")
    cli("jobs", "cancel", job_id)
    until(lambda: client.job(job_id)["terminal"])
    assert f"Error: job {job_id}" in cli("jobs", "resume", job_id, status=1)


def test_a_job_has_a_history_until_it_is_forgotten(cli: Cli, client: Client) -> None:
    cli("train", str(PENGUINS), "--target", "species", "--model", "brief", "--epochs", "3")
    job = next(client.jobs(model="brief"))
    history = list(csv.DictReader(io.StringIO(cli("jobs", "history", job["id"], "--csv"))))
    assert [float(row["train_loss"]) for row in history] == [row["train_loss"] for row in client.history(job["id"])]
    assert re.search(r"^epoch .*train_loss.*\n1 .*\n2 .*\n3 ", cli("jobs", "history", job["id"]))
    cli("jobs", "delete", job["id"])
    assert "no job" in cli("jobs", "show", job["id"], status=1)
    assert "brief" in cli("models", "list")


@pytest.mark.parametrize(
    ("answer", "state", "said"),
    [(None, "running", "runs on"), (b"n\n", "running", "runs on"), (b"y\n", "cancelled", "is being cancelled")],
)
def test_ctrl_c_asks_whether_to_cancel(
    service: Service, client: Client, answer: bytes | None, state: str, said: str
) -> None:
    """At a terminal; where there is none to ask, the job is left to the service."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "train", str(PENGUINS), "--target", "species", *ENDLESS],
        env=os.environ | {"GRADSERVE_URL": service.url}, text=True, stdout=subprocess.PIPE,
        stdin=slave if answer else subprocess.DEVNULL,
    )  # fmt: skip
    job = until(lambda: next(client.jobs(model="penguins", state="running"), None))
    until(lambda: client.job(job["id"])["progress"]["step"])  # by then the command follows the events
    os.write(master, answer or b"")
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=20)
    assert process.returncode == 130, printed
    assert f"Job {job['id']} {said}" in printed
    until(lambda: client.job(job["id"])["state"] == state)
    if state == "running":
        client.cancel(job["id"])
    assert client.wait(job["id"])["state"] == "cancelled"
    os.close(master)
    os.close(slave)


def test_a_second_ctrl_c_leaves_the_job_to_the_service(service: Service, client: Client) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "app.cli", "train", str(PENGUINS), "--target", "species", *ENDLESS],
        env=os.environ | {"GRADSERVE_URL": service.url}, stdout=subprocess.PIPE, stdin=slave,
    )  # fmt: skip
    assert process.stdout
    job = until(lambda: next(client.jobs(model="penguins", state="running"), None))
    until(lambda: client.job(job["id"])["progress"]["step"])
    process.send_signal(signal.SIGINT)
    printed = b""
    while b"leaves it running" not in printed:
        byte = process.stdout.read(1)
        assert byte, printed
        printed += byte
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"Job {job['id']} runs on" in rest.decode()
    client.cancel(job["id"])
    os.close(master)
    os.close(slave)


def test_a_job_that_cannot_be_followed_any_more_is_named(
    cli: Cli, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def events(_client: Client, _job_id: str) -> None:
        raise Unreachable("no answer")

    monkeypatch.setattr(Client, "events", events)
    said = cli("train", str(PENGUINS), "--target", "species", "--model", "lost", "--epochs", "1", status=1)
    job = next(client.jobs(model="lost"))
    assert said.splitlines()[:2] == [
        f"Job {job['id']} runs on; follow it with: gradserve jobs events {job['id']}",
        "Error: no answer",
    ]


def test_a_run_learns_from_the_file_that_was_given(
    cli: Cli, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever another process stores under the same name before the run is submitted."""
    submit = Client.submit
    (tmp_path / "same.csv").write_text("x,y\n" + "1,2\n2,4\n3,6\n" * 5)

    def late(self: Client, body: dict[str, Any]) -> Any:
        self.upload_dataset("same", b"x,y\n" + b"7,8\n9,1\n" * 5)
        return submit(self, body)

    monkeypatch.setattr(Client, "submit", late)
    cli("train", str(tmp_path / "same.csv"), "--target", "y", "--epochs", "1")
    digest = next(client.jobs(model="same"))["spec"]["data"]["digest"]
    assert digest == f"sha256:{hashlib.sha256((tmp_path / 'same.csv').read_bytes()).hexdigest()}"
    assert digest != client.dataset("same")["digest"]


def test_lists_in_a_pipe_have_whole_values(cli: Cli, tmp_path: Path) -> None:
    names = ["a", *(f"c{place}" for place in range(150))]
    (tmp_path / "long.csv").write_text(f"{','.join(names)}\n{'long' * 800}{',7' * 150}\n")
    cli("datasets", "upload", str(tmp_path / "long.csv"))
    header, row = cli("datasets", "rows", "long").splitlines()
    assert header.split() == names
    assert row.split() == ["long" * 800, *["7"] * 150]


def test_what_is_wrong_is_said_in_a_line_or_two(cli: Cli) -> None:
    said = cli("train", str(PENGUINS), "--target", "specis", status=1)
    assert said.splitlines() == ["Error: there is no column 'specis'; did you mean 'species'?", "  at /data/target"]
    assert "no dataset 'nope'" in cli("datasets", "show", "nope", status=1)
    assert "No such file" in cli("train", "nope.csv", "--target", "y", status=1)


def test_a_port_that_is_taken_is_said_before_anything_starts(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["serve", "--port", str(service.port)])
    assert f"port {service.port} of 127.0.0.1 is taken" in capsys.readouterr().err


def test_a_service_for_everyone_makes_a_key(start_service: Callable[..., Service]) -> None:
    service = start_service(GRADSERVE_HOST="0.0.0.0")
    (key,) = re.findall(r"^    (\S{32})$", service.log.read_text(), re.MULTILINE)
    assert httpx.get(f"{service.url}/models").status_code == 401
    with Client(service.url, key) as client:
        assert list(client.models()) == []
        client.train(model="line", data={"inputs": [[1], [2], [3]], "targets": [1, 2, 3]})
        client.delete_model("line")

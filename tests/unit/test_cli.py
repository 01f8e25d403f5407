import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from app import __version__
from app.cli import main
from app.cli_files import _assignment, _put
from app.cli_service import _is_loopback
from app.cli_shared import name_of
from scripts.service import free_port
from tests.unit import scripted_server as answers
from tests.unit.scripted_server import scripted_server
from tests.waiting import until


def run(*arguments: str) -> int:
    """The exit status of `gradserve arguments…`, run in this process."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert isinstance(end.value.code, int)
    return end.value.code


def test_help_is_there_at_once() -> None:
    """As far as that is up to it: by the processor's time, which no other program lengthens."""
    command = [sys.executable, "-m", "app.cli", "--help"]
    seconds = []
    for _ in range(3):
        begun = os.times()
        subprocess.run(command, check=True, capture_output=True)
        ended = os.times()
        seconds.append(ended.children_user + ended.children_system - begun.children_user - begun.children_system)
    assert 0 < min(seconds) < 0.5


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from app.cli import main
heavy = {"torch", "polars", "fastapi", "sqlalchemy", "httpx"}
try:
    main(["train", "--help"])
except SystemExit:
    sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--target" in done.stdout


def test_without_a_service_it_says_where_it_looked_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert run("jobs", "list", "--url", url) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"Error: no answer from {url}")
    assert "gradserve serve" in second


def test_predictions_are_not_called_what_they_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "predicted.parquet"
    assert run("predict", "m", "rows.csv", "--output", str(output)) == 2
    assert "predicted.parquet would be CSV; name it .csv" in capsys.readouterr().err
    assert not output.exists()


def test_who_was_answered_is_not_told_to_start_a_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("x\n1\n")
    with scripted_server() as server:
        server.answers = [answers.broken_stream("prediction\n")]
        assert run("predict", "m", "rows.csv", "--url", server.url) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"Error: the answer of {server.url} broke off: ")


def test_a_setting_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GRADSERVE_PORT", "http")
    assert run("serve") == 1
    assert capsys.readouterr().err.startswith("Error: GRADSERVE_PORT: Input should be a valid integer")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "--port", "99999"), "65535"),
        (("train", "rows.csv", "--target", "y", "--hidden", "8,wide"), "not widths"),
    ],
)
def test_options_that_are_wrong_are_named(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://localhost:x", "http://127.0.0.1:99999"])
def test_an_address_that_is_none_is_said_in_a_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("jobs", "list", "--url", url) == 1
    assert capsys.readouterr().err.startswith("Error: ")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"gradserve {__version__}\n"


@pytest.mark.parametrize(
    "command",
    [
        ("train", "rows", "--target", "y"),
        ("predict", "m", "rows"),
        ("evaluate", "m", "rows"),
        ("datasets", "upload", "rows"),
    ],
    ids=lambda command: command[0],
)
def test_a_folder_is_no_table(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows").mkdir()
    assert run(*command) == 2
    assert "'rows' is a directory" in capsys.readouterr().err


def test_predict_wants_a_file_or_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "penguins") == 2
    assert run("predict", "penguins", "--row", "[1,") == 2
    assert "not JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stop.max_epochs=20", ("stop.max_epochs", 20)),
        ("features=null", ("features", None)),
        ("optimizer.type=sgd", ("optimizer.type", "sgd")),
        ('tags={"a": "b=c"}', ("tags", {"a": "b=c"})),
        ("description=", ("description", "")),
    ],
)
def test_assignments(text: str, expected: tuple[str, Any]) -> None:
    assert _assignment(text) == expected


@pytest.mark.parametrize("text", ["stop.max_epochs", "=20"])
def test_assignments_without_a_key_or_a_value(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"not KEY\.PATH=JSON"):
        _assignment(text)


def test_put_goes_down_a_path() -> None:
    body: dict[str, Any] = {"stop": {"max_epochs": 5}, "features": None}
    _put(body, "stop.patience", 3)
    _put(body, "network.hidden_features", [8])
    assert body == {"stop": {"max_epochs": 5, "patience": 3}, "features": None, "network": {"hidden_features": [8]}}
    with pytest.raises(typer.BadParameter, match="features is no object"):
        _put(body, "features.standardize", False)


@pytest.mark.parametrize(
    ("file", "name"),
    [("penguins.csv", "penguins"), ("Iris 2.csv.gz", "iris-2"), ("__x__.tsv", "x"), ("表.csv", "table")],
)
def test_a_dataset_is_named_after_its_file(file: str, name: str) -> None:
    assert name_of(Path("/somewhere") / file) == name


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("example.org", False), ("10.0.0.1", False)],
)  # fmt: skip
def test_only_this_machine_s_own_addresses_are_loopback(host: str, expected: bool) -> None:
    assert _is_loopback(host) is expected


@pytest.mark.parametrize(
    ("variable", "path", "arguments", "said"),
    [
        ("GRADSERVE_DATA_DIR", "gradserve.db", ("serve",), "Error: the database failed: file is not a database"),
        ("GRADSERVE_DATA_DIR", "gradserve.db", ("backup", "copy"), ".db can't be copied: file is not a database"),
        ("GRADSERVE_MODELS_DIR", "", ("serve",), "Error: [Errno 17] File exists: "),
    ],
)
def test_what_the_service_cannot_begin_with_is_said_in_a_line(
    variable: str,
    path: str,
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADSERVE_DATA_DIR", "data")
    (tmp_path / "broken" / path).parent.mkdir(exist_ok=True)
    (tmp_path / "broken" / path).write_text("no database at all, but text" * 50)
    monkeypatch.setenv(variable, "broken")
    assert run(*arguments, *(("--port", str(free_port())) if arguments == ("serve",) else ())) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_said_before_anything_starts(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    assert run("serve", "--host", host, "--port", str(port)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Error: port {port} of {host} can't be listened on: ")


def test_other_programs_read_utf_8() -> None:
    command = [sys.executable, "-m", "app.cli", "predict", "--help"]
    done = subprocess.run(command, capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert "…" in done.stdout.decode()


def test_ctrl_c_ends_what_waits_for_its_input() -> None:
    """Polars, once it is imported, has system calls go on after a signal."""
    command = [sys.executable, "-m", "app.cli", "predict", "m", "-"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin
    until(lambda: "pipe" in Path(f"/proc/{process.pid}/wchan").read_text())
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    process.stdin.close()

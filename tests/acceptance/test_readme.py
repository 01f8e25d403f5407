"""The README's commands and answers, run and compared against a real service."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from scripts.service import Service

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SHOWN_ELSEWHERE = {
    "scripts/quickstart\n": "tests/acceptance/test_quickstart.py",
    "scripts/test\n": "is what runs this test",
    "docker ": "needs a Docker daemon; tests/unit/test_docs.py holds it against the Dockerfile",
}
PREAMBLE = """
set -euo pipefail
curl() { command curl --fail-with-body "$@"; }
"""


class Block(NamedTuple):
    language: str
    text: str

    @property
    def runs_here(self) -> bool:
        return self.language == "sh" and not self.text.startswith(tuple(SHOWN_ELSEWHERE))


BLOCKS = [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)]
RUN = [block for block in BLOCKS if block.runs_here]


@pytest.fixture(scope="module")
def new_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A reader's own, where the first version is version 1."""
    with Service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="module")
def outputs(new_service: Service, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each block printed; all run in one shell, in order, as a reader would."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    marked = [f"printf '\\036'\n{addressed(block.text, new_service)}" for block in RUN]
    environment = {"GRADSERVE_URL": new_service.url, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = subprocess.run(
        ["bash", "-c", PREAMBLE + "\n".join(marked)],
        cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    printed = script.stdout.split("\036")[1:]
    assert script.returncode == 0, f"{RUN[len(printed) - 1].text}\n{printed[-1]}\n{script.stderr}"
    assert (folder / "predicted.csv").exists()
    return printed


def addressed(text: str, service: Service) -> str:
    return text.replace("localhost:8000", f"127.0.0.1:{service.port}")


def test_every_command_runs(outputs: list[str]) -> None:
    assert len(outputs) == len(RUN) >= 8
    assert all(outputs)


def test_every_answer_is_as_shown(outputs: list[str]) -> None:
    answers = [(BLOCKS[i - 1], block) for i, block in enumerate(BLOCKS) if block.language == "json"]
    assert len(answers) >= 3
    for command, shown in answers:
        compare(json.loads(shown.text), json.loads(outputs[RUN.index(command)]))


def compare(shown: Any, real: Any) -> None:
    """All that is shown is there: words to the letter, numbers within what another machine may make of them."""
    if isinstance(shown, dict):
        for name, value in shown.items():
            compare(value, real[name])
    elif isinstance(shown, list):
        assert len(shown) == len(real)
        for value, other in zip(shown, real, strict=True):
            compare(value, other)
    elif isinstance(shown, float):
        assert real == pytest.approx(shown, abs=0.05)
    else:
        assert shown == real


def test_the_stream_of_events_ends_with_the_job(outputs: list[str]) -> None:
    stream = next(output for block, output in zip(RUN, outputs, strict=True) if "event-stream" in block.text)
    last = stream.strip().split("\n\n")[-1]
    assert "event: state" in last
    assert '"succeeded"' in last


@pytest.mark.parametrize("place", [0, 1])
def test_the_python_examples_run(
    service: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    examples = [block.text for block in BLOCKS if block.language == "python"]
    assert len(examples) == 2
    monkeypatch.chdir(ROOT)
    exec(addressed(examples[place], service), {})
    printed = capsys.readouterr().out
    assert "metrics" in printed
    assert "succeeded" in printed


def test_links_and_files_are_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    (tree,) = [block.text for block in BLOCKS if block.language == ""]
    files = [line.split()[0] for line in tree.splitlines()]
    made_at_run_time = {"data/"}
    for path in {*links, *files} - made_at_run_time:
        assert (ROOT / path).exists(), path
    rooms = {f"app/{path.name}/" for path in (ROOT / "app").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= set(files)

"""The commands and answers of the pages that have some, run and compared against a real service."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from scripts.service import Service
from tests.acceptance.test_readme import PREAMBLE, ROOT, Block, addressed, compare


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / "docs" / page).read_text()
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


@pytest.mark.parametrize(("page", "num_answers"), [("protocols.md", 3), ("operations.md", 1)])
def test_every_command_runs_and_every_answer_is_as_shown(
    service: Service, tmp_path: Path, page: str, num_answers: int
) -> None:
    blocks = blocks_of(page)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    commands = [block for block in blocks if block.language == "sh"]
    script = "\n".join(f"printf '\\036'\n{addressed(block.text, service)}" for block in commands)
    command = ["bash", "-c", PREAMBLE + script]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    printed = run.stdout.split("\036")[1:]
    assert run.returncode == 0, f"{commands[len(printed) - 1].text}\n{printed[-1]}\n{run.stderr}"
    assert all(printed)
    answers = [(blocks[place - 1], block) for place, block in enumerate(blocks) if block.language == "json"]
    assert len(answers) >= num_answers
    for command, shown in answers:
        compare(json.loads(shown.text), json.loads(printed[commands.index(command)]))

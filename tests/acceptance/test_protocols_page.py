"""The commands and answers of docs/protocols.md, run and compared against a real service."""

import json
import re
import subprocess
from pathlib import Path

from scripts.service import Service
from tests.acceptance.test_readme import PREAMBLE, ROOT, Block, addressed, compare

PAGE = (ROOT / "docs" / "protocols.md").read_text()
BLOCKS = [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]


def test_every_command_runs_and_every_answer_is_as_shown(service: Service, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    commands = [block for block in BLOCKS if block.language == "sh"]
    script = "\n".join(f"printf '\\036'\n{addressed(block.text, service)}" for block in commands)
    command = ["bash", "-c", PREAMBLE + script]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    printed = run.stdout.split("\036")[1:]
    assert run.returncode == 0, f"{commands[len(printed) - 1].text}\n{printed[-1]}\n{run.stderr}"
    assert all(printed)
    answers = [(BLOCKS[place - 1], block) for place, block in enumerate(BLOCKS) if block.language == "json"]
    assert len(answers) >= 3
    for command, shown in answers:
        compare(json.loads(shown.text), json.loads(printed[commands.index(command)]))

"""What an error in the log tells, and what it keeps to itself."""

import json
import re
import subprocess
import sys

import pytest

CODE = """
import logging, sys, structlog
from app import logs
logs.configure(sys.argv[1], "debug")
def fail(header):
    raise RuntimeError("something broke")
for log in (structlog.get_logger("app"), logging.getLogger("uvicorn.error")):
    try:
        fail("Bearer s3cr3t".upper())
    except RuntimeError:
        log.exception("request failed")
"""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_shows_no_variables(log_format: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, log_format], capture_output=True, text=True, check=True)
    assert done.stderr.count("RuntimeError: something broke") == 2
    assert done.stderr.count("in fail") == 2
    assert "S3CR3T" not in done.stderr


FORGED = """
import sys, structlog
from app import logs
logs.configure(sys.argv[1], "info")
structlog.get_logger("app.access").info("request", path="/a\\n2026-01-01 [info] forged\\x1b[2J")
"""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_line_can_be_forged(log_format: str) -> None:
    done = subprocess.run([sys.executable, "-c", FORGED, log_format], capture_output=True, text=True, check=True)
    assert len(done.stderr.splitlines()) == 1
    assert "forged" in done.stderr
    assert "\x1b[2J" not in done.stderr


LINES = """
import sys, structlog
from app import logs
logs.configure("json", sys.argv[1])
structlog.get_logger("app.access").info("request", path='/"', key="k")
logs.write("app.access", [])
logs.write("app.access", [{"event": "request", "path": '/"', "key": "k"}] * 2)
"""


@pytest.mark.parametrize("level", ["info", "warning"])
def test_lines_that_are_written_together_look_like_those_of_structlog(level: str) -> None:
    done = subprocess.run([sys.executable, "-c", LINES, level], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    stamps = [line.pop("timestamp") for line in lines]
    assert len(lines) == (3 if level == "info" else 0)
    assert all(line == lines[0] for line in lines)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", stamp) for stamp in stamps)

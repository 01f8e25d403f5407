"""What an error in the log tells, and what it keeps to itself."""

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

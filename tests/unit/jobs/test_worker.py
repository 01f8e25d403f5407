"""What a worker does before it trains."""

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.jobs.worker import _let_go, explain, offer_to_oom_killer

SCORE = Path("/proc/self/oom_score_adj")


@pytest.mark.skipif(not SCORE.exists(), reason="only Linux chooses whom to end where memory runs out")
def test_linux_is_offered_the_worker() -> None:
    code = f"from app.jobs import worker; worker.offer_to_oom_killer(500); print(open('{SCORE}').read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 500


def test_where_linux_hears_no_offer_the_worker_trains_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuses(path: Path, text: str) -> int:
        asked.append((str(path), text))
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuses)
    offer_to_oom_killer(500)
    assert asked == [(str(SCORE), "500")]


def test_a_card_in_disorder_keeps_no_outcome_from_being_told() -> None:
    said: list[dict[str, Any]] = []

    def free_cards() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    channel: Any = SimpleNamespace(say=said.append)
    tidy: Any = SimpleNamespace(free_cards=lambda: None)
    untidy: Any = SimpleNamespace(free_cards=free_cards)
    assert _let_go(channel, tidy)
    assert said == []
    assert not _let_go(channel, untidy)
    assert [message["type"] for message in said] == ["log"]
    assert "device-side assert" in said[0]["traceback"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out_of_memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "storage_full"),
        (ValueError("out of memory of mine"), "internal_error"),
    ],
)
def test_what_ran_out_is_told(error: Exception, code: str) -> None:
    assert explain(error)[0] == code

"""What a worker does before it trains."""

import subprocess
import sys
from pathlib import Path

import pytest

from app.jobs.worker import offer_to_oom_killer

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

"""A real run takes the memory that a dry run foretells, and its process asks for huge pages."""

from pathlib import Path

import httpx
import pytest

from scripts.bench_run_memory import IMAGES, WAIT_SECONDS, Work, figures
from scripts.processes import with_role
from scripts.service import Service
from tests.waiting import until

MLP = {"hidden_features": [1024] * 8}
WORKS = [
    Work("in parts of 4 × 1024 rows", 8_192, 64, MLP, 1024, 2, accumulate_steps=4),
    Work("convolutions", 256, 3072, {"layers": IMAGES, "input_shape": [3, 32, 32]}, 128, 2),
]


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_a_dry_run_foretells_the_peak(work: Work) -> None:
    foretold, base, peak = figures(work)
    assert peak > 1.2 * base, "the job should take more than a process does by itself"
    assert foretold["memory_bytes"] == pytest.approx(peak, rel=0.15)


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no huge pages")
def test_workers_ask_for_huge_pages(tmp_path: Path) -> None:
    with Service(tmp_path) as service:
        assert service.process
        pid = service.process.pid
        data = {"inputs": [[x] for x in range(10)], "targets": list(range(10))}
        body = {"model": "long", "data": data, "network": {"hidden_features": [2048] * 2}, "stop": {"max_seconds": 60}}
        httpx.post(f"{service.url}/train", json=body, timeout=WAIT_SECONDS).raise_for_status()
        assert until(lambda: any(asks_for_huge_pages(worker) for worker in with_role(pid, "worker")))


def asks_for_huge_pages(pid: int) -> bool:
    """For any part of its memory."""
    lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    return any(line.startswith("VmFlags:") and "hg" in line.split() for line in lines)

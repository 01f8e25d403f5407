"""A few seconds of scripts/soak, and that it would see what it looks for."""

from dataclasses import replace
from pathlib import Path

import pytest

from scripts.soak import MIB, Report, Sample, Soak

SAMPLE = Sample(60.0, 500 * MIB, 100 * MIB, 0, 50, 8, MIB, 2 * MIB)


def test_a_few_seconds_of_mixed_load(tmp_path: Path) -> None:
    report = Soak(tmp_path, seed=1, workers=1, minutes=0.1, max_growth=0.5).run()  # not warm yet
    assert report.faults == []
    assert {"POST /predict", "POST /train", "POST /v2", "PUT /datasets", "event streams"} <= report.counts.keys()
    assert len(report.rest) == 2
    assert "at rest" in report.table()


@pytest.mark.parametrize(
    ("later", "fault"),
    [
        ({"memory_bytes": 524 * MIB, "num_descriptors": 53, "database_bytes": 16 * MIB}, None),
        ({"memory_bytes": 526 * MIB}, "memory grew from 500 to 526 MiB"),
        ({"num_descriptors": 54}, "descriptors grew from 50 to 54"),
        ({"num_pooled": 33}, None),
        ({"num_pooled": 34}, "34 files of the database are open"),
        ({"database_bytes": 80 * MIB}, "database grew from 1 to 80 MiB"),
        ({"data_bytes": 90 * MIB}, "data/ grew from 2 to 90 MiB"),
    ],
)
def test_what_grows_is_a_fault(later: dict[str, int], fault: str | None) -> None:
    report = Report(rest=[SAMPLE, replace(SAMPLE, **later)])
    assert report.judge() == ([fault] if fault else [])

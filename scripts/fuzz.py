"""Sends a service what its OpenAPI document allows and what it forbids, and holds every answer against the document.

schemathesis makes the requests: the document's examples, edge cases of every parameter and field, random ones, and
chains of them along the document's links. A service of its own gets them, with little room and a key that may do all.
`scripts/fuzz` writes what came of it into docs/reliability.md.
"""

import argparse
import gzip
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from app.api.examples import RECORDS, SEED
from scripts.service import Service

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"
KEY = "fuzz-key"
SETTINGS = {  # what a stranger may make the service do takes little, so that there is time for many requests
    "GRADSERVE_API_KEYS": f"{KEY}:admin",
    "GRADSERVE_MAX_RUNNING_JOBS": "1",
    "GRADSERVE_MAX_QUEUED_JOBS": "50",
    "GRADSERVE_MAX_PARAMETERS": "100000",
    "GRADSERVE_MAX_WAIT_SECONDS": "1",
    "GRADSERVE_LOG_LEVEL": "warning",
}
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "use_after_free",
    "ignored_auth",
)


class Outcome(NamedTuple):
    """`failures`: what was wrong, a line for each kind of it."""

    num_requests: int
    seconds: float
    failures: list[str]
    max_bytes: int


@contextmanager
def target(root: Path) -> Iterator[Service]:
    """A service with two models, a key and little room."""
    with Service(root, settings=SETTINGS) as service:
        for body in (SEED, RECORDS):
            headers = {"Prefer": "wait=1", "Authorization": f"Bearer {KEY}"}
            httpx.post(f"{service.url}/train", json=body, headers=headers, timeout=90).raise_for_status()
        yield service


def fuzz(service: Service, *arguments: str) -> Outcome:
    """Let schemathesis loose on a service; `arguments` go to its `run`.

    Raises:
        RuntimeError: it did not come to its end.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {KEY}", "--checks", ",".join(CHECKS), "--continue-on-failure"),
            *("--request-timeout", "60", "--suppress-health-check", "all", "--warnings", "off", "--no-color"),
            *("--generation-database", "none", "--report", "json", "--report-json-path", str(report), *arguments),
        ]
        environment = os.environ | {"SCHEMATHESIS_HOOKS": "scripts.fuzz", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
        if not report.exists():
            raise RuntimeError(done.stdout + done.stderr)
        found = json.loads(report.read_text())
    if found["exit_code"]:
        print(done.stdout)
    failures = [f"{item['title']}: {item['count']}" for item in [*found["failures"], *found["errors"]]]
    return Outcome(found["test_cases"]["generated"], time.monotonic() - started, failures, max_bytes(service))


def max_bytes(service: Service) -> int:
    """The most memory that the service's process has held."""
    assert service.process
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found, status
    return int(found[1]) * 1024


# ---- hooks: bodies that are no JSON

Cell = int | float | str | None
NO_JSON = (
    "application/gzip",
    "application/jsonl",
    "application/vnd.apache.arrow.file",
    "application/vnd.apache.arrow.stream",
    "application/vnd.apache.parquet",
    "application/x-ndjson",
    "application/x-tar",
    "application/zip",
    "text/csv",
    "text/tab-separated-values",
)


def _register() -> None:
    """Tell schemathesis, which imports this module, how other media types are sent, and what binary ones hold.

    Text has examples in the document, which schemathesis does not take beside a strategy of ours.
    """
    import polars as pl
    import schemathesis
    from hypothesis import strategies as st

    names = st.text("abcxyz,\"'é ", min_size=1, max_size=5)
    cells = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=5) | st.booleans()
    records = st.lists(st.dictionaries(names, cells, min_size=1, max_size=4), max_size=5)

    def frame(rows: list[dict[str, Cell]]) -> pl.DataFrame:
        return pl.DataFrame(rows, infer_schema_length=None, strict=False) if rows else pl.DataFrame({"a": []})

    def written(method: str) -> st.SearchStrategy[bytes]:
        def write(rows: list[dict[str, Cell]]) -> bytes:
            content = io.BytesIO()
            getattr(frame(rows), method)(content)
            return content.getvalue()

        return st.tuples(records.map(write), st.integers(-40, 0)).map(lambda pair: pair[0][: pair[1] or None])

    csv = written("write_csv")
    ndjson = records.map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
    media_type = schemathesis.openapi.media_type
    media_type("application/vnd.apache.parquet", written("write_parquet"))
    media_type("application/vnd.apache.arrow.file", written("write_ipc"))
    media_type("application/vnd.apache.arrow.stream", written("write_ipc_stream"))
    media_type("application/gzip", (csv | ndjson | st.binary()).map(gzip.compress))

    @schemathesis.serializer(*NO_JSON)
    def as_it_is(_context: object, value: object) -> bytes:
        return value if isinstance(value, bytes) else str(value).encode()


if os.environ.get("SCHEMATHESIS_HOOKS") == "scripts.fuzz":
    _register()


# ---- the script


def record(outcome: Outcome, arguments: str) -> None:
    """Write the outcome into its place in docs/reliability.md."""
    failures = "; ".join(outcome.failures) or "none"
    lines = [
        "| command | requests | seconds | failures | most memory of the service |",
        "|---|---|---|---|---|",
        f"| `scripts/fuzz {arguments}` | {outcome.num_requests:,} | {outcome.seconds:.0f} | {failures} "
        f"| {outcome.max_bytes / 2**20:.0f} MiB |",
    ]
    text = PAGE.read_text()
    place = re.compile(r"(<!-- fuzz -->\n).*?(<!-- /fuzz -->)", re.DOTALL)
    assert place.search(text), f"{PAGE} has no place <!-- fuzz --> for the outcome"
    PAGE.write_text(place.sub(lambda found: f"{found[1]}" + "\n".join(lines) + f"\n{found[2]}", text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-examples", type=int, default=300, help="random requests for each operation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true", help="leave docs/reliability.md as it is")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as root, target(Path(root)) as service:
        outcome = fuzz(service, "--max-examples", str(given.max_examples), "--seed", str(given.seed))
        if outcome.failures:
            print(*(line for line in service.log.read_text().splitlines() if "request failed" in line), sep="\n")
    print(f"{outcome.num_requests} requests in {outcome.seconds:.0f} s; failures: {outcome.failures or 'none'}")
    if not given.no_record:
        record(outcome, f"--max-examples {given.max_examples} --seed {given.seed}")
    sys.exit(bool(outcome.failures))


if __name__ == "__main__":
    main()

"""A short run of what `scripts/fuzz` does for longer: answers are as the OpenAPI document says, and none is a 5xx."""

from pathlib import Path

from scripts.fuzz import fuzz, max_bytes, target

MIN_REQUESTS = 500  # some for each of the operations
MAX_GROWN_BYTES = 2**29


def test_every_answer_is_as_the_document_says(tmp_path: Path) -> None:
    with target(tmp_path) as service:
        before = max_bytes(service)
        outcome = fuzz(service, "--phases", "examples,fuzzing,stateful", "--max-examples", "8", "--seed", "7")
        assert outcome.failures == []
        assert outcome.num_requests >= MIN_REQUESTS
        assert outcome.max_bytes - before < MAX_GROWN_BYTES
        assert "request failed" not in service.log.read_text()

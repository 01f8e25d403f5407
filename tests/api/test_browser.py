"""What a browser makes of the service: its own pages work, strangers' pages get nothing."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.service import service
from tests.browser import CHROMIUM, Page, chromium

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """The port of a server with a page of another site."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>another site</title>")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever).start()
        yield str(server.server_port)
        server.shutdown()


def run_example(page: Page, operation: str) -> str:
    """Open an operation in /docs, press Execute, and return the status that is shown."""
    page.until(f"!!document.querySelector('#{operation}')")
    page.run(f"document.querySelector('#{operation} .opblock-summary-control').click()")
    page.until(f"!!document.querySelector('#{operation} .execute')")
    page.run(f"document.querySelector('#{operation} .execute').click()")
    found: str = page.until(
        f"document.querySelector('#{operation} .live-responses-table tbody .response-col_status')?.innerText.trim()"
    )
    return found


def test_every_call_can_be_tried_out_on_the_page(page: Page, client: httpx.Client, tmp_path: Path) -> None:
    page.messages.clear()
    page.go(f"{client.base_url}/docs")
    assert page.until("document.querySelector('.title')?.innerText").startswith("Gradserve")
    paths = client.get("/openapi.json").json()["paths"]
    ids = {path: f"operations-{path[1:]}-{paths[path]['post']['operationId']}" for path in ("/train", "/predict")}
    statuses = {path: run_example(page, operation) for path, operation in ids.items()}
    assert statuses["/train"].startswith(("200", "202")), page.messages
    assert statuses["/predict"].startswith(("200", "404")), page.messages
    page.screenshot(tmp_path / "docs.png")
    assert not [message for message in page.messages if "Content Security Policy" in message]


def test_the_other_page_of_the_document(page: Page, client: httpx.Client) -> None:
    page.messages.clear()
    page.go(f"{client.base_url}/redoc")
    page.until("document.body.innerText.includes('Train a model')")
    assert not [message for message in page.messages if "Content Security Policy" in message]


FETCH = """
fetch('%s', {method: 'POST', headers: {'Content-Type': '%s'}, body: '{"model": "x", "inputs": [[1]]}', mode: '%s'})
  .then(answer => answer.type + ' ' + answer.status, error => 'refused')
"""


def status_counts(client: httpx.Client) -> dict[str, float]:
    counts: dict[str, float] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "gradserve_http_requests_total" and sample.labels["method"] in ("POST", "OPTIONS"):
                counts[sample.labels["status"]] = counts.get(sample.labels["status"], 0) + sample.value
    return counts


def test_a_page_of_another_site_gets_nothing(page: Page, client: httpx.Client, elsewhere: str) -> None:
    before = status_counts(client)
    page.go(f"http://site.example:{elsewhere}/")
    target = f"http://127.0.0.1:{client.base_url.port}/predict"
    assert page.run(FETCH % (target, "application/json", "cors")) == "refused"
    assert page.run(FETCH % (target, "text/plain", "no-cors")) in ("refused", "opaque 0")
    page.go(f"http://127.0.0.1:{elsewhere}/")  # the same machine is not the same origin
    assert page.run(FETCH % (target, "application/json", "cors")) == "refused"
    assert page.run(FETCH % (target, "text/plain", "no-cors")) in ("refused", "opaque 0")
    after = status_counts(client)
    assert {status for status in after if after[status] > before.get(status, 0)} <= {"403"}
    assert after["403"] > before.get("403", 0)


def test_a_name_that_leads_here_gets_nothing(page: Page, client: httpx.Client) -> None:
    """As after DNS rebinding: to the browser it is one origin."""
    page.go(f"http://site.example:{client.base_url.port}/docs")
    assert "host_not_allowed" in page.run("document.body.innerText")
    assert page.run(FETCH % ("/predict", "application/json", "cors")) == "basic 403"


def test_a_page_of_an_allowed_origin_reads_answers(page: Page, elsewhere: str, tmp_path: Path) -> None:
    origin = f"http://127.0.0.1:{elsewhere}"
    with service(tmp_path, allowed_origins=origin) as client:
        page.go(origin)
        target = f"{client.base_url}/predict"
        assert page.run(FETCH % (target, "application/json", "cors")) == "cors 404"

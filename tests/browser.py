"""A real Chromium without a window, spoken to by the DevTools protocol. (https://chromedevtools.github.io/devtools-protocol/)"""

import base64
import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from tests.waiting import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """A tab. `messages` are what it wrote to its console and what its policies refused."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.messages: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a command of the protocol."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (said := json.loads(self._connection.recv(60))).get("id") != number:
            self._hear(said)
        assert "error" not in said, said
        return said["result"]

    def _hear(self, said: dict[str, Any]) -> None:
        if said["method"] == "Log.entryAdded":
            self.messages.append(said["params"]["entry"]["text"])
        elif said["method"] == "Runtime.consoleAPICalled":
            self.messages.append(" ".join(str(part.get("value")) for part in said["params"]["args"]))
        elif said["method"] == "Runtime.exceptionThrown":
            self.messages.append(str(said["params"]["exceptionDetails"]))

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        until(lambda: self.run("document.readyState") == "complete", 60)

    def run(self, script: str) -> Any:
        """What an expression, or the promise that it gives, comes to."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> Any:
        """The expression's first truthy value."""
        return until(lambda: self.run(script), seconds)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A page of a browser whose profile is in this folder."""
    assert CHROMIUM
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--window-size=1280,1600", "--remote-debugging-port=0",
        "--host-resolver-rules=MAP * 127.0.0.1",  # every name leads to this machine, as whoever owns one can have it
        f"--user-data-dir={folder}", "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file = folder / "DevToolsActivePort"
        port = until(lambda: port_file.exists() and port_file.read_text().partition("\n")[0], 60)
        tabs = until(lambda: httpx.get(f"http://127.0.0.1:{port}/json/list").json(), 60)
        address = next(tab for tab in tabs if tab["type"] == "page")["webSocketDebuggerUrl"]
        with connect(address, max_size=None) as connection:
            yield Page(connection)
    finally:
        process.terminate()
        process.wait(30)

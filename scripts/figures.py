"""Figures in the pages of docs/: what a script has measured stands between `<!-- NAME -->` and `<!-- /NAME -->`."""

import os
import platform
import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def write_figures(page: str, name: str, text: str) -> None:
    """Raises AssertionError where the page has no such place."""
    path = DOCS / page
    place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    before = path.read_text()
    assert place.search(before), f"docs/{page} has no place <!-- {name} -->"
    path.write_text(place.sub(lambda found: f"{found[1]}{text}\n{found[2]}", before))


def machine() -> str:
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}"

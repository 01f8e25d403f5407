"""What the documentation says about the code is what the code says."""

import json
import math
import re
import tomllib
from pathlib import Path

import polars as pl
import pytest
import torch

from app.settings import Settings
from scripts import bench, docs
from tests.samples import untrained

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", docs.TABLES)
def test_tables_are_up_to_date(page: str) -> None:
    assert (docs.DOCS / page).read_text() == docs.up_to_date(page), "run scripts/docs"


def test_every_setting_says_what_it_is() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_every_type_has_a_row_with_its_defaults() -> None:
    page = (docs.DOCS / "training.md").read_text()
    assert "| `adam` | `learning_rate` `0.001`" in page
    assert "| `residual` | `layers` (required) |" in page
    assert '| `variant` | `"mini_batch"` | `"full_batch"`, `"stochastic"` |' in page


def test_json_in_the_pages_is_json() -> None:
    """Inline JSON objects, where `…` stands for what is left to the reader."""

    for page in docs.DOCS.glob("*.md"):
        for text in re.findall(r"`(\{\".*?\})`", page.read_text(), re.DOTALL):
            json.loads(text.replace(", …", "").replace("…", ""))


def test_networks_in_the_pages_fit_together() -> None:
    found = re.findall(r"`(\{[^`]*\"layers\"[^`]*\})`", (docs.DOCS / "training.md").read_text())
    networks = list(map(json.loads, found))
    assert len(networks) >= 4
    for network in networks:
        width = math.prod(network.get("input_shape", [20]))
        table = pl.DataFrame({f"x{place}": range(4) for place in range(width)} | {"y": [0.5, 1.5, 2.5, 3.5]})
        assert untrained(table, network=network).network(torch.ones(2, width)).shape == (2, 1)


def test_tests_that_the_pages_name_are_there() -> None:
    named = [
        found
        for page in docs.DOCS.glob("*.md")
        for found in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text())
    ]
    assert named
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


def test_the_container_is_started_as_the_readme_says() -> None:
    dockerfile, readme = (ROOT / "Dockerfile").read_text(), (ROOT / "README.md").read_text()
    (run,) = re.findall(r"^docker run .*$", readme, re.MULTILINE)
    volumes = re.search(r'^VOLUME \["(.*)", "(.*)"\]$', dockerfile, re.MULTILINE)
    assert volumes
    assert set(re.findall(r"--volume [\w-]+:(\S+)", run)) == set(volumes.groups())
    (port,) = re.findall(r"^EXPOSE (\d+)$", dockerfile, re.MULTILINE)
    assert f"--publish {port}:{port} " in run
    assert f"GRADSERVE_PORT={port}" in dockerfile
    for argument in ("TORCH_INDEX_URL", "COMPILER"):
        assert f"ARG {argument}=" in dockerfile
        assert f"--build-arg {argument}=" in readme
    assert 'CMD ["gradserve", "health"]' in dockerfile
    assert dockerfile.index("USER gradserve") < dockerfile.index("ENTRYPOINT")


def test_constraints_name_every_dependency_exactly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    extras = project["optional-dependencies"]
    wanted += [part for name in extras if f"gradserve[{name}]" in wanted for part in extras[name]]
    for requirement in wanted:
        if requirement.startswith("gradserve["):
            continue  # its parts are in the list
        assert re.split(r"[\[<>=]", requirement)[0].lower().replace("_", "-") in pinned, requirement


def test_scripts_are_described() -> None:
    described = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "scripts" / "README.md").read_text(), re.MULTILINE))
    assert described == {path.name for path in (ROOT / "scripts").iterdir() if path.is_file() and not path.suffix}


def test_each_benchmark_has_its_place_and_is_told_of() -> None:
    page, scripts = (ROOT / "docs" / "benchmarks.md").read_text(), (ROOT / "scripts" / "README.md").read_text()
    for name in bench.BENCHMARKS:
        assert f"<!-- {name} -->\n" in page
        assert f"`bench {name}`" in scripts

"""Benchmarks that write the tables of docs/benchmarks.md. Run it through scripts/bench."""

import argparse
import os
import platform
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from scripts import bench_cuda, bench_memory, bench_overload, bench_run_memory, bench_serving, bench_toy, bench_training

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BENCHMARKS: dict[str, Callable[[argparse.Namespace], str]] = {
    "training": lambda given: bench_training.table(given.repetitions),
    "toy": lambda given: bench_toy.table(given.repetitions),
    "cuda": lambda given: bench_cuda.table(given.repetitions),
    "run-memory": lambda _: bench_run_memory.table(),
    "memory": lambda given: bench_memory.table(given.repetitions),
    "serving": lambda given: bench_serving.table(given.repetitions, given.peers),
    "overload": lambda _: bench_overload.table(),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--repetitions", type=int, default=7, metavar="N", help="the median of so many [7]")
    parser.add_argument("--peers", action="store_true", help="serving: LitServe and MLServer too, which pip gets first")
    given = parser.parse_args()
    table = BENCHMARKS[given.name](given)
    options = f"--repetitions {given.repetitions}{' --peers' if given.peers else ''}"
    command = f"`scripts/bench {given.name} {options}` on {machine()}:"
    print(table)
    place = re.compile(rf"(<!-- {given.name} -->\n).*?(<!-- /{given.name} -->)", re.DOTALL)
    PAGE.write_text(place.sub(partial(_with, f"{command}\n\n{table}"), PAGE.read_text()))


def _with(text: str, place: re.Match[str]) -> str:
    return f"{place[1]}{text}\n{place[2]}"


def machine() -> str:
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()

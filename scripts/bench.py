"""Benchmarks that write the tables of docs/benchmarks.md. Run it through scripts/bench."""

import argparse
from collections.abc import Callable

import torch

from scripts import (
    bench_cuda,
    bench_huge_pages,
    bench_large_predict,
    bench_large_table,
    bench_memory,
    bench_overload,
    bench_run_memory,
    bench_seconds,
    bench_serving,
    bench_start,
    bench_toy,
    bench_training,
)
from scripts.figures import machine, write_figures

BENCHMARKS: dict[str, Callable[[argparse.Namespace], str]] = {
    "training": lambda given: bench_training.table(given.repetitions),
    "toy": lambda given: bench_toy.table(given.repetitions),
    "start": lambda given: bench_start.table(given.repetitions),
    "cuda": lambda given: bench_cuda.table(given.repetitions),
    "huge-pages": lambda given: bench_huge_pages.table(given.repetitions),
    "run-memory": lambda _: bench_run_memory.table(),
    "seconds": lambda given: bench_seconds.table(given.repetitions),
    "large-predict": lambda given: bench_large_predict.table(given.repetitions),
    "large-table": lambda _: bench_large_table.table(),
    "memory": lambda given: bench_memory.table(given.repetitions),
    "serving": lambda given: bench_serving.table(given.repetitions, given.seconds, given.peers),
    "overload": lambda _: bench_overload.table(),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--repetitions", type=int, default=7, metavar="N", help="the median of so many [7]")
    parser.add_argument("--seconds", type=int, default=4, metavar="N", help="serving: how long each load lasts [4]")
    parser.add_argument("--peers", action="store_true", help="serving: others too, which pip gets the first time")
    given = parser.parse_args()
    table = BENCHMARKS[given.name](given)
    options = f"--repetitions {given.repetitions}"
    options += f" --seconds {given.seconds}" if given.seconds != parser.get_default("seconds") else ""
    options += " --peers" if given.peers else ""
    command = f"`scripts/bench {given.name} {options}` on {machine()}, torch {torch.__version__}:"
    print(table)
    write_figures("benchmarks.md", given.name, f"{command}\n\n{table}")


if __name__ == "__main__":
    main()

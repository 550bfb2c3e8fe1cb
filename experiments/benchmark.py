"""Measure every way of training against the naive one: `python -m experiments.benchmark --data shop.zip`."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.cli import run_command
from vlm_core.atomic import write_atomically
from vlm_core.errors import UserError

FAMILIES = ("clip", "blip", "git")
# Commas separate kinds on the command line.
KINDS = (
    "naive",
    "full",
    "full beside naive",
    "probe",
    "one block",
    "one block int8",
    "two blocks",
    "two blocks at 32",
    "LoRA",
    "LoRA uncached",
    "answers",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is not in the results yet, one process a figure, and write the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmark",
        description="Seconds a picture of every mode next to a naive loop, on published architectures with random "
        "weights. Figures that the results hold are not measured again.",
    )
    parser.add_argument("--data", default="sample", help="catalogue whose pictures are used (default: sample)")
    parser.add_argument("--families", default=",".join(FAMILIES), help="default: clip,blip,git")
    parser.add_argument("--kinds", default=",".join(KINDS), help="what to measure, comma-separated (also Trainer)")
    parser.add_argument("--sizes", default="224", help="pixels a side, comma-separated (default: 224)")
    parser.add_argument("--growth", default="1000,5000,20000,40000", help="numbers of pictures; empty: none")
    parser.add_argument("--steps", type=int, default=5, help="steps a figure (default: 5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="PyTorch threads (default: all cores)")
    parser.add_argument("--results", default="results/benchmark.json", help="file of the figures")
    parser.add_argument("--output", default="", help="Markdown file for the tables (empty: print them)")
    given = parser.parse_args(arguments)
    path, root = Path(given.results), str(Path.cwd())
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    from vlm_core.benchmark import growth, inference_speed, markdown_tables, steps

    def keep(name: str, work: Callable[..., Any], *values: Any) -> None:
        if name in results:
            return
        print(f"Measuring {name} ...", flush=True)
        results[name] = _alone(work, *values)
        write_atomically(path, lambda file: file.write(json.dumps(results, indent=1).encode()))

    sizes = [int(size) for size in given.sizes.split(",")]
    for size in sizes:
        keep(f"preprocessing {size}", steps.measure_preprocessing, size, given.data, root, given.threads)
    for family in given.families.split(","):
        for size in sizes:
            for kind in given.kinds.split(","):
                where = (family, size, given.data, root, given.threads)
                if kind == "answers":
                    keep(f"inference {family} {size}", inference_speed.measure_inference, *where)
                elif kind == "full beside naive":
                    keep(f"in turn {family} {size}", steps.measure_in_turn, *where, given.steps)
                else:
                    keep(f"training {family} {size} {kind}", steps.measure, kind, *where, given.steps)
    for count in filter(None, given.growth.split(",")):
        keep(f"growth of {count}", growth.measure_growth, int(count), given.data, root, given.threads)
    tables = markdown_tables.all_tables(results)
    if given.output:
        _write_tables(tables, Path(given.output))
    print(f"Wrote the tables of {given.output}." if given.output else tables)


def _write_tables(tables: str, path: Path) -> None:
    """Put the tables between the file's marks, or at its end where it has none; what else it says stays."""
    begin, end = "<!-- tables: written by experiments.benchmark -->\n", "<!-- end of the tables -->\n"
    before, _, rest = (path.read_text() if path.exists() else "").partition(begin)
    text = before + begin + tables + end + rest.partition(end)[2]
    write_atomically(path, lambda file: file.write(text.encode()))


def _alone(work: Callable[..., Any], *values: Any) -> Any:
    """What `work` gives in a process of its own, whose memory is its alone."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply(work, values)
        except MemoryError:
            raise UserError("The memory does not suffice for this figure: leave it out with --kinds.") from None


if __name__ == "__main__":
    sys.exit(run_command(main))

"""Compare every training mode with a naive loop: `python -m experiments.benchmark --data shop.zip`."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.cli import Parser, run_command
from vlm_core.errors import UserError, require_extra
from vlm_core.files.atomic import write_atomically

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
    "inference",
    "busy",
    "precision",
)
WITHOUT_CATALOGUE = {"busy", "precision"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is not in the results yet, one process per measurement, and write the tables."""
    parser = Parser(
        prog="python -m experiments.benchmark",
        description="Measure seconds per image of every training mode and of a naive loop, on published "
        "architectures with random weights. What is in the results already is not measured again.",
    )
    parser.add_argument("--data", default="sample", help="catalogue whose images are used (default: sample)")
    parser.add_argument("--families", default=",".join(FAMILIES), help="default: clip,blip,git")
    parser.add_argument(
        "--kinds",
        default=",".join(KINDS),
        help=f"what to measure, comma-separated: {', '.join(KINDS)}, "
        "or Trainer, Hugging Face's (default: all but Trainer)",
    )
    parser.add_argument("--sizes", default="224", help="input sizes in pixels, comma-separated (default: 224)")
    parser.add_argument(
        "--growth", default="1000,5000,20000,40000", help="numbers of images, comma-separated; empty: none"
    )
    parser.add_argument("--steps", type=int, default=5, help="training steps per measurement (default: 5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="PyTorch threads (default: all cores)")
    parser.add_argument("--results", default="results/benchmark.json", help="JSON file of the measurements")
    parser.add_argument("--output", default="", help="Markdown file for the tables (empty: print them)")
    options = parser.parse_args(arguments)
    require_extra("study")
    require_extra("export")
    path, root = Path(options.results), str(Path.cwd())
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    from vlm_core.benchmark import busy_machine, device_steps, growth, inference_speed, markdown_tables, steps

    def measure(name: str, work: Callable[..., Any], *values: Any) -> None:
        if name in results:
            return
        print(f"Measuring {name} ...", flush=True)
        results[name] = _alone(work, *values)
        write_atomically(path, lambda file: file.write(json.dumps(results, indent=1).encode()))

    sizes = [int(size) for size in options.sizes.split(",")]
    for size in sizes if set(options.kinds.split(",")) - WITHOUT_CATALOGUE else ():
        measure(f"preprocessing {size}", steps.measure_preprocessing, size, options.data, root, options.threads)
    for family in options.families.split(","):
        for size in sizes:
            for kind in options.kinds.split(","):
                where = (family, size, options.data, root, options.threads)
                if kind in ("inference", "answers"):  # its former name
                    measure(f"inference {family} {size}", inference_speed.measure_inference, *where)
                elif kind == "busy":
                    measure(f"busy {family} {size}", busy_machine.measure_busy, family, size, options.threads)
                elif kind == "precision":
                    measure(
                        f"precision {family} {size}", device_steps.measure_precisions, family, size, options.threads
                    )
                elif kind == "full beside naive":
                    measure(f"in turn {family} {size}", steps.measure_in_turn, *where, options.steps)
                else:
                    measure(f"training {family} {size} {kind}", steps.measure, kind, *where, options.steps)
    for count in filter(None, options.growth.split(",")):
        measure(f"growth of {count}", growth.measure_growth, int(count), options.data, root, options.threads)
    tables = markdown_tables.all_tables(results)
    if options.output:
        _write_tables(tables, Path(options.output))
    print(f"Wrote the tables to {options.output}." if options.output else tables)


def _write_tables(tables: str, path: Path) -> None:
    """Write the tables between the file's markers, or at its end where it has none, and leave the rest as it is."""
    begin, end = "<!-- tables: written by experiments.benchmark -->\n", "<!-- end of the tables -->\n"
    before, _, rest = (path.read_text() if path.exists() else "").partition(begin)
    text = before + begin + tables + end + rest.partition(end)[2]
    write_atomically(path, lambda file: file.write(text.encode()))


def _alone(work: Callable[..., Any], *values: Any) -> Any:
    """Return what `work` returns in a process of its own, so that its memory is measured alone."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply(work, values)
        except MemoryError:
            raise UserError("There is not enough memory for this measurement: leave it out of kinds=.") from None


if __name__ == "__main__":
    sys.exit(run_command(main))

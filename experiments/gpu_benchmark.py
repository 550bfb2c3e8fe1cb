"""Measure training steps on a GPU and compare them with the CPU: `python -m experiments.gpu_benchmark`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.cli import Parser, run_command
from vlm_core.errors import UserError
from vlm_core.files.atomic import write_atomically

PARTS = ("agreement", "steps", "compiled")
logger = logging.getLogger("vlm_core.gpu_benchmark")


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare a GPU with the CPU and measure its training steps; every measurement is stored at once."""
    parser = Parser(
        prog="python -m experiments.gpu_benchmark",
        description="Compare what a GPU computes with the CPU, and measure training steps of CLIP, BLIP and GIT with "
        "random weights in fp32, TF32 and bf16: images per second, share of the card's peak, memory. It needs neither "
        "a network nor MLflow, and takes less than ten minutes.",
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="default: cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the command on a CPU")
    parser.add_argument("--families", default="clip,blip,git", help="default: clip,blip,git")
    parser.add_argument(
        "--parts", default=",".join(PARTS), help=f"which of {', '.join(PARTS)}, in the order given (default: all)"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images per step (default: 64)")
    parser.add_argument(
        "--limit", type=float, default=540, help="seconds after which no measurement starts (default: 540)"
    )
    parser.add_argument(
        "--results", default="results/gpu.json", help="JSON file of the measurements (default: results/gpu.json)"
    )
    parser.add_argument("--output", default="", help="Markdown file for the tables (empty: print them)")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts.split(",")) - set(PARTS):
        raise UserError(f"--parts {unknown.pop()} is not known: choose among {', '.join(PARTS)}.")
    started = time.monotonic()
    from vlm_core.benchmark.device_tables import all_tables, faults
    from vlm_core.inference import choose_device

    device = choose_device(options.device)
    results: dict[str, Any] = {"batch_size": options.batch_size, "agreement": [], "steps": []}
    with tempfile.TemporaryDirectory() as folder:
        for measurements in _measure(options, device, Path(folder)):
            for name, measured in measurements.items():
                results[name] = results[name] + measured if isinstance(measured, list) else measured
            results["seconds"] = round(time.monotonic() - started, 1)
            _write(Path(options.results), json.dumps(results, indent=1))
            if results["seconds"] >= options.limit:
                logger.info(f"Stopped after {results['seconds']:.0f} s: --limit {options.limit:g}.")
                break
    tables = all_tables(results)
    if options.output:
        _write(Path(options.output), tables)
    print(f"Wrote the tables to {options.output}." if options.output else tables, flush=True)
    if names := faults(results):
        raise UserError(f"These measurements failed, or differ from the CPU's by more than their tolerance: {names}.")


def _measure(options: argparse.Namespace, name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield measurements as they are measured, under the names of the results."""
    import torch

    from vlm_core.benchmark import device_agreement, device_steps
    from vlm_core.benchmark.device_tables import peaks_line

    device, families = torch.device(name), tuple(options.families.split(","))
    yield {"machine": device_steps.describe_machine(device)}
    precisions: tuple[device_steps.Precision, ...] = ("fp32", "bf16") if name == "cpu" else ("fp32", "tf32", "bf16")
    rates = device_steps.measure_peaks(device, precisions, 512 if options.tiny else 8192)
    peak_rates: dict[str, Any] = {precision: asdict(rate) for precision, rate in rates.items()}
    logger.info(peaks_line(peak_rates))
    yield {"peaks": peak_rates}
    peaks = {precision: rate.median for precision, rate in rates.items()}
    for part in options.parts.split(","):
        if part == "agreement":
            data = device_agreement.load_sample(folder)
            for check in device_agreement.measure_agreement(name, data, folder, families):
                logger.info(device_agreement.line(check))
                yield {"agreement": [{**asdict(check), "agrees": check.agrees}]}
            continue
        measurements = device_steps.COMPILED if part == "compiled" else device_steps.MEASUREMENTS
        measurements = tuple(measurement for measurement in measurements if measurement.precision in precisions)
        for architecture in device_steps.TINY if options.tiny else device_steps.ARCHITECTURES:
            if architecture.family not in families:
                continue
            for step in device_steps.measure_architecture(
                architecture, measurements, device, options.batch_size, peaks, folder
            ):
                logger.info(device_steps.line(step))
                yield {"steps": [asdict(step)]}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    sys.exit(run_command(main))

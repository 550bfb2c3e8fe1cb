"""The GPU benchmark's Markdown tables, from its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_core.tracking.card import markdown_table

Result = Mapping[str, Any]


def all_tables(results: Result) -> str:
    """Return the machine, its peaks and the tables that have results."""
    machine, peaks = results["machine"], results.get("peaks", {})
    memory = f" ({machine['memory_gib']:.0f} GiB)" if "memory_gib" in machine else ""
    parts = [
        f"Machine: {machine['device']}{memory}, {machine['cpu']}, {machine['cores']} cores, "
        f"PyTorch {machine['torch']}. Batch size {results['batch_size']}. {peaks_line(peaks)} "
        f"{results['seconds']:.0f} s in all."
    ]
    if results["steps"]:
        parts.append(f"### Training steps\n\n{steps_table(results['steps'])}")
    if results["agreement"]:
        parts.append(f"### Agreement with the CPU\n\n{agreement_table(results['agreement'])}")
    return "\n\n".join(parts) + "\n"


def peaks_line(peaks: Result) -> str:
    """Return the rate of matmuls in each precision: the median of series, and their quartiles."""
    rates = [
        f"{rate['median']:,.3g} in {precision} ({rate['lower']:,.3g} to {rate['upper']:,.3g})"
        for precision, rate in peaks.items()
    ]
    return f"Matmul of large matrices, TFLOP/s: {', '.join(rates)}."


def steps_table(results: Sequence[Result]) -> str:
    """Return speed, share of the peak, memory and distance from the CPU by architecture, kind and precision."""
    columns = ("architecture", "pixels", "kind", "precision", "images per second", "TFLOP/s", "share of the bf16 peak")
    further = ("share of its own peak", "peak GiB", "loss off by", "gradients off by", "within tolerance")
    return markdown_table((*columns, *further), [_step_row(result) for result in results])


def _step_row(result: Result) -> tuple[str, ...]:
    precision = f"{result['precision']}, compiled" if result["compiled"] else result["precision"]
    name = (result["architecture"], str(result["image_size"]), result["kind"], precision)
    if result["error"]:
        return (*name, result["error"], *("",) * 7)
    verdict = {None: "", True: "yes", False: "NO"}[result["within_tolerance"]]
    return (
        *name,
        f"{result['images_per_second']:,.0f}",
        f"{result['tflops']:.3g}",
        f"{result['share_of_peak']:.1%}",
        f"{result['share_of_own_peak']:.1%}",
        _number(result["peak_gib"], ".1f"),
        _number(result["loss_error"], ".1e"),
        _number(result["gradient_error"], ".1e"),
        verdict,
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def agreement_table(results: Sequence[Result]) -> str:
    """Return the largest relative difference of each check, and its seconds on the device and on the CPU."""
    rows = [
        (
            result["family"],
            result["check"],
            result["error"] or ", ".join(f"{name} {value:.1e}" for name, value in result["differences"].items()),
            f"{result['tolerance']:g}",
            "yes" if result["agrees"] else "NO",
            f"{result['device_seconds']:.1f}",
            f"{result['cpu_seconds']:.1f}",
        )
        for result in results
    ]
    columns = ("family", "check", "relative difference", "tolerance", "agrees", "seconds", "seconds on the CPU")
    return markdown_table(columns, rows)


def faults(results: Result) -> str:
    """Return the names of the measurements that failed or are outside their tolerance, separated by commas."""
    checks = [f"{each['family']} {each['check']}" for each in results["agreement"] if not each["agrees"]]
    steps = [
        f"{each['architecture']} {each['kind']} {each['precision']}"
        for each in results["steps"]
        if each["error"] or each["within_tolerance"] is False
    ]
    return ", ".join(checks + steps)

"""Hostile images and requests at every interface: `python -m tests.campaigns.hostile --images 10000 --seed 0`.

Mutated and generated images go to the decoder, to `predict` and `prepare`; some of them, and requests of odd shapes, to
the served model (`mlflow models serve`) and to the dashboard's categorise page, each in its real process on loopback,
with 1 and with 16 clients. Nothing may crash or answer with 5xx: a bad image is an error in its own row. Afterwards a
known picture must get its answer. Memory is that of the process and its children: at the start (after a first
request), at its peak and at the end.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from tests.campaigns.hostile_dashboard import attack_dashboard
from tests.campaigns.hostile_pictures import hostile_picture, hostile_request, picture
from tests.campaigns.hostile_server import (
    POOL,
    Memory,
    Outcome,
    Request,
    alike,
    attack_server,
    expected_rows,
    free_port,
    make_model,
    server,
)

TARGETS: Final = ("decode", "predict", "prepare", "serve", "dashboard")
KNOWN: Final = "known"
_ID: Final = "{:06}"


def isolated(work: Callable[..., Outcome], *given: Any) -> Outcome:
    """Return what `work` returns in a forked process: a crash there is a failure, not the campaign's end."""
    context = get_context("fork")
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=lambda: writing.send(work(*given)))
    process.start()
    writing.close()
    try:
        outcome: Outcome = reading.recv()
    except EOFError:
        process.join()
        outcome = Outcome(given[0] if given else "?", 1)
        outcome.fail(f"the process ended with exit code {process.exitcode}")
    process.join()
    return outcome


def attack_decoder(target: str, images: int, seed: int, seconds: float) -> Outcome:
    """Decode hostile images: each is a picture or an UnreadablePicture, and the known one is right afterwards."""
    import numpy as np

    from vlm_core.pixels.picture_store import UnreadablePicture, decode_picture

    _silence()
    chance, outcome, answers, durations = random.Random(seed), Outcome(target), Counter[str](), list[float]()
    expected = np.asarray(decode_picture(picture()))
    memory, started = Memory(os.getpid()), time.monotonic()
    while outcome.tried < images and time.monotonic() - started < seconds:
        data = hostile_picture(chance)
        outcome.tried += 1
        began = time.perf_counter()
        try:
            decoded = decode_picture(data)
            answers["decoded"] += 1
            if decoded.mode != "RGB":
                outcome.fail(f"image {outcome.tried}: mode {decoded.mode}")
        except UnreadablePicture:
            answers["refused"] += 1
        except BaseException as error:
            outcome.fail(f"image {outcome.tried} ({data[:12]!r}, {len(data)} bytes): {type(error).__name__}: {error}")
        durations.append(time.perf_counter() - began)
    outcome.finish(started, durations, answers)
    if not np.array_equal(np.asarray(decode_picture(picture())), expected):
        outcome.fail("the known picture is decoded in another way afterwards")
    outcome.memory_mib = memory.stop()
    return outcome


def write_pictures(folder: Path, images: int, seed: int) -> None:
    """Write hostile images and 40 good ones below `folder/images`, and a table that names them."""
    chance = random.Random(seed)
    (folder / "images").mkdir(parents=True)
    rows = ["id,masterCategory,productDisplayName"]
    for number in range(images):
        (folder / "images" / f"{_ID.format(number)}.jpg").write_bytes(hostile_picture(chance))
        rows.append(f"{_ID.format(number)},{chance.choice(('Apparel', 'Footwear', '=1+1', '[/b]'))},a title")
    for number in range(40):  # enough good ones that a catalogue can be made of them
        (folder / "images" / f"{KNOWN}{number}.jpg").write_bytes(picture(6 * number, (60 + number, 80)))
        rows.append(f"{KNOWN}{number},{('Apparel', 'Footwear')[number % 2]},a title")
    (folder / "styles.csv").write_text("\n".join(rows))


def attack_prediction(target: str, model: Path, images: int, seed: int, work: Path) -> Outcome:
    """Run `predict` over a folder of hostile images: a row for each, with a category or an error."""
    import pyarrow.csv as csv

    shop, output = work / f"{target}-pictures", work / "predictions.csv"
    write_pictures(shop, images, seed)
    outcome, started = Outcome(target, images + 40), time.monotonic()
    script = (
        "import sys; from pathlib import Path; from experiments.cli import run_command\n"
        "import vlm_core.tracking.registry as registry; registry.resolve = lambda name: Path(name)\n"
        "from experiments.predict import main; sys.exit(run_command(main))"
    )
    flags = ["--model", str(model), "--pictures", str(shop), "--output", str(output), "--threads", "1"]
    ended, outcome.memory_mib = _run_watched([sys.executable, "-c", script, *flags], work)
    if ended.returncode or "Traceback" in ended.stderr:
        outcome.fail(f"exit code {ended.returncode}: {ended.stderr[-250:]}")
        return outcome
    rows = csv.read_csv(output).to_pylist()
    for row in rows:
        if bool(row["category"]) == bool(row["error"]):
            outcome.fail(f"{row['id']}: neither a category alone nor an error alone")
    if len(rows) != outcome.tried:
        outcome.fail(f"{len(rows)} rows")
    expected = expected_rows(model, [picture(6 * number, (60 + number, 80)) for number in range(40)])
    known = {row["id"].removeprefix("images/"): row for row in rows}
    for number, answer in enumerate(expected):
        if not alike(known[f"{KNOWN}{number}"], answer):
            outcome.fail(f"{KNOWN}{number}: another answer than alone")
    outcome.finish(started, [], Counter("error" if row["error"] else "category" for row in rows))
    return outcome


def attack_preparation(target: str, images: int, seed: int, work: Path) -> Outcome:
    """Run `prepare` over a catalogue of hostile images: the bad ones are left out, with their reasons."""
    shop = work / f"{target}-shop"
    write_pictures(shop, images, seed)
    outcome, started = Outcome(target, images + 40), time.monotonic()
    (work / "prepared").mkdir()
    ended, outcome.memory_mib = _run_watched(
        [sys.executable, "-m", "experiments.prepare", "--data", str(shop)], work / "prepared"
    )
    outcome.finish(started, [], Counter())
    if ended.returncode or "Traceback" in ended.stderr:
        outcome.fail(f"exit code {ended.returncode}: {ended.stderr[-250:]}")
        return outcome
    kept = _kept(work / "prepared" / "data" / "processed")
    outcome.answers = {"products kept": len(kept)}
    if lost := sorted({f"{KNOWN}{number}" for number in range(40)} - kept):
        outcome.fail(f"good images are missing: {lost[:3]}")
    return outcome


def _kept(processed: Path) -> set[str]:
    """Return the ids of the products of the one prepared catalogue."""
    from pyarrow import parquet

    (path,) = processed.glob("*/products.parquet")
    return set(parquet.read_table(path)["product_id"].to_pylist())


def _run_watched(command: Sequence[str], folder: Path) -> tuple[subprocess.CompletedProcess[str], tuple[int, int, int]]:
    surroundings = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with (folder / "printed").open("w+") as out, (folder / "errors").open("w+") as err:
        process = subprocess.Popen(command, cwd=folder, env=surroundings, stdout=out, stderr=err)
        memory = Memory(process.pid)
        process.wait()
        sizes = memory.start, memory.peak, memory.stop()[2]
    printed, errors = ((folder / name).read_text(errors="replace") for name in ("printed", "errors"))
    return subprocess.CompletedProcess(command, process.returncode, printed, errors), sizes


def serving_requests(seed: int, number: int) -> list[Request]:
    """Return hostile requests to the served model."""
    chance = random.Random(seed)
    made = (hostile_request(chance, lambda c: hostile_picture(c, rarely=0.001)) for _ in range(number))
    return [Request("/invocations", body, kind, _row_check(rows) if kind else _unread) for body, kind, rows in made]


def _unread(status: int, body: bytes) -> str:
    """Expect nothing: MLflow's server answers 500 to a request without Content-Type, before a model sees it."""
    return ""


def _row_check(rows: int) -> Callable[[int, bytes], str]:
    def check(status: int, body: bytes) -> str:
        if status >= 500:
            return f"status {status}: {body[:150]!r}"
        if not rows:
            return ""
        if status != 200:
            return f"status {status} for well-formed rows: {body[:150]!r}"
        answers = json.loads(body)["predictions"]
        wrong = len(answers) != rows or any(bool(row["category"]) == bool(row["error"]) for row in answers)
        return "a row without one answer" if wrong else ""

    return check


def known_serving(model: Path) -> Request:
    """Return a harmless request to the served model, whose answer is known."""
    (expected,) = expected_rows(model, [picture()])

    def check(status: int, body: bytes) -> str:
        right = status == 200 and alike(json.loads(body)["predictions"][0], expected)
        return "" if right else f"another answer: {status} {body[:200]!r}"

    body = json.dumps({"dataframe_records": [{"picture": base64.b64encode(picture()).decode()}]}).encode()
    return Request("/invocations", body, "application/json", check)


def attack_serving(model: Path, work: Path, seed: int, seconds: float, clients: Sequence[int]) -> list[Outcome]:
    """Attack `mlflow models serve`."""
    from vlm_core.tracking.logging_model import save_model

    save_model(model, work / "served")
    port, requests, known = free_port(), serving_requests(seed, POOL), known_serving(model)
    flags = ["-m", str(work / "served"), "--env-manager", "local", "--port", str(port), "--host", "127.0.0.1"]
    with server([sys.executable, "-m", "mlflow", "models", "serve", *flags], port, work, "/ping") as process:
        return [attack_server("serve", port, process.pid, requests, each, seconds, known) for each in clients]


def table(outcomes: Sequence[Outcome]) -> str:
    """Return a line for each target."""
    lines = [
        f"{'target':22} {'tried':>7} {'failed':>6} {'a second':>9} {'p95 ms':>8}  {'MiB: start, peak, end':32} answers"
    ]
    for each in outcomes:
        memory = ", ".join(f"{size:,}" for size in each.memory_mib)
        said = ", ".join(f"{name} {count:,}" for name, count in each.answers.items())
        lines.append(
            f"{each.target:22} {each.tried:7,} {each.failed:6,} {each.rate:9.1f} {each.p95_ms:8.1f}  {memory:32} {said}"
        )
        lines += [f"    {fault}" for fault in each.faults]
    return "\n".join(lines)


def _silence() -> None:
    """Keep libtiff and Pillow from telling about each file."""
    import warnings

    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def run(
    targets: Sequence[str], images: int, seed: int, seconds: float, clients: Sequence[int], work: Path
) -> list[Outcome]:
    """Attack the targets; each server for `seconds` with each number of clients."""
    outcomes: list[Outcome] = []
    model = make_model(work / "model") if set(targets) - {"decode", "prepare"} else work
    share = max(50, images // 10)
    steps: dict[str, Callable[[], list[Outcome]]] = {
        "decode": lambda: [isolated(attack_decoder, "decode", images, seed, 10 * seconds)],
        "predict": lambda: [attack_prediction("predict", model, share, seed + 1, work)],
        "prepare": lambda: [attack_preparation("prepare", share, seed + 2, work)],
        "serve": lambda: attack_serving(model, work, seed + 3, seconds, clients),
        "dashboard": lambda: attack_dashboard(model, work, seed + 4, seconds, clients),
    }
    for target in targets:
        made = steps[target]()
        print(table(made), flush=True)
        outcomes += made
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.hostile", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000, help="for the decoder; a tenth for predict and prepare")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60, help="of each attack on a server")
    parser.add_argument("--clients", default="1,16")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--output", default="", help="JSON file to write")
    options = parser.parse_args(arguments)
    clients = [int(number) for number in options.clients.split(",")]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that its servers end with it
    with tempfile.TemporaryDirectory(prefix="hostile-") as work:
        outcomes = run(options.targets.split(","), options.images, options.seed, options.seconds, clients, Path(work))
    print(table(outcomes))
    if options.output:
        Path(options.output).write_text(json.dumps([asdict(each) for each in outcomes], indent=1))
    return int(any(each.failed for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())

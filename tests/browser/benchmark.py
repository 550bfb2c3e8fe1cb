"""Time the dashboard over a store of many runs, next to MLflow's own search: `python -m tests.browser.benchmark`.

The runs are invented (ten epochs, five categories), in a store of their own below --folder, reused the next time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from flask.testing import FlaskClient

from dashboard.runs import Runs
from tests.stores import ROOT

EPOCHS: Final = 10
CATEGORIES: Final = ("accessories", "apparel", "footwear", "free_items", "personal_care")
FAMILIES: Final = ("clip", "blip", "git", "baseline")
REPEATS: Final = 5
REQUESTS: Final = 500
PORT: Final = 8059
_RENDERED: Final = ("leaderboard-rendered.data", True)
_GRID_STATE: Final = (
    {"id": "leaderboard-grid", "property": "columnDefs", "value": None},
    {"id": "leaderboard-sort", "property": "data", "value": ""},
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.browser.benchmark", description="Time pages over many runs.")
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=Path("results/many-runs"))
    parser.add_argument(
        "--categorise",
        default="",
        help="instead: comma-separated run ids of this folder, whose models predict 500 uploads",
    )
    parser.add_argument("--code", type=Path, help="instead: a checkout with a .venv, whose dashboard the browser opens")
    options = parser.parse_args(arguments)
    if options.categorise:
        _categorise(options.categorise.split(","))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{options.folder.resolve()}/mlflow.db"
    _fill(uri, options.folder.resolve(), options.runs)
    if options.code:
        code = options.code.resolve()
        rows = _browser(uri, code / ".venv/bin/python", code)
    else:
        rows = [*_search(uri, options.runs), *_server(uri, options.folder), *_browser(uri)]
    print(f"{options.runs:,} runs of {EPOCHS} epochs, {os.cpu_count()} cores; medians of {REPEATS} (lowest to highest)")
    for name, seconds in rows:
        middle, low, high = statistics.median(seconds), min(seconds), max(seconds)
        print(f"{name:58} {middle * 1000:8.0f} ms  ({low * 1000:.0f} to {high * 1000:.0f})")


def _categorise(run_ids: Sequence[str]) -> None:
    """Print the process's memory over 500 uploads, each through the page's own callbacks."""
    import base64

    import psutil

    from dashboard.model_cache import ModelCache, Uploads
    from dashboard.pages.categorise import update_cards, update_results
    from dashboard.upload_predictions import receive, sample_picture
    from vlm_core.tracking.registry import resolve

    runs, models, uploads = Runs(), ModelCache(resolve), Uploads()
    runs.refresh()
    started = time.perf_counter()
    for number in range(1, REQUESTS + 1):
        content = "data:image/jpeg;base64," + base64.b64encode(sample_picture(number)).decode()
        results = update_results(models, uploads, receive(uploads, [content], ["picture"]), run_ids)
        update_cards(runs, results, 0.5)
        if number in (1, 50, 100, 250, REQUESTS):
            mib = psutil.Process().memory_info().rss / 2**20
            print(f"{number:4} requests: {mib:6.0f} MiB, {time.perf_counter() - started:6.1f} s", flush=True)


def _fill(uri: str, folder: Path, count: int) -> None:
    from vlm_core.tracking.store import connect, open_mlflow

    client = connect(uri, to_write=True)
    known = client.get_experiment_by_name("many")
    experiment = known.experiment_id if known else client.create_experiment("many", f"{folder}/mlruns/many")
    entities = open_mlflow().entities
    generator = np.random.default_rng(0)
    for number in range(_count(client, experiment), count):
        run = client.create_run(experiment, tags={"role": "run"}, run_name=f"run-{number}")
        now = int(time.time() * 1000)
        metrics = [entities.Metric(name, value, now, step) for name, value, step in _metrics(generator)]
        params = [entities.Param(name, text) for name, text in _params(number).items()]
        tags = [entities.RunTag(name, text) for name, text in _tags(number).items()]
        client.log_batch(run.info.run_id, metrics, params, tags)
        client.set_terminated(run.info.run_id, "FAILED" if number % 50 == 0 else "FINISHED")
        if number % 200 == 0:
            print(f"created {number:,} of {count:,} runs", flush=True)


def _count(client: Any, experiment: str) -> int:
    count, token = 0, None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        count, token = count + len(page), page.token
        if not token:
            return count


def _metrics(generator: np.random.Generator) -> list[tuple[str, float, int]]:
    score = float(generator.uniform(0.5, 0.98))
    epochs = [
        (f"{part}_{name}", float(generator.random()), epoch)
        for epoch in range(1, EPOCHS + 1)
        for part in ("train", "validation")
        for name in ("loss", "accuracy", "macro_f1", *(f"f1_{category}" for category in CATEGORIES))
    ]
    test = {
        "test_macro_f1": score,
        "test_macro_f1_low": score - 0.03,
        "test_macro_f1_high": score + 0.02,
        "test_accuracy": score,
        "train_seconds": float(generator.uniform(5, 5000)),
        "seconds_per_image": float(generator.uniform(0.001, 0.4)),
        **{f"test_f1_{category}": float(generator.uniform(0.3, 1)) for category in CATEGORIES},
        **{f"test_recall_{category}": float(generator.uniform(0.3, 1)) for category in CATEGORIES},
    }
    return [*epochs, *((name, value, 0) for name, value in test.items())]


def _params(number: int) -> dict[str, str]:
    from vlm_core.config import Config

    params = Config.build({"preset": ("cpu", "demo", "original")[number % 3], "model": FAMILIES[number % 4]})
    return {**params.to_params(), "seed": str(number % 5)}


def _tags(number: int) -> dict[str, str]:
    seed, leaks = number % 5, number % 10 == 9
    return {
        "fingerprint": "0123456789abcdef",
        "catalogue": "myntra",
        "label": "masterCategory",
        "split": f"{seed}{'leak' if leaks else 'good'}",
        "protocol": "original" if leaks else "holdout",
        "leaking": str(leaks).lower(),
        "weights_source": f"shipped:{FAMILIES[number % 4]}",
        "weights_trained": str(1000 * (1 + number % 7)),
    }


def _times(act: Callable[[], object]) -> list[float]:
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - started)
    return seconds


def _search(uri: str, count: int) -> list[tuple[str, list[float]]]:
    from vlm_core.tracking.store import connect

    client = connect(uri)
    experiments = [each.experiment_id for each in client.search_experiments()]
    return [
        ("MLflow: search_runs, the first 100 runs", _times(lambda: client.search_runs(experiments, max_results=100))),
        (f"MLflow: search_runs, all {count:,} runs", _times(lambda: _count(client, experiments[0]))),
    ]


def _server(uri: str, folder: Path) -> list[tuple[str, list[float]]]:
    """Measure server time of the leaderboard's requests, through the application without a network."""
    from dashboard.app import PAGES, create_app

    runs = Runs(uri, folder)
    whole = _times(lambda: runs.refresh(whole=True))
    client = create_app(runs).server.test_client()
    chosen = next(each["value"] for each in _choices(runs) if each["value"])
    requests = {
        **{f"page {page.PATH}": _page(page.PATH) for page in PAGES},
        "leaderboard, all test sets": _grid("", ""),
        "leaderboard, one test set": _grid(chosen, ""),
        "leaderboard, grouped by weights": _grid("", "weights"),
        "leaderboard, scatter": [
            ("leaderboard-scatter.children",),
            (
                _RENDERED,
                ("shell-version.data", 1),
                ("leaderboard-set.value", ""),
                ("leaderboard-cost.value", "latency"),
            ),
        ],
    }
    rows = [("dashboard: reading the whole store, in the background", whole)]
    rows.append(("dashboard: reading what changed", _times(runs.refresh)))
    for name, (outputs, inputs) in requests.items():
        rows.append((f"dashboard: {name}", _times(lambda o=outputs, i=inputs: _ask(client, o, i))))  # type: ignore[misc]
    return rows


def _choices(runs: Runs) -> list[dict[str, str]]:
    from dashboard.pages.leaderboard import update_state

    choices: list[dict[str, str]] = update_state(runs, 1, "")[2]
    return choices


def _page(path: str) -> list[Any]:
    inputs = (("_pages_location.pathname", path), ("_pages_location.search", ""))
    return [("_pages_content.children", "_pages_store.data"), inputs]


def _grid(chosen: str, grouping: str) -> list[Any]:
    outputs = ("rowData", "columnDefs", "style")
    controls = (("leaderboard-set.value", chosen), ("leaderboard-group.value", grouping))
    return [
        (*(f"leaderboard-grid.{name}" for name in outputs), "leaderboard-leak.children"),
        (_RENDERED, ("shell-version.data", 1), *controls, ("leaderboard-all.checked", False)),
    ]


def _ask(client: FlaskClient, outputs: Sequence[str], inputs: Sequence[tuple[str, Any]]) -> None:
    named = [dict(zip(("id", "property"), name.rsplit(".", 1), strict=True)) for name in outputs]
    several = len(outputs) > 1
    body = {
        "output": f"..{'...'.join(outputs)}.." if several else outputs[0],
        "outputs": named if several else named[0],
        "inputs": [{"id": n.rsplit(".", 1)[0], "property": n.rsplit(".", 1)[1], "value": value} for n, value in inputs],
        "state": list(_GRID_STATE) if "rowData" in outputs[0] else [],
        "changedPropIds": [inputs[0][0]],
    }
    response = client.post("/_dash-update-component", json=body)
    if response.status_code != 200:
        raise RuntimeError(f"{outputs} returned status {response.status_code}")


def _browser(uri: str, python: str | Path = sys.executable, code: Path = ROOT) -> list[tuple[str, list[float]]]:
    """Measure from the request to the first rows in Chromium: of a server just started, and of a warm one."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("playwright is not installed (`make test` installs it), so the browser is not timed.")
        return []
    command = [str(python), "-m", "dashboard", "--store", uri, "--port", str(PORT)]
    address = f"http://127.0.0.1:{PORT}/"
    with subprocess.Popen(command, cwd=code, stdout=subprocess.DEVNULL) as process, sync_playwright() as playwright:
        try:
            while True:
                try:
                    urllib.request.urlopen(address).close()
                    break
                except OSError:
                    time.sleep(0.1)
            chromium = playwright.chromium.launch(
                executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
            )

            sent: list[tuple[float, float]] = []

            def paint() -> None:
                page = chromium.new_context().new_page()  # with an empty cache
                count = _count_scripts(page)
                page.goto(address)
                page.locator(".ag-row, .first-rows tbody tr").first.wait_for(timeout=120_000)
                before = count()
                page.wait_for_load_state("networkidle")
                sent.append((before, count()))
                page.close()

            started = time.perf_counter()
            paint()
            first = time.perf_counter() - started
            time.sleep(15)  # until the whole store has been read
            warm = _times(paint)
            rows, page_bytes = sent[-1]
            print(
                f"scripts sent, cold cache: {rows / 1e6:.2f} MB until the first rows, {page_bytes / 1e6:.2f} MB in all"
            )
            chromium.close()
        finally:
            process.terminate()
    return [("browser: first rows, of a server just started", [first]), ("browser: first rows, of a warm server", warm)]


def _count_scripts(page: Any) -> Callable[[], float]:
    """Return what counts the bytes of scripts that the page was sent so far, as they were on the line."""
    scripts: set[str] = set()
    sizes: dict[str, float] = {}
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.responseReceived", lambda each: each["type"] == "Script" and scripts.add(each["requestId"]))
    session.on("Network.loadingFinished", lambda each: sizes.update({each["requestId"]: each["encodedDataLength"]}))
    return lambda: sum(size for request, size in sizes.items() if request in scripts)


if __name__ == "__main__":
    main()

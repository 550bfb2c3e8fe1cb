"""A million products: packed, predicted here and on Ray, killed meanwhile, and prepared, with speed and memory of each.

`python -m tests.campaigns.million --data shop.zip --model runs:/<run id>/onnx/int8 --rows 10000,100000,1000000` makes
catalogues of so many rows from a catalogue's pictures, under new ids, each moved and relit a little so that no two are
the same bytes. What was measured is written at once to `--results`, and is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import pyarrow.dataset as ds
from PIL import Image, ImageEnhance

from vlm_core.catalogue.containers.arrow_table import RowPicture
from vlm_core.catalogue.picture_files import IMAGES
from vlm_core.catalogue.processes import cores, in_processes
from vlm_core.catalogue.reading import Columns, Refusal
from vlm_core.catalogue.shards import Packed, ShardRow, ShardRows, pack_rows
from vlm_core.catalogue.sources import TABLE, open_source
from vlm_core.files.atomic import write_atomically
from vlm_core.pixels.picture_store import UnreadablePicture, decode_picture
from vlm_core.progress import log_to_stdout

STEPS: Final = ("pack", "make", "local", "each", "ray", "kills", "unpack", "prepare")
COLUMNS: Final = Columns("id", "", "", "", ())
PICTURES_PER_TASK: Final = 256
SHIFTS: Final = [(right, down) for right in range(-2, 3) for down in range(-2, 3)]  # pixels
DRIVER_KILLS, ACTOR_KILLS = 2, 5
SAMPLED: Final = 1000
ACTOR: Final = "MapWorker"  # in the name of a process of Ray Data that holds one
Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is not in the results yet, and print them."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.million", description=__doc__)
    parser.add_argument("--data", required=True, help="catalogue whose pictures are used")
    parser.add_argument("--model", required=True, help="address of a model in the store of this folder")
    parser.add_argument("--rows", default="10000,100000,1000000", help="sizes, comma-separated")
    parser.add_argument("--steps", default=",".join(STEPS), help=f"of {', '.join(STEPS)}")
    parser.add_argument("--folder", default="million", help="where catalogues and predictions are kept")
    parser.add_argument("--results", default="million.json", help="JSON file of what was measured")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills")
    options = parser.parse_args(arguments)
    log_to_stdout()
    path, folder = Path(options.results), Path(options.folder)
    results: dict[str, Result] = json.loads(path.read_text()) if path.exists() else {}
    folder.mkdir(parents=True, exist_ok=True)
    for rows in map(int, options.rows.split(",")):
        place = folder / f"shards-{rows}"
        work: dict[str, Callable[[], Result]] = {
            "pack": partial(_pack, options.data, rows, folder / f"packed-{rows}"),
            "make": partial(_make, options.data, rows, place),
            "local": partial(_predict, "local", options.model, place, folder / f"local-{rows}"),
            "each": partial(_predict_on_each_core, options.model, place, folder / f"each-{rows}"),
            "ray": partial(_predict, "ray", options.model, place, folder / f"ray-{rows}"),
            "kills": partial(_kill, options.model, place, folder / f"killed-{rows}", options.seed),
            "unpack": partial(_unpack, place, folder / f"folder-{rows}"),
            "prepare": partial(_prepare, folder / f"folder-{rows}", folder / f"prepared-{rows}"),
        }
        for step in options.steps.split(","):
            if (name := f"{step} {rows}") not in results:
                print(f"{name} ...", flush=True)
                results[name] = work[step]()
                write_atomically(path, lambda file: file.write(json.dumps(results, indent=1).encode()))
            print(f"{name}: {json.dumps(results[name])}", flush=True)


def _pack(data: str, rows: int, output: Path) -> Result:
    """Pack a table of so many rows, which name a thousand pictures over and over, with the command."""
    for path in (output, table := output.with_suffix(".csv"), pictures := output.with_suffix(".pictures")):
        shutil.rmtree(path, ignore_errors=True)
    pictures.mkdir()
    for number, _, _, picture in islice(_passes(data), 1000):
        (pictures / f"{number}.jpg").write_bytes(picture)
    with table.open("w") as file:
        file.write("id,masterCategory,photo\n")
        file.writelines(f"{number},Shoes,{pictures.name}/{number % 1000}.jpg\n" for number in range(rows))
    flags = ["--data", str(table), "--picture_column", "photo", "--output", str(output)]
    watched = _Watched([sys.executable, "-m", "experiments.shard", *flags])
    watched.until_end()
    result = {"rows": (Packed.read(output) or Packed("")).rows, "seconds": round(watched.seconds, 1), **watched.peaks()}
    shutil.rmtree(output)
    return result


def _make(data: str, rows: int, place: Path) -> Result:
    """Pack a catalogue of so many rows."""
    began = time.monotonic()
    names = ("id", "title", "masterCategory")
    packed = pack_rows(
        ShardRows(data, names, "image", _changed_rows(data, rows)),
        place,
        rows_per_shard=10_240,
        bytes_per_shard=256_000_000,
    )
    return {"rows": packed.rows, "megabytes": packed.bytes // 10**6, "seconds": round(time.monotonic() - began, 1)}


def _changed_rows(data: str, rows: int) -> Iterator[ShardRow]:
    """Yield rows with pictures that are changed a little, another way in each pass over the catalogue."""
    numbered = islice(_passes(data), rows)
    tasks = iter(lambda: list(islice(numbered, PICTURES_PER_TASK)), [])
    for changed in in_processes(_change_all, tasks):
        for number, cells, picture in changed:
            yield ShardRow(
                (f"{10_000_000 + number}", *cells), "", RowPicture("", source=partial(bytes, picture), state=str)
            )


def _passes(data: str) -> Iterator[tuple[int, int, tuple[str, str], bytes]]:
    """Yield number, pass, title and category, and picture of each row, over and over."""
    number = turn = 0
    while True:
        with open_source(data, Path.cwd()).open_table(Columns("id", "", "", "masterCategory", ())) as table:
            for row, picture in table.rows():
                if picture.problem or isinstance(row, Refusal):
                    continue
                values = row.values
                title = values.get("productDisplayName", values.get("title", ""))
                yield number, turn, (title, values["masterCategory"]), picture.read()
                number += 1
        turn += 1


def _change_all(task: Sequence[tuple[int, int, tuple[str, str], bytes]]) -> list[tuple[int, tuple[str, str], bytes]]:
    return [(number, cells, _change(data, turn)) for number, turn, cells, data in task]


def _change(data: bytes, turn: int) -> bytes:
    """Return a picture that is moved and relit, each turn otherwise, and written again; a broken one as it is."""
    try:
        picture = decode_picture(data)
    except UnreadablePicture:
        return data
    right, down = SHIFTS[turn % len(SHIFTS)]
    edges = np.pad(np.asarray(picture), ((2, 2), (2, 2), (0, 0)), mode="edge")
    moved = Image.fromarray(edges[2 - down :, 2 - right :][: picture.height, : picture.width])
    lit = ImageEnhance.Brightness(moved).enhance(1 + 0.01 * (1 + turn // len(SHIFTS)))
    file = io.BytesIO()
    lit.save(file, "JPEG", quality=90)
    return file.getvalue()


def _command(engine: str, model: str, place: Path, output: Path) -> list[str]:
    flags = ["--model", model, "--pictures", str(place), "--output", str(output), "--threads", "1", "--engine", engine]
    return [sys.executable, "-m", "experiments.predict", *flags]


def _predict(engine: str, model: str, place: Path, output: Path) -> Result:
    """Predict a catalogue in one process, or on a cluster of this machine with an actor for each core."""
    shutil.rmtree(output, ignore_errors=True)
    rows = (Packed.read(place) or Packed("")).rows
    watched = _Watched(_command(engine, model, place, output))
    watched.until_end()
    used = 1 if engine == "local" else cores()
    return {
        "rows": rows,
        "cores": used,
        "seconds": round(watched.seconds, 1),
        "rows_per_second_and_core": round(rows / watched.seconds / used, 1),
        "after_its_start": round(_steady_rate(output, rows, used) / used, 1),
        **watched.peaks(),
    }


def _predict_on_each_core(model: str, place: Path, output: Path) -> Result:
    """Predict a catalogue on each core at once, in a process of its own: what cores take from each other."""
    places = [output.with_name(f"{output.name}-{core}") for core in range(cores())]
    for each in places:
        shutil.rmtree(each, ignore_errors=True)
    rows = (Packed.read(place) or Packed("")).rows
    commands = [_Watched(_command("local", model, place, each)) for each in places]
    for watched in commands:
        watched.until_end()
    return {
        "rows": rows,
        "cores": cores(),
        "after_its_start": [round(_steady_rate(each, rows, 1), 1) for each in places],
    }


def _steady_rate(output: Path, rows: int, processes: int) -> float:
    """Return rows a second from the first part of each process on; 0 where there are no others."""
    parts = sorted(path.stat().st_mtime for path in output.glob("*.parquet"))
    if len(parts) <= processes:
        return 0.0
    return (len(parts) - processes) / (parts[-1] - parts[processes - 1]) * rows / len(parts)


def _unpack(place: Path, folder: Path) -> Result:
    """Write a packed catalogue as a folder with a table and a file for each picture."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / IMAGES).mkdir(parents=True)
    began, written = time.monotonic(), 0
    with (folder / TABLE).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("id", "title", "masterCategory"))
        for batch in ds.dataset(place, format="parquet").to_batches(batch_size=1024):
            for row in batch.to_pylist():
                table.writerow((row["id"], row["title"], row["masterCategory"]))
                (folder / IMAGES / f"{row['id']}.jpg").write_bytes(row["image"]["bytes"])
                written += 1
    return {"rows": written, "seconds": round(time.monotonic() - began, 1)}


def _prepare(place: Path, root: Path) -> Result:
    """Prepare a folder of pictures and group its near-duplicates."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(root / "data", ignore_errors=True)
    before = _processor_seconds()
    watched = _Watched([sys.executable, "-c", _PREPARE, str(place.absolute())], root)
    watched.until_end()
    steps = [line for line in watched.said.splitlines() if line.startswith("{")]
    return {
        "seconds": round(watched.seconds, 1),
        "processor_seconds": round(_processor_seconds() - before, 1),
        **json.loads(steps[-1]),
        **watched.peaks(),
    }


def _processor_seconds() -> float:
    """Return the processor time of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


_PREPARE: Final = """
import json, sys, time
from pathlib import Path
from vlm_core.catalogue.catalogue import prepare_catalogue
from vlm_core.catalogue.duplicates import near_duplicate_groups
from vlm_core.catalogue.reading import Columns, Refusal
from vlm_core.progress import log_to_stdout

if __name__ == "__main__":
    log_to_stdout()
    began = time.monotonic()
    catalogue = prepare_catalogue(sys.argv[1], Columns("id", "", "title", "masterCategory", ()), Path.cwd())
    read = time.monotonic()
    groups = near_duplicate_groups(catalogue.products, catalogue.pictures)
    told = {"products": len(catalogue.products), "groups": int(groups.max()) + 1}
    print(json.dumps({**told, "reading": round(read - began, 1), "grouping": round(time.monotonic() - read, 1)}))
"""


def _kill(model: str, place: Path, output: Path, seed: int) -> Result:
    """Predict on Ray while the driver is killed twice and actors five times; count ids, and compare rows with ours."""
    shutil.rmtree(output, ignore_errors=True)
    unfinished = output.with_name(f".{output.name}.predicting")
    shutil.rmtree(unfinished, ignore_errors=True)
    packed = Packed.read(place) or Packed("")
    total = sum(ds.dataset(place / shard.file).count_rows() for shard in packed.shards)
    rng = random.Random(seed)
    shares = sorted(rng.uniform(0.05, 0.9) for _ in range(DRIVER_KILLS + ACTOR_KILLS))
    kinds = ["driver"] * DRIVER_KILLS + ["actor"] * ACTOR_KILLS
    rng.shuffle(kinds)
    done: list[str] = []
    peaks: Counter[str] = Counter()
    began = time.monotonic()
    watched = _Watched(_command("ray", model, place, output))
    for share, kind in zip(shares, kinds, strict=True):
        watched.until(lambda share=share: _rows_in(unfinished) >= share * total)  # type: ignore[misc]
        victims = watched.actors() if kind == "actor" else [watched.process]
        if watched.process.poll() is None and victims:
            victims[0].kill()
            done.append(f"{kind} at {_rows_in(unfinished)}")
        if kind == "driver":
            watched.end()
            peaks |= Counter(watched.peaks())
            watched = _Watched(_command("ray", model, place, output))
    watched.until_end()
    seconds = round(time.monotonic() - began, 1)
    table = ds.dataset(output, format="parquet").to_table(columns=["id"])
    counts = Counter(table["id"].to_pylist())
    return {
        "kills": done,
        "rows": table.num_rows,
        "ids_once": sum(number == 1 for number in counts.values()),
        "expected": total,
        "seconds": seconds,
        **(peaks | Counter(watched.peaks())),
        **_compare_sample(model, place, output, rng),
    }


def _rows_in(folder: Path) -> int:
    return sum(map(_rows_of, folder.glob("part-*.parquet")))


@cache
def _rows_of(part: Path) -> int:
    return int(ds.dataset(part).count_rows())


def _compare_sample(model: str, place: Path, output: Path, rng: random.Random) -> Result:
    """Predict some rows in this process, and count those that are in the output as they are."""
    from vlm_core.inference import predict_records, set_threads
    from vlm_core.models.saved import load_categoriser
    from vlm_core.tracking.registry import resolve

    set_threads(1)
    loaded = load_categoriser(resolve(model))
    files = sorted(place.glob("*.parquet"))
    sampled: dict[str, bytes] = {}
    for path in rng.sample(files, min(len(files), 10)):
        some = ds.dataset(path).to_table(columns=["id", "image"])
        rows = some.take(sorted(rng.sample(range(some.num_rows), min(SAMPLED // 10, some.num_rows)))).to_pylist()
        sampled |= {row["id"]: row["image"]["bytes"] for row in rows}
    found = ds.dataset(output, format="parquet").to_table(filter=ds.field("id").isin(list(sampled))).to_pylist()
    equal = 0
    for row in found:
        (expected,) = predict_records(loaded, [partial(bytes, sampled[row["id"]])])
        equal += all(row[name] == value for name, value in expected.items())
    return {"compared": len(found), "equal": equal}


class _Watched:
    """A command in a process of its own, whose memory and whose children's is looked at every half second."""

    def __init__(self, command: Sequence[str], folder: Path | None = None) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said, self.seconds = "", 0.0
        self._began = time.monotonic()
        self._peaks: dict[str, int] = {}

    def until(self, happened: Callable[[], bool]) -> None:
        """Wait for something, or for the end."""
        while self.process.poll() is None and not happened():
            self._look()
            time.sleep(0.5)

    def until_end(self) -> None:
        """Wait for the end. Raises SystemExit where it is not a good one."""
        self.until(lambda: False)
        self.seconds = time.monotonic() - self._began
        self.said = self.process.communicate()[0]
        if self.process.returncode:
            raise SystemExit(f"{' '.join(self.process.args)} ended with {self.process.returncode}: {self.said}")  # type: ignore[arg-type]

    def end(self) -> None:
        """Wait until the process is gone, and what it started with it."""
        left = [*self._children(), self.process]
        self.process.wait()
        psutil.wait_procs([each for each in left if isinstance(each, psutil.Process)], 30)
        if self.process.stdout:
            self.process.stdout.close()

    def actors(self) -> list[psutil.Process]:
        """Return the processes that hold an actor."""
        return [child for child in self._children() if ACTOR in _name(child)]

    def peaks(self) -> Result:
        """Return the most MiB of memory of its own, of the command, of an actor and of any other process."""
        return {f"{kind}_mib": peak >> 20 for kind, peak in self._peaks.items()}

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _look(self) -> None:
        for child in [psutil.Process(self.process.pid), *self._children()]:
            name = _name(child)
            kind = "command" if child.pid == self.process.pid else "actor" if ACTOR in name else "helper"
            self._peaks[kind] = max(self._peaks.get(kind, 0), _own_memory(child.pid))


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:2])
    except psutil.Error:
        return ""


def _own_memory(pid: int) -> int:
    """Return the bytes of a process that are no file's; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    main()

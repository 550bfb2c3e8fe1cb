"""The program of docs/spark.md on real Spark: `python -m tests.campaigns.spark`.

A model of pictures, and one that reads titles as well, are trained on the drawn sample, in which a picture is broken,
one is missing, and then a title is emptied. The page's program runs as it stands there, by `spark-submit`, on
`local[2]` and on a cluster of a master and two workers, whose Python knows nothing of this project. Every row must be
that of `experiments.predict`, but for the reason why a picture's file is missing.

It takes `pip install pyspark` beside the project's packages, and Java 17 or later.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pandas as pd

from tests.campaigns.hostile_server import free_port
from tests.stores import ROOT

PAGE: Final = ROOT / "docs" / "spark.md"
PROGRAM: Final = "\n\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL))
TRAIN: Final = (
    *("--preset", "demo", "--data", "shop", "--model", "clip", "--mode", "probe", "--epochs", "2", "--views", "1"),
    *("--per_category", "24", "--train_per_category", "12", "--resamples", "100", "--threads", "1"),
)
MODELS: Final = {
    "models:/categoriser-clip@champion": (),
    "models:/categoriser-clip-image-text@champion": ("--inputs", "image+text", "--fusion", "concat"),
}
TOLERANCE: Final = 1e-5  # between probabilities: their last digits depend on the rows beside one in a batch
WORKERS: Final = 2
SECONDS: Final = 600  # that a program may take
CLEAN: Final = {name: text for name, text in os.environ.items() if not name.startswith(("MLFLOW_", "SPARK_"))}


def spark_program(name: str) -> str:
    """Return the path of one of Spark's own programs."""
    import pyspark

    return str(Path(pyspark.__file__).parent / "bin" / name)


def surroundings() -> dict[str, str]:
    """Return the environment of Spark's programs."""
    return {**CLEAN, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1", "PYTHONPATH": ""}


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """Run a master and workers of a core each inside the block, and give the master's address."""
    address, port = "127.0.0.1", free_port()
    master = ("master.Master", "--host", address, "--port", str(port), "--webui-port", "0")
    worker = ("worker.Worker", "--cores", "1", "--memory", "1g", "--webui-port", "0", f"spark://{address}:{port}")
    with ExitStack() as stack:
        log = stack.enter_context((folder / "cluster.log").open("wb"))
        workers = [(*worker, "--work-dir", str(folder / f"worker-{number}")) for number in range(WORKERS)]
        for words in (master, *workers):
            process = subprocess.Popen(
                [spark_program("spark-class"), f"org.apache.spark.deploy.{words[0]}", *words[1:]],
                cwd=folder, env=surroundings(), stdout=log, stderr=log,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.terminate)
        yield f"spark://{address}:{port}"


def run(folder: Path, *command: str, **environment: str) -> None:
    """Run a command in a folder. Raises RuntimeError with what it printed."""
    done = subprocess.run(
        command, cwd=folder, env={**CLEAN, **environment}, capture_output=True, text=True, timeout=SECONDS
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-1000:]}{done.stderr[-3000:]}")


def prepare(folder: Path, products: int) -> None:
    """Make a folder with shop, photos, shards and a store for each model, and what `experiments.predict` answers."""
    from vlm_core.catalogue.sample import draw_sample

    for model, settings in MODELS.items():
        own = folder_of(folder, model)
        shop = draw_sample(own / "shop", products=products)
        _module(own, "experiments.train", *TRAIN, *settings)
        header, first, *rows = (shop / "styles.csv").read_text().splitlines()
        untitled = ",".join([*first.split(",")[: header.count(",")], ""])  # titles come last, and may have commas
        (shop / "styles.csv").write_text("\n".join([header, untitled, *rows, ""]))
        (own / "photos").symlink_to(shop / "images")
        _module(own, "experiments.shard", "--data", "shop", "--output", "shards")
        (own / "categorise.py").write_text(PROGRAM)
        for pictures in ("shards", "photos"):
            words = ("--model", model, "--pictures", pictures, "--output", f"{pictures}.parquet", "--threads", "1")
            _module(own, "experiments.predict", *words)


def folder_of(folder: Path, model: str) -> Path:
    """Return the folder of a model and its store."""
    return folder / model.split("/")[1].split("@")[0]


def _module(folder: Path, module: str, *words: str) -> None:
    run(folder, sys.executable, "-m", module, *words, PYTHONPATH=str(ROOT))


def compare(folder: Path) -> Iterator[str]:
    """Yield how Spark's rows in a model's folder differ from the expected ones."""
    for ours, theirs in (("shards", "predictions"), ("photos", "predictions-of-photos")):
        expected = pd.read_parquet(folder / f"{ours}.parquet").set_index("id").sort_index()
        rows = pd.read_parquet(folder / theirs)
        rows["id"] = [Path(name).stem if "/" in name else name for name in rows["id"]]
        rows = rows.set_index("id").sort_index()
        print(f"{folder.name} {ours}: {len(rows)} rows, {rows['error'].notna().sum()} errors", flush=True)
        if list(rows) != list(expected) or rows.index.tolist() != expected.index.tolist():
            yield f"{ours}: {len(rows)} rows of {list(rows)}, not {len(expected)} of {list(expected)}"
            continue
        for name in expected:
            mine, other = expected[name], rows[name]
            if name == "error":  # Spark's rows do not know which file is missing
                known = ~mine.fillna("").str.startswith("there is no ")
                mine, other = mine[known], other[known]
            alike = (mine == other) | (mine.isna() & other.isna())
            if mine.dtype == "float64":
                alike |= (mine - other).abs() < TOLERANCE
            if not alike.all():
                yield f"{ours}, {name}: {mine[~alike].head(3).to_dict()} became {other[~alike].head(3).to_dict()}"


def run_program(master: str, folder: Path) -> Iterator[str]:
    """Run the program with each model, and yield what is wrong with its rows."""
    for model in MODELS:
        started, own = time.monotonic(), folder_of(folder, model)
        run(own, spark_program("spark-submit"), "--master", master, "categorise.py", model, **surroundings())
        print(f"{master}, {model}: {time.monotonic() - started:.0f} s", flush=True)
        for fault in compare(own):
            yield f"{master}, {model}: {fault}"
        for left in ("predictions", "predictions-of-photos"):
            shutil.rmtree(own / left)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.spark", description=__doc__.splitlines()[0])
    parser.add_argument("--products", type=int, default=160, help="of the generated catalogue")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="spark-") as temporary:
        folder = Path(temporary)
        prepare(folder, options.products)
        faults = list(run_program("local[2]", folder))
        with cluster(folder) as master:
            faults += run_program(master, folder)
    print("\n".join([*faults, f"{len(faults)} faults"]))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())

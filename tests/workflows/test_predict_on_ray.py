"""Actors of a Ray cluster predict what one process predicts, each row once, also where some of them are killed."""

import threading
import time

import pandas as pd
import psutil
import pytest
from PIL import Image

from tests.engine.clusters import running_cluster
from tests.models.families import make_categoriser
from tests.stores import ROOT
from vlm_core.catalogue import shards
from vlm_core.catalogue.reading import Columns
from vlm_core.catalogue.sources import open_source
from vlm_core.config import EngineSettings
from vlm_core.tracking.writer import RunWriter
from vlm_core.workflows.predict_parts import predict_into_folder

COLUMNS = Columns("id", "", "", "", ())


def _kill(cluster, folder, killed):
    """Kill a process that holds an actor, and then a node, each when some parts are there."""
    for count, kind in enumerate(("an actor", "a node")):
        while len(list(folder.glob("part-*"))) < 3 + 3 * count:
            time.sleep(0.02)
        if kind == "a node":
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            killed.append(kind)
        elif actors := [each for each in psutil.process_iter() if "MapWorker" in " ".join(each.cmdline()[:1])]:
            actors[0].kill()
            killed.append(kind)


@pytest.mark.slow
def test_actors_predict_what_one_process_predicts(tmp_path, store, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    make_categoriser("clip").save(tmp_path / "model")
    with RunWriter("made") as run:
        run.model(tmp_path / "model")
    shop = tmp_path / "shop"
    (shop / "images").mkdir(parents=True)
    for number in range(640):
        if number % 50:
            Image.new("RGB", (6, 8), (number % 256, 99, number // 3)).save(shop / "images" / f"{number}.jpg")
    (shop / "styles.csv").write_text("id\n" + "\n".join(map(str, range(640))))
    monkeypatch.setattr(shards, "ROWS_PER_GROUP", 32)
    shards.pack(
        open_source(str(shop), tmp_path), COLUMNS, tmp_path / "packed", rows_per_shard=320, bytes_per_shard=10**7
    )

    def predict(engine, output, model=run.run_id):
        predict_into_folder(engine, model, [str(tmp_path / "packed")], COLUMNS, tmp_path / output, root=tmp_path)
        files = sorted((tmp_path / output).glob("*.parquet"))
        return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)

    expected = predict(EngineSettings(), "one")
    assert len(expected) == 640 and expected["error"].notna().sum() == 13
    killed: list[str] = []
    with running_cluster(nodes=2) as cluster:
        threading.Thread(target=_kill, args=(cluster, tmp_path / ".out.predicting", killed), daemon=True).start()
        table = predict(EngineSettings(engine="ray", address="auto"), "out")
    pd.testing.assert_frame_equal(table, expected)
    assert killed == ["an actor", "a node"]

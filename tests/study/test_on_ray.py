"""A study on a Ray cluster of two nodes, one of which is killed midway: its figures are those of one process."""

from __future__ import annotations

import re
from pathlib import Path
from threading import Thread

import pytest

from tests.engine.clusters import running_cluster
from tests.messages import collected_messages
from tests.standins import wait_for
from tests.study.test_running import small
from vlm_core.study.running import run_study
from vlm_core.tracking.reader import RunReader

_OF_TIME = re.compile(r"seconds|per_second|^system/|_ms$|memory|megabytes|cost")


def metrics(study: str) -> dict[str, dict[str, float]]:
    """The metrics of each finished cell that do not depend on time; no run may be open."""
    children = RunReader().children(study)
    assert "RUNNING" not in set(children["status"])
    finished = children[children["status"] == "FINISHED"]
    found = {
        name: RunReader().metrics(run_id) for name, run_id in zip(finished["name"], finished["run_id"], strict=True)
    }
    return {
        cell: {name: value for name, value in values.items() if not _OF_TIME.search(name)}
        for cell, values in found.items()
    }


@pytest.mark.slow
def test_a_node_that_is_killed_changes_no_figure(shop: Path, stocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_core.study.report.plot_svg", lambda plot: "<svg></svg>")
    config = {"seeds": 2, "threads": 1}
    alone = run_study(small(shop, study="alone", **config), stocked)
    with running_cluster(nodes=2) as cluster, collected_messages() as lines:
        (node,) = cluster.worker_nodes

        def kill() -> None:
            wait_for(lambda: any(line.startswith("[1/4]") for line in lines), 200)
            cluster.remove_node(node, allow_graceful=False)

        killer = Thread(target=kill)
        killer.start()
        shared = small(shop, study="shared", engine="ray", address="auto", workers=2, **config)
        together = run_study(shared, stocked)
        killer.join()
    assert metrics(together.run_id) == metrics(alone.run_id) != {}
    scores = [[(row.configuration, row.macro_f1) for row in each.results.scores] for each in (alone, together)]
    assert scores[0] == scores[1]
    assert together.results.cells_finished == 4 and any("Ray: 2 cores on 2 nodes" in line for line in lines)

"""Tasks on a Ray cluster of three nodes on loopback: placed anywhere, repeated where a node died, and cancelled."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.engine.stubs import always_die, die_once, fail_at_two, same, say_where, work_until_stopped
from tests.messages import collected_messages
from tests.standins import wait_for
from vlm_core.engine.cluster import Cluster, WorkerEnvironment, connected, count_machines, cpus_of_nodes, cpus_per_task
from vlm_core.errors import UserError


@pytest.mark.parametrize(
    ("nodes", "at_once", "most", "cpus"),
    [
        ([8, 8, 8], 3, 8, 8),
        ([8, 8, 8], 3, 16, 8),
        ([8, 8, 8], 4, 8, 4),  # six on each node would leave room for three
        ([8, 8, 8], 1, 2, 2),
        ([2, 16], 2, 16, 8),
        ([1, 1], 5, 8, 1),  # the others wait
        ([0], 1, 8, 1),
        ([], 1, 8, 1),
    ],
)
def test_a_task_has_as_many_cores_as_fit(nodes: list[int], at_once: int, most: int, cpus: int) -> None:
    assert cpus_per_task(nodes, at_once, most) == cpus


def test_a_task_is_handed_stores_and_their_passwords_but_nothing_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    monkeypatch.setenv("TMPDIR", "/of/this/machine")
    monkeypatch.chdir(tmp_path)
    given = WorkerEnvironment.here()
    assert given.variables["MLFLOW_TRACKING_PASSWORD"] == "hunter2" and given.folder == tmp_path
    assert not {"TMPDIR", "PATH", "HOME", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"} & given.variables.keys()
    assert "hunter2" not in repr(given)


def test_a_node_without_the_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not on the node .*: all nodes of a cluster need the folder"):
        WorkerEnvironment({}, tmp_path / "nowhere", messages=False).enter()


def test_the_address_of_rays_client_is_refused() -> None:
    with pytest.raises(UserError, match="that of Ray's client, which is not supported"), connected("ray://head:10001"):
        pass


@pytest.fixture
def engine(cluster: Any) -> Iterator[Cluster]:
    with connected("auto"):
        yield Cluster(workers=3, most_threads=8, gpu=True)


@pytest.mark.slow
def test_tasks_run_on_all_nodes_and_errors_are_values(
    engine: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "there")
    assert (cpus_of_nodes(), count_machines(), engine.threads(3)) == ([1, 1, 1], 1, 1)
    ends = {ended.task: ended for ended in engine.run(fail_at_two, [1, 2, 3], same)}
    assert (ends[1].result, ends[3].result, ends[2].result) == (1, 3, None)
    assert ends[2].error.startswith("MissingExtra: two is not installed")
    (ended,) = engine.run(say_where, ["MLFLOW_TRACKING_URI"], same)
    assert ended.result == (str(tmp_path), "there")


@pytest.mark.slow
def test_a_task_whose_process_dies_is_repeated_and_one_that_always_kills_it_is_given_up(
    engine: Cluster, tmp_path: Path
) -> None:
    repeated: list[Path] = []

    def again(task: Path) -> Path:
        repeated.append(task)
        return task

    (ended,) = engine.run(die_once, [tmp_path / "mark"], again)
    assert (ended.result, repeated) == ("done", [tmp_path / "mark"])
    ends = {ended.task: ended for ended in engine.run(always_die, ["dies", "lives"], same)}
    assert ends["lives"].result == "lives" and ends["dies"].error == "It died 4 times with its node or process."


@pytest.mark.slow
def test_all_tasks_have_stopped_when_the_leader_stops(engine: Cluster, tmp_path: Path) -> None:
    marks = [tmp_path / str(number) for number in range(3)]
    started = time.monotonic()

    def stop() -> None:
        for _ in engine.run(lambda mark: work_until_stopped(mark) if mark.name != "2" else None, marks, same):
            wait_for(lambda: len(list(tmp_path.glob("*.began"))) == 2, 60)
            nonlocal started
            started = time.monotonic()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert [mark.read_text() for mark in marks[:2]] == ["stopped"] * 2
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_a_node_that_is_killed_loses_no_task(cluster: Any, engine: Cluster, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=4, object_store_memory=80 << 20)  # the only one that has four cores
    began = tmp_path / "began"

    def work(number: int) -> int:
        if not began.exists():
            began.touch()
            time.sleep(600)
        return os.getpid()

    def kill() -> None:
        wait_for(began.exists, 60)
        cluster.remove_node(node, allow_graceful=False)

    thread = Thread(target=kill)
    thread.start()
    with collected_messages() as lines:
        (ended,) = engine.run(work, [1], same)
        thread.join()
    assert ended.result and any("A task is repeated, because its node or process died" in line for line in lines)


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(UserError, match="address=127.0.0.1:1 cannot be reached"), connected("127.0.0.1:1"):
        pass

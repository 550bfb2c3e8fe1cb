"""Processes of a Ray cluster that do one task together: all begin again where one is killed, and all end together."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.engine.stubs import (
    DiesWhereItArrives,
    meet,
    refuse_in_second,
    say_that_it_arrived,
    work_together_until_stopped,
)
from tests.messages import collected_messages
from tests.standins import wait_for
from vlm_core.engine.cluster import connected
from vlm_core.engine.together import work_together
from vlm_core.errors import UserError

TWO = {"workers": 2, "threads": 8, "device": "cpu"}


@pytest.fixture
def there(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    with connected("auto"):
        yield tmp_path


@pytest.mark.slow
def test_all_begin_again_where_one_is_killed_and_the_first_one_tells(there: Path) -> None:
    with collected_messages() as lines:
        told = work_together(meet, there, **TWO)
    assert told == [f"{rank}: {there.name} with 1 of Place(cpus=1, gpu=False)" for rank in range(2)]
    assert [line for line in lines if line.startswith("WARNING: All workers begin again at the last checkpoint")]


@pytest.mark.slow
def test_so_do_they_where_one_is_killed_before_it_begins(there: Path) -> None:
    assert work_together(say_that_it_arrived, DiesWhereItArrives(there / "died"), **TWO) == "died"
    assert (there / "died").exists()


@pytest.mark.slow
def test_what_one_cannot_do_ends_all_with_its_sentence(there: Path) -> None:
    with pytest.raises(UserError, match="two is not installed"):
        work_together(refuse_in_second, there, **TWO)
    with pytest.raises(UserError, match="workers=9 is more than the 3 cores of the cluster"):
        work_together(meet, there, **TWO | {"workers": 9})
    with pytest.raises(UserError, match="workers=2 with device=cuda takes as many GPUs, and the cluster has 0"):
        work_together(meet, there, **TWO | {"device": "cuda"})


@pytest.mark.slow
def test_all_have_ended_soon_after_their_leader_stops(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    wait = ray.wait

    def stopped(references: Any, **rest: Any) -> Any:
        if rest.get("num_returns") is None and len(list(there.glob("*.began"))) == 2:
            raise KeyboardInterrupt
        return wait(references, **rest)

    monkeypatch.setattr(ray, "wait", stopped)
    with pytest.raises(KeyboardInterrupt):
        work_together(work_together_until_stopped, there, **TWO)
    workers = [int(path.read_text()) for path in there.glob("*.began")]
    wait_for(lambda: not any(psutil.pid_exists(worker) for worker in workers), 10)

"""A worker process of a search: it watches its leader before it imports what a trial takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlm_core.tracking.workers import start_worker

if TYPE_CHECKING:
    from vlm_core.config import SearchConfig


def run_search_worker(leader: int, messages: bool, config: SearchConfig, root: Path, parent: str, number: int) -> None:
    """Start as worker `number` of the process `leader`, and run trials of the search whose run is `parent`."""
    start_worker(leader, messages)
    from vlm_core.workflows.tune import run_trials

    run_trials(config, root, parent, number)

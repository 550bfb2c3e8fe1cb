"""Worker processes, which end soon after the process that started them, from their first moment on.

This module is all that a worker has imported when it begins to watch: what it works with takes seconds to import, and
more on a busy machine.
"""

from __future__ import annotations

from vlm_core.progress import log_to_stdout
from vlm_core.tracking.signals import end_with


def start_worker(leader: int, messages: bool) -> None:
    """Watch the process `leader`, which started this one, and log as it does if it shows `messages`."""
    end_with(leader)
    if messages:
        log_to_stdout()

"""Load of processor, memory, disk and network during a run."""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

_SECONDS_BETWEEN_SAMPLES: Final = 10
_SECONDS_TO_STOP: Final = 15


class SystemMetrics:
    """MLflow's own sampler, with a sample at the end: a run of less than ten seconds would otherwise have none.

    `MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL` sets the seconds between samples.
    """

    def __init__(self, run_id: str, uri: str, *, resumed: bool) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # it reports each failure, from its own thread, into the user's progress bar
        logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
        monitor_type: Any = SystemMetricsMonitor  # MLflow ships no types for it
        self._monitor = monitor_type(
            run_id, sampling_interval=_SECONDS_BETWEEN_SAMPLES, resume_logging=resumed, tracking_uri=uri
        )
        self._monitor.start()

    def stop(self) -> None:
        """Take a last sample; the sampler is abandoned if the store does not respond."""
        ending = threading.Thread(target=self._monitor.finish, daemon=True)
        ending.start()
        ending.join(_SECONDS_TO_STOP)
        if not ending.is_alive():
            self._monitor.collect_metrics()
            self._monitor.publish_metrics(self._monitor.aggregate_metrics())
            self._monitor.mlflow_logger.flush()

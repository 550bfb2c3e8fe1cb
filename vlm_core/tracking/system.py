"""Load of processor, memory, disk and network during a run."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import Any, Final

from vlm_core.tracking.patience import patiently

_SECONDS_BETWEEN_SAMPLES: Final = 10
_SECONDS_TO_STOP: Final = 5


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
        self._uri = uri
        self._ending = threading.Event()
        # not MLflow's own thread, which ends for good when the store once does not answer
        self._thread = threading.Thread(target=self._sample, name="system metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample; the sampler is abandoned if the store does not respond."""
        self._ending.set()
        self._thread.join(_SECONDS_TO_STOP)
        if not self._thread.is_alive():
            with suppress(Exception):  # a sample that is lost must not keep the run from its end
                self._take_sample()
                patiently(self._uri, self._monitor.mlflow_logger.flush)

    def _sample(self) -> None:
        while not self._ending.wait(self._monitor.sampling_interval):
            with suppress(Exception):  # the samples stay in memory, and are logged with the next
                self._take_sample()
                self._monitor.mlflow_logger.flush()

    def _take_sample(self) -> None:
        self._monitor.collect_metrics()
        self._monitor.publish_metrics(self._monitor.aggregate_metrics())

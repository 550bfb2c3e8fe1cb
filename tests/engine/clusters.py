"""A Ray cluster on loopback for tests: a head and two more nodes, which ask for the tests' token."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.stores import ROOT
from vlm_core.files.atomic import remove

# Ray's nodes start workers that nobody has asked for yet: in tests they cost more than they save.
_FRUGAL = {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0"}


@contextmanager
def running_cluster(nodes: int = 3, cpus: int = 1) -> Iterator[Any]:
    """Yield a `ray.cluster_utils.Cluster` of so many nodes, which is found as address=auto inside the block.

    The first node is the head, which drivers connect to.
    """
    before = dict(os.environ)
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets' names are short
    (Path(folder) / "ray").mkdir()
    os.environ.update(_FRUGAL, RAY_TMPDIR=folder, PYTHONPATH=str(ROOT))
    try:
        from ray.cluster_utils import Cluster

        common = {"num_cpus": cpus, "object_store_memory": 80 << 20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args={**common, "no_monitor": True})  # nothing scales it
        try:
            for _ in range(nodes - 1):
                cluster.add_node(num_cpus=cpus, object_store_memory=80 << 20)
            yield cluster
        finally:
            cluster.shutdown()
    finally:
        os.environ.clear()
        os.environ.update(before)
        remove(Path(folder))

"""One Ray cluster of two simulated nodes for all tests of this folder that need one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from moody_writer import NODE

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.pop("RAY_ADDRESS", None)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster` with a head node and another one like it."""
    pytest.importorskip("ray", reason="ray is not installed (the extra `cluster`)")
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="zr-", dir="/tmp")  # short: the names of sockets in it may not be long
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "temp_dir": folder})
    cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def ray_connection(ray_cluster: Any) -> Iterator[Any]:
    """This process is a driver of the cluster, on its head node."""
    import ray

    ray.init(address=ray_cluster.address, log_to_driver=False, logging_level="ERROR")
    yield ray_cluster
    ray.shutdown()

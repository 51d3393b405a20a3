"""Joining a Ray cluster, or starting one on this machine, and what has to be right before a run begins."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from zerozoo.runs.errors import UserError

COMPARED = ("zerozoo", "torch", "transformers")
ANSWER_SECONDS = 5.0
NODE_SECONDS = 60.0
GIB = 2**30


@dataclass(frozen=True)
class Needs:
    """What the processes of a run ask of a cluster.

    Attributes:
        learners, workers: processes of a kind; each takes one core, or one core and one GPU.
        gpus: whether each takes a GPU.
        learner_bytes, worker_bytes: most memory of one process by the plan; 0 when it is not known.
    """

    learners: int
    workers: int
    gpus: bool = False
    learner_bytes: int = 0
    worker_bytes: int = 0

    @property
    def processes(self) -> int:
        return self.learners + self.workers


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        memory: bytes that Ray may give to processes there.
        gpu_memory: bytes of its smallest GPU; 0 without one.
    """

    name: str
    versions: Mapping[str, str]
    memory: int
    gpu_memory: int = 0


@contextmanager
def connected(address: str | None, needs: Needs) -> Iterator[None]:
    """Context in which this process is part of a Ray cluster that can hold the run.

    Args:
        address: "host:port" of the head node, or "auto" for a cluster that runs on this machine. None: the cluster that
            this process was started in (a Ray job), or else one of its own that ends with it.

    Raises UserError when nobody answers, when the versions of a node differ or when the run does not fit.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    _join(address, needs)
    try:
        nodes = look_at_nodes()
        check_versions(own_versions(), nodes)
        check_room(needs, nodes, ray.cluster_resources())
        yield
    finally:
        ray.shutdown()


def has_gpus() -> bool:
    """Whether the cluster has any."""
    return bool(ray.cluster_resources().get("GPU"))


def _join(address: str | None, needs: Needs) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        cores = max(os.cpu_count() or 1, needs.processes)
        # Cores only count who may start: processes that share one are slower, and nothing else.
        ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)
        return
    check_address(address)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise UserError(
            f"Cannot join the Ray cluster at {address} ({_first_line(error)}): it must be a head node of the same Ray"
            " and Python, and when its token authentication is on, set RAY_AUTH_MODE=token here, too."
        ) from None


def check_address(address: str) -> None:
    """Raises UserError for what is no address of a cluster, and when nobody answers there."""
    if address in ("auto", "local"):
        return
    if "://" in address:
        raise UserError(
            f"{address} is not the address of a head node: take HOST:PORT on one of the nodes, or hand the command in"
            " with `ray job submit`."
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"{address!r} is not an address: take HOST:PORT of the head node, for instance 10.0.0.1:6379.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"Nobody answers at {address} ({error.strerror or error}): start the head node there with"
            f" `ray start --head --port {port}`, or correct --address."
        ) from None


def own_versions() -> dict[str, str]:
    """Versions that have to be the same everywhere."""
    found = {"python": platform.python_version()}
    for package in COMPARED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def look_at_nodes() -> list[Node]:
    """Every living node of the cluster. Raises UserError for one that does not answer or that has no zerozoo."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    answers = []
    for node in alive:
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        look = ray.remote(num_cpus=0, max_retries=0)(_look).options(scheduling_strategy=place)
        answers.append(look.remote())
    nodes = []
    for node, answer in zip(alive, answers, strict=True):
        name = node["NodeManagerAddress"]
        try:
            versions, gpu_memory = ray.get(answer, timeout=NODE_SECONDS)
        except RayError as error:
            reason = "it has no zerozoo" if "No module named" in str(error) else _first_line(error)
            raise UserError(
                f"The node {name} cannot be used ({reason}): install zerozoo there as it is here, or remove the node."
            ) from None
        nodes.append(Node(name, versions, int(node["Resources"].get("memory", 0)), gpu_memory))
    return nodes


def _look() -> tuple[dict[str, str], int]:
    """Versions and smallest GPU of the node that runs this."""
    return own_versions(), smallest_gpu()


def smallest_gpu() -> int:
    """Bytes of the smallest GPU here; 0 without one."""
    try:
        from torch.cuda import device_count, get_device_properties
    except ImportError:
        return 0
    return min((get_device_properties(index).total_memory for index in range(device_count())), default=0)


def check_versions(own: Mapping[str, str], nodes: Sequence[Node]) -> None:
    """Raises UserError that names the first node and package whose version is not that of the driver."""
    for node in nodes:
        for package, version in own.items():
            other = node.versions.get(package, "none")
            if other != version:
                raise UserError(
                    f"The node {node.name} has {package} {other} and this process has {version}: install the same"
                    " versions on all nodes."
                )


def check_room(needs: Needs, nodes: Sequence[Node], resources: Mapping[str, float]) -> None:
    """Raises UserError when the cluster has too few cores or GPUs, or no node with enough memory for one process."""
    kinds = ("CPU", "GPU") if needs.gpus else ("CPU",)
    for kind in kinds:
        if resources.get(kind, 0) < needs.processes:
            raise UserError(
                f"{needs.learners} learners and {needs.workers} rollout workers need {needs.processes} {kind}s, and"
                f" the cluster has {resources.get(kind, 0):g}: ask for fewer, or add nodes."
            )
    largest = max((node.gpu_memory if needs.gpus else node.memory for node in nodes), default=0)
    for name, wanted in (("learner", needs.learner_bytes), ("rollout worker", needs.worker_bytes)):
        if wanted > largest:
            raise UserError(
                f"The model does not fit: a {name} needs about {wanted / GIB:.1f} GiB, and the largest"
                f" {'GPU' if needs.gpus else 'node'} of the cluster has {largest / GIB:.1f} GiB for it."
            )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(" .")

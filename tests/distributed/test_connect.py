"""What has to be right before a run on a cluster begins."""

from __future__ import annotations

import platform
import socket

import pytest

pytest.importorskip("ray", reason="ray is not installed (the extra `cluster`)")

from zerozoo import __version__  # noqa: E402
from zerozoo.distributed.connect import (  # noqa: E402
    GIB,
    Needs,
    Node,
    check_address,
    check_room,
    check_versions,
    own_versions,
)
from zerozoo.runs.errors import UserError  # noqa: E402

OWN = {"python": "3.11.7", "torch": "2.13.0"}


def test_own_versions() -> None:
    found = own_versions()
    assert (found["python"], found["zerozoo"]) == (platform.python_version(), __version__)
    assert found["torch"][0].isdigit()


def test_versions_must_be_the_same_on_every_node() -> None:
    check_versions(OWN, [Node("10.0.0.1", OWN, GIB), Node("10.0.0.2", {**OWN, "more": "1"}, GIB)])
    with pytest.raises(UserError, match=r"The node 10\.0\.0\.2 has torch 2\.12\.0 and this process has 2\.13\.0"):
        check_versions(OWN, [Node("10.0.0.1", OWN, GIB), Node("10.0.0.2", {**OWN, "torch": "2.12.0"}, GIB)])
    with pytest.raises(UserError, match="has torch none"):
        check_versions(OWN, [Node("10.0.0.1", {"python": "3.11.7"}, GIB)])


@pytest.mark.parametrize(
    ("needs", "resources", "message"),
    [
        (Needs(1, 3), {"CPU": 3.0}, "1 learners and 3 rollout workers need 4 CPUs, and the cluster has 3"),
        (Needs(2, 2, gpus=True), {"CPU": 8.0, "GPU": 3.0}, "need 4 GPUs, and the cluster has 3"),
        (Needs(1, 1, gpus=True), {"CPU": 8.0}, "need 2 GPUs, and the cluster has 0"),
        (
            Needs(1, 1, False, 3 * GIB),
            {"CPU": 8.0},
            r"a learner needs about 3\.0 GiB, and the largest node .* has 2\.0",
        ),
        (
            Needs(1, 1, False, GIB, 5 * GIB // 2),
            {"CPU": 8.0},
            r"a rollout worker needs about 2\.5 GiB, and the largest node of the cluster has 2\.0 GiB",
        ),
        (
            Needs(1, 1, True, 2 * GIB),
            {"CPU": 8.0, "GPU": 2.0},
            r"a learner needs about 2\.0 GiB, and the largest GPU of the cluster has 1\.0 GiB",
        ),
    ],
)
def test_a_run_must_fit(needs: Needs, resources: dict[str, float], message: str) -> None:
    nodes = [Node("one", OWN, GIB, GIB // 2), Node("two", OWN, 2 * GIB, GIB)]
    with pytest.raises(UserError, match=message):
        check_room(needs, nodes, resources)


def test_a_run_that_fits() -> None:
    check_room(Needs(1, 3, False, 2 * GIB, GIB), [Node("one", OWN, 2 * GIB)], {"CPU": 4.0})


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://10.0.0.1:10001", "not the address of a head node"),
        ("http://10.0.0.1:8265", "ray job submit"),
        ("10.0.0.1", "'10.0.0.1' is not an address: take HOST:PORT"),
        ("10.0.0.1:", "is not an address"),
        ("10.0.0.1:99999", "is not an address"),
        ("no such host:6379", r"Nobody answers at no such host:6379 \("),
    ],
)
def test_wrong_addresses(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_address(address)


def test_an_address_at_which_nobody_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port} \(Connection refused\).*--port {port}"):
            check_address(f"127.0.0.1:{port}")
        taken.listen()
        check_address(f"127.0.0.1:{port}")
    check_address("auto")

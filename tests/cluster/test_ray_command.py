"""`zerozoo train --backend ray` as a user types it: Ctrl-C, and one sentence for everything that can be wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from zerozoo.cli.main import main

SMALL = [
    *("--data", "arithmetic", "--level", "one-digit", "--heldout-size", "6", "--max-new-tokens", "3"),
    *("--prompts-per-step", "4", "--samples-per-prompt", "4", "--updates-per-step", "1", "--kl-coefficient", "0"),
]


def refusal(capsys: pytest.CaptureFixture[str], directory: Path, *flags: str) -> str:
    """The one line on standard error of a command that ends with exit code 2 and leaves no directory."""
    code = main(["train", "simplerl-zoo", "--backend", "ray", "--directory", str(directory), *flags])
    errors = capsys.readouterr().err
    assert code == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert not directory.exists()
    return errors.removeprefix("error: ").strip()


def test_a_model_that_does_not_fit(
    ray_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    large = ("--preset", "paper", "--model", "Qwen/Qwen2.5-32B", "--address", ray_cluster.address)
    told = refusal(capsys, tmp_path / "run", *large)
    assert told.startswith("The model does not fit: a learner needs about ")
    assert "GiB, and the largest node of the cluster has " in told


def test_more_processes_than_cores(ray_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(
        capsys, tmp_path / "run", "--preset", "smoke", "--rollout-workers", "100", "--address", ray_cluster.address
    )
    assert told == (
        "1 learners and 100 rollout workers need 101 CPUs, and the cluster has 8: ask for fewer, or add nodes."
    )


def test_versions_that_differ(
    ray_cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from zerozoo.distributed import connect

    own = connect.own_versions()
    monkeypatch.setattr(connect, "own_versions", lambda: {**own, "torch": "1.0"})  # here; the nodes tell the truth
    told = refusal(capsys, tmp_path / "run", "--preset", "smoke", "--address", ray_cluster.address)
    assert told.startswith("The node ")
    assert told.endswith(f" has torch {own['torch']} and this process has 1.0: install the same versions on all nodes.")


def test_somebody_else_answers_at_the_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        listener.close()
        told = refusal(capsys, tmp_path / "run", "--preset", "smoke", "--address", address)
    assert told.startswith(f"Nobody answers at {address} (Connection refused): start the head node there with ")


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_saves_a_checkpoint_and_ends_every_process(digits_model: str, tmp_path: Path, presses: int) -> None:
    command = [sys.executable, "-m", "zerozoo", "train", "simplerl-zoo", "--model", digits_model, *SMALL]
    command += ["--steps", "100000", "--checkpoint-every", "100000", "--evaluate-every", "100000"]
    command += ["--backend", "ray", "--rollout-workers", "1", "--directory", "run"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    family: dict[int, psutil.Process] = {}
    try:
        assert process.stdout is not None
        read = []
        for line in process.stdout:
            read.append(line)
            if line.startswith("step 2/"):
                break
        assert read[-1].startswith("step 2/"), "".join(read)
        family = {one.pid: one for one in psutil.Process(process.pid).children(recursive=True)}
        names = [one.cmdline()[0] for one in family.values() if one.is_running() and one.cmdline()]
        assert any(name.startswith("ray::Learner") for name in names)
        assert any(name.startswith("ray::RolloutWorker") for name in names)
        for _ in range(presses):
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everybody in the foreground
            time.sleep(0.05)
        output = "".join([*read, process.stdout.read()])
        assert process.wait(60) == 130, output
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family.values(), timeout=30)
    assert alive == []
    if presses == 1:
        assert "Stopping after this step; press Ctrl-C again to stop at once." in output
        assert "Interrupted. To go on: zerozoo train simplerl-zoo --resume " in output
        assert "--backend ray --rollout-workers 1 --learners 1" in output
        [checkpoint] = (tmp_path / "run" / "checkpoints").glob("step-*")
        steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(int(checkpoint.name.removeprefix("step-")) + 1))

"""Several processes on one model: the numbers of one process. Two gloo processes stand for two GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zerozoo.language.parallel import ALONE, Ranks

FIELDS = ["--kl-coefficient", "0.01", "--updates-per-step", "2", "--steps", "2", "--samples-logged", "16"]


@pytest.mark.parametrize("items", [0, 1, 2, 7, 24])
def test_shares_are_contiguous_even_and_complete(items: int) -> None:
    dealt = list(range(items))
    parts = [dealt[Ranks(rank, 3).share(items)] for rank in range(3)]
    assert sum(parts, []) == dealt
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_exchanges_nothing() -> None:
    tensor = torch.ones(2)
    ALONE.add([tensor])
    assert tensor.tolist() == [1.0, 1.0]
    assert ALONE.gather([1, 2]) == [1, 2]
    assert ALONE.highest(3.0) == 3.0
    assert ALONE.from_first(lambda: "made") == "made"


def train(directory: Path, processes: int, *fields: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "zerozoo", "train", "simplerl-zoo"]
    command += ["--preset", "smoke", *FIELDS, *fields, "--directory", str(directory)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    for processes in (1, 2):
        done = train(tmp_path / str(processes), processes)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (rows(tmp_path / str(processes) / "metrics.jsonl") for processes in (1, 2))
    assert [row["step"] for row in one] == [row["step"] for row in two] == [0, 1, 2]
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        # Each process pads its own micro-batches and drops finished rows of its own.
        measured = [
            name for name in first if not name.startswith(("time", "seconds/", "update/padded", "tokens/drawn"))
        ]
        for name in measured:
            assert second[name] == pytest.approx(first[name], abs=1e-5), name
    assert any(row.get("policy/gradient_norm", 0) > 0 for row in one)  # or nothing was compared
    samples = [[(row["task"], row["response"]) for row in rows(tmp_path / run / "samples.jsonl")] for run in "12"]
    assert samples[0] == samples[1]
    weights = [load_file(tmp_path / run / "model" / "model.safetensors") for run in "12"]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=0)


def test_several_processes_need_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    from zerozoo.cli.train import parse_and_run
    from zerozoo.runs.errors import UserError

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--directory"):
        parse_and_run(["simplerl-zoo", "--preset", "smoke"])


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

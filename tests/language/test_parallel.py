"""Several processes on one model: the numbers of one process. Two gloo processes stand for two GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zerozoo.language.build import open_policy
from zerozoo.language.device import Machine
from zerozoo.language.parallel import ALONE, Ranks, check_processes
from zerozoo.recipes.reasoning import simplerl_zoo
from zerozoo.runs.errors import UserError

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

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--directory"):
        parse_and_run(["simplerl-zoo", "--preset", "smoke"])


@dataclass(frozen=True)
class Wishes:
    prompts_per_step: int = 4
    shard: bool = True
    precision: str = "full"


@pytest.mark.parametrize(
    ("processes", "wishes", "words"),
    [
        ("5", Wishes(), "5 processes train together, but a step has only 4 prompts"),
        ("5", Wishes(shard=False), "5 processes train together, but a step has only 4 prompts"),
        ("1", Wishes(), "this is the only one"),
        ("2", Wishes(precision="int8"), "--precision int8 is not made for sharded weights"),
    ],
)
def test_what_a_number_of_processes_does_not_suit(
    processes: str, wishes: Wishes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(UserError, match=words):
        check_processes(wishes)


@pytest.mark.parametrize("processes", ["1", "4"])
def test_what_it_suits(processes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    check_processes(Wishes(shard=processes == "4"))


def test_stages_that_cannot_shard_say_so() -> None:
    machine = Machine("cpu", None, 100, 10)
    with pytest.raises(UserError, match="--shard is made for reinforcement learning"):
        open_policy(replace(simplerl_zoo.Config(), shard=True), machine)


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

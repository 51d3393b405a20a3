"""Zero RL with responses written by vLLM."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed here; make test-vllm makes an environment for these tests")

from chain_model import VOCABULARY  # noqa: E402

from zerozoo.distributed.vllm_engine import VllmEngine  # noqa: E402
from zerozoo.distributed.vllm_sampler import VllmSampler  # noqa: E402
from zerozoo.language.families import tiny_model  # noqa: E402
from zerozoo.language.models import load_model, save_model  # noqa: E402
from zerozoo.language.samplers.named import NAMED  # noqa: E402
from zerozoo.recipes.reasoning import simplerl_zoo  # noqa: E402
from zerozoo.recipes.reasoning.simplerl_zoo import PRESETS, Config  # noqa: E402
from zerozoo.runs.run import Run  # noqa: E402

FIELDS: dict[str, Any] = {
    **PRESETS["smoke"],
    "data": "arithmetic",
    "level": "one-digit",
    "split": "",
    "heldout_size": 6,
    "max_new_tokens": 3,
    "prompts_per_step": 8,
    "samples_per_prompt": 12,
    "learning_rate": 0.01,
    "kl_coefficient": 0.0,
    "steps": 4,
    "checkpoint_every": 2,
}
SMALL = [
    *("--data", "arithmetic", "--level", "one-digit", "--split", "", "--heldout-size", "6"),
    *("--max-new-tokens", "3", "--steps", "2", "--learning-rate", "0.01", "--samples-per-prompt", "12"),
]
MADE_BY_VLLM = {"policy/importance_capped", "policy/importance_weight", "seconds/publish"}


@pytest.fixture
def shared_engine(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--sampler vllm` takes the engine of all tests, whose model the folder holds."""
    monkeypatch.setitem(NAMED, "vllm", lambda policy, machine: VllmSampler(policy, lambda: engine))


def train(folder: Path, directory: Path, **changes: Any) -> Run:
    run = Run(directory, seed=0)
    simplerl_zoo.train(Config(**{**FIELDS, "model": str(folder), "sampler": "vllm", **changes}), run)
    return run


def names(history: list[dict[str, float]]) -> set[str]:
    """Metrics of all steps but for the mean length of what has stopped, which is there only if something has."""
    return {name for row in history for name in row if not name.endswith("stopped_length")}


def importance(history: list[dict[str, float]]) -> list[float]:
    """Mean weight of a token in every step that had something to learn from."""
    weights = [row["policy/importance_weight"] for row in history if "policy/importance_weight" in row]
    assert weights
    return weights


def rows(run: Run) -> list[dict[str, float]]:
    """Metrics without what a clock says."""
    return [
        {name: value for name, value in row.items() if not name.startswith(("seconds/", "time"))}
        for row in run.history()
    ]


def weights(folder: Path) -> torch.Tensor:
    model = load_model(folder).model
    return torch.cat([value.detach().flatten() for value in model.parameters()])


@pytest.mark.usefixtures("shared_engine")
def test_a_run_has_the_metrics_of_every_run(folder: Path, tmp_path: Path) -> None:
    theirs = train(folder, tmp_path / "vllm").history()
    ours = train(folder, tmp_path / "native", sampler="native").history()
    assert [row["step"] for row in theirs] == [row["step"] for row in ours] == [0, 1, 2, 3, 4]
    assert names(theirs) == names(ours) | MADE_BY_VLLM
    assert all("seconds/publish" in row for row in theirs[1:])
    # The learner's log-probs are those of the engine, so no weight is far from 1.
    assert importance(theirs) == pytest.approx([1.0] * len(importance(theirs)), abs=1e-3)


@pytest.mark.usefixtures("shared_engine")
def test_a_run_can_be_repeated_and_resumed(folder: Path, tmp_path: Path) -> None:
    whole = train(folder, tmp_path / "whole")
    train(folder, tmp_path / "parts", steps=2)
    parts = train(folder, tmp_path / "parts")
    trained = weights(whole.path("model"))
    assert not torch.equal(trained, weights(folder))
    assert torch.equal(trained, weights(parts.path("model")))
    assert rows(whole)[3:] == rows(parts)[3:]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zerozoo", "train", "simplerl-zoo", "--preset", "smoke", "--sampler", "vllm", *words],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_the_command_trains(tmp_path: Path) -> None:
    """The whole way: an engine of the command's own, with the cache that it makes for itself.

    The head of this model shares the embedding, which vLLM needs help with (`vllm_engine.needs_untying`): without that
    the probe ends the run at the first update.
    """
    save_model(tiny_model("llama", vocabulary=VOCABULARY, hidden=64, heads=2, kv_heads=1, tied=True), tmp_path / "tied")
    done = command(*SMALL, "--model", str(tmp_path / "tied"), "--directory", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stdout + done.stderr
    assert [row["step"] for row in Run.open(tmp_path / "run").history()] == [0, 1, 2]


def test_rollout_workers_write_with_vllm(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed here")
    done = command(*SMALL, "--model", str(folder), "--directory", str(tmp_path / "run"), "--backend", "ray")
    assert done.returncode == 0, done.stderr[-2000:]
    history = Run.open(tmp_path / "run").history()
    assert [row["step"] for row in history] == [0, 1, 2]
    assert importance(history) == pytest.approx([1.0] * len(importance(history)), abs=1e-3)


def test_an_engine_that_is_killed_is_replaced_and_nothing_counts_twice(folder: Path, tmp_path: Path) -> None:
    """The engine lives in the rollout worker's process. It is killed at a time that a seeded generator draws."""
    pytest.importorskip("ray", reason="Ray is not installed here")
    psutil = pytest.importorskip("psutil")
    settings = [*SMALL, "--backend", "ray", "--rollout-workers", "1", "--sampler", "vllm"]
    settings[settings.index("--steps") + 1] = "12"
    process = subprocess.Popen(
        [sys.executable, "-m", "zerozoo", "train", "simplerl-zoo", "--preset", "smoke", *settings]
        + ["--model", str(folder), "--directory", str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        read = []
        for line in process.stdout:
            read.append(line)
            if line.startswith("step 3/"):
                break
        assert read[-1].startswith("step 3/"), "".join(read)
        time.sleep(random.Random(17).uniform(0.0, 0.5))
        family = psutil.Process(process.pid).children(recursive=True)
        [writer] = [one for one in family if one.cmdline() and one.cmdline()[0].startswith("ray::RolloutWorker")]
        writer.kill()
        rest, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    output = "".join(read) + rest
    assert process.returncode == 0, output[-2000:]
    assert "Rollout worker 0 was lost (" in output
    assert [row["step"] for row in Run.open(tmp_path / "run").history()] == list(range(13))


def test_a_model_that_vllm_cannot_run_gets_one_sentence(tmp_path: Path) -> None:
    """The heads of tiny-base-micro are smaller than any that vLLM has for a CPU."""
    done = command("--directory", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "vLLM cannot run tiny-base-micro here" in done.stderr
    assert "use --sampler native" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr

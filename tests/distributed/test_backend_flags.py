"""The flags of `zerozoo train --backend`: one sentence for what does not fit, before anything is made or started."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zerozoo.cli.backends import RayBackend, cluster_lines, draws_responses, make_needs, resume_command
from zerozoo.cli.main import main
from zerozoo.cli.registry import load_recipe
from zerozoo.language.build import make_sampler
from zerozoo.language.device import Machine
from zerozoo.language.engine import current_engine, use_engine
from zerozoo.language.families import tiny_model
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.runs.errors import UserError

RAY = ["--backend", "ray"]


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        ("simplerl-zoo", ["--backend", "dask"], "Unknown backend 'dask'; choose local or ray."),
        ("simplerl-zoo", ["--learners", "2"], "--learners is for --backend ray: add that, or leave it out."),
        (
            "simplerl-zoo",
            ["--rollout-workers", "2"],
            "--rollout-workers is for --backend ray: add that, or leave it out.",
        ),
        ("simplerl-zoo", ["--address", "a:1"], "--address is for --backend ray: add that, or leave it out."),
        ("simplerl-zoo", [*RAY, "--learners", "0"], "--learners is 0, but must be at least 1."),
        ("simplerl-zoo", [*RAY, "--learners", "two"], "argument --learners: invalid int value: 'two'."),
        ("simplerl-zoo", [*RAY, "--rollout-workers", "-1"], "--rollout-workers is -1, but must not be negative."),
        (
            "simplerl-zoo",
            [*RAY, "--learners", "5"],
            "5 learners cannot share the 4 prompts in a step: ask for at most 4 learners.",
        ),
        (
            "iql",
            [*RAY, "--rollout-workers", "2"],
            "iql has no language model that writes responses: leave out --rollout-workers.",
        ),
        ("iql", [*RAY, "--learners", "2"], "iql trains in one process: leave out --learners."),
        (
            "simplerl-zoo",
            [*RAY, "--rollout-worker", "2"],
            "simplerl-zoo has no field --rollout-worker; did you mean --rollout-workers?",
        ),
        (
            "simplerl-zoo",
            [*RAY, "--address", "ray://10.0.0.1:10001"],
            "ray://10.0.0.1:10001 is not the address of a head node: take HOST:PORT on one of the nodes, or hand the"
            " command in with `ray job submit`.",
        ),
    ],
)
def test_flags_that_do_not_fit(
    recipe: str,
    flags: Sequence[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(["train", recipe, "--preset", "smoke", "--directory", "run", *flags])
    assert (code, capsys.readouterr().err) == (2, f"error: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else found(name, *rest))
    assert main(["train", "simplerl-zoo", "--preset", "smoke", "--directory", str(tmp_path / "run"), *RAY]) == 2
    assert capsys.readouterr().err == "error: --backend ray needs the package ray: pip install 'zerozoo[ray]'.\n"


def test_torchrun_and_ray_exclude_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "simplerl-zoo", "--preset", "smoke", "--directory", str(tmp_path / "run"), *RAY]) == 2
    assert "run it without torchrun" in capsys.readouterr().err


def test_which_recipes_have_use_for_rollout_workers() -> None:
    uses = {slug: draws_responses(load_recipe(slug).make_config({})) for slug in ("simplerl-zoo", "rft", "iql", "sac")}
    assert uses == {"simplerl-zoo": True, "rft": True, "iql": False, "sac": False}


def test_what_a_run_asks_of_a_cluster() -> None:
    recipe = load_recipe("simplerl-zoo")
    config = recipe.make_config({"model": "Qwen/Qwen2.5-7B", "prompts_per_step": 8}, "paper")
    needs = make_needs(config, RayBackend(2, 3, None))
    assert (needs.learners, needs.workers, needs.processes) == (3, 2, 5)
    parameters = 7_615_000_000
    assert needs.worker_bytes > 4 * parameters * 0.99
    assert needs.learner_bytes > needs.worker_bytes + 12 * parameters * 0.99  # gradients and two moments more
    assert make_needs(config, RayBackend(0, 3, None)).worker_bytes == 0
    assert make_needs(load_recipe("iql").make_config({}), RayBackend(0, 1, None)).learner_bytes == 0


def test_the_plan_says_who_does_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe("simplerl-zoo")
    config = recipe.make_config({"model": "Qwen/Qwen2.5-7B", "device": "cpu", "rows_at_once": 256}, "paper")
    processes, writing, memory = cluster_lines(config, RayBackend(12, 4, None))
    assert processes == ("processes", "learners: 4, rollout workers: 12")
    assert writing == ("writing", "47 chunks a step, of at most 22 x 8 responses")  # 1024 / (4 x 12) = 21.3
    needs = make_needs(config, RayBackend(12, 4, None))
    assert f"{needs.learner_bytes / 2**30:.1f} GiB, a rollout worker {needs.worker_bytes / 2**30:.1f} GiB" in memory[1]
    few = cluster_lines(config, RayBackend(0, 4, None))
    assert [name for name, _ in few] == ["processes", "on the CPU"]
    assert "worker" not in few[1][1]
    monkeypatch.chdir(tmp_path)
    assert main(["train", "simplerl-zoo", "--preset", "smoke", "--plan", *RAY, "--rollout-workers", "2"]) == 0
    assert "learners: 1, rollout workers: 2" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_command_that_goes_on() -> None:
    recipe = load_recipe("simplerl-zoo")
    assert resume_command(recipe, Path("runs/a b")) == "zerozoo train simplerl-zoo --resume 'runs/a b'"
    assert resume_command(recipe, Path("run"), RayBackend(2, 1, "a:1")) == (
        "zerozoo train simplerl-zoo --resume run --backend ray --rollout-workers 2 --learners 1 --address a:1"
    )


def test_a_sampler_comes_from_the_engine_of_the_run() -> None:
    policy = tiny_model("llama", vocabulary="01 ", hidden=16, heads=2, kv_heads=1)
    machine = Machine("cpu", None, 16, 4)
    asked: list[Any] = []
    engine = SimpleNamespace(sampler=lambda *arguments: asked.append(arguments) or "sampler")
    with use_engine(engine):  # type: ignore[arg-type]
        assert current_engine() is engine
        assert make_sampler("native", policy, machine) == "sampler"  # type: ignore[comparison-overlap]
        with pytest.raises(UserError, match="sampler"):
            make_sampler("nativ", policy, machine)
    assert [arguments[0] for arguments in asked] == ["native"]
    assert current_engine() is None
    assert isinstance(make_sampler("native", policy, machine), NativeSampler)


def test_plain_training_does_not_load_ray() -> None:
    code = "import sys, zerozoo.cli.train, zerozoo.language.training; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
    assert torch.get_num_threads() >= 1

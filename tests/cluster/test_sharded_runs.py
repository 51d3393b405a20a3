"""Whole runs with sharded weights: sampling, KL reference, critic, checkpoints, the saved model."""

from __future__ import annotations

import importlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from zerozoo.language.families import tiny_model
from zerozoo.language.lora import add_lora
from zerozoo.language.parallel import Ranks
from zerozoo.language.sharding import shard_policy
from zerozoo.language.snapshot import restore, save, snapshot
from zerozoo.runs.checkpoints import load_newest
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

RECIPES = {"simplerl-zoo": "reasoning.simplerl_zoo", "ppo": "baselines.token_ppo"}
FIELDS = {"kl_coefficient": 0.01, "updates_per_step": 2, "checkpoint_every": 1, "heldout_size": 10}


def train(directory: str, slug: str, size: int, fields: dict[str, Any]) -> None:
    """A run of a recipe's smoke preset in this process, which is one of `size`."""
    recipe = importlib.import_module(f"zerozoo.recipes.{RECIPES[slug]}")
    values = {**recipe.PRESETS["smoke"], **FIELDS, **fields, "shard": size > 1}
    config = recipe.Config(**values)
    if size > 1 and torch.distributed.get_rank():
        run = Run.follow(directory, slug, asdict(config), 0)
    else:
        run = Run.start(directory, slug, asdict(config), 0, extendable=recipe.EXTENDABLE)
    with run:
        recipe.train(config, run)


def rows(directory: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / file).read_text(encoding="utf-8").splitlines()]


def model_of(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model" / "model.safetensors")


def tensors_of(directory: Path) -> dict[str, Tensor]:
    checkpoint = load_newest(directory / "checkpoints")
    assert checkpoint is not None
    return dict(checkpoint.tensors)


@pytest.mark.parametrize(
    ("slug", "fields"),
    [
        ("simplerl-zoo", {}),
        ("simplerl-zoo", {"lora_rank": 2, "gradient_checkpointing": True}),
        ("ppo", {"critic_updates": 2, "gradient_checkpointing": True}),
    ],
)
def test_two_sharded_processes_train_like_one(slug: str, fields: dict[str, Any], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(str(one), slug, 1, fields)
    run_ranks(2, train, str(two), slug, 2, fields)
    assert [row["step"] for row in rows(one)] == [row["step"] for row in rows(two)] == [0, 1, 2]
    for first, second in zip(rows(one), rows(two), strict=True):
        assert first.keys() == second.keys()
        measured = [
            name for name in first if not name.startswith(("time", "seconds/", "update/padded", "update/tokens"))
        ]
        for name in set(measured) - {"tokens/drawn"}:
            assert second[name] == pytest.approx(first[name], rel=1e-5, abs=1e-5), name
    assert any(row.get("policy/gradient_norm", 0) > 0 for row in rows(one))  # or nothing was compared
    responses = [[(row["task"], row["response"]) for row in rows(run, "samples.jsonl")] for run in (one, two)]
    assert responses[0] == responses[1]
    models = model_of(one), model_of(two)
    assert models[0].keys() == models[1].keys()
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, atol=1e-5, rtol=1e-5)
    loaded: Any = AutoModelForCausalLM.from_pretrained(two / "model")
    assert type(loaded).__name__ == json.loads((two / "model" / "config.json").read_text())["architectures"][0]
    assert not (set(loaded.state_dict()) - set(models[1]) - {"lm_head.weight"})


def test_a_sharded_run_resumes_bit_for_bit_and_with_any_number_of_processes(tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run_ranks(2, train, str(straight), "simplerl-zoo", 2, {"steps": 3})
    run_ranks(2, train, str(broken), "simplerl-zoo", 2, {"steps": 2})
    at_two = tensors_of(broken)
    for number in (1, 3):
        shutil.copytree(broken, tmp_path / str(number))
    for number in (2, 1, 3):
        directory = broken if number == 2 else tmp_path / str(number)
        if number == 1:
            train(str(directory), "simplerl-zoo", 1, {"steps": 3})
        else:
            run_ranks(number, train, str(directory), "simplerl-zoo", number, {"steps": 3})
        wanted, found = tensors_of(straight), tensors_of(directory)
        assert set(wanted) == set(found) == set(at_two)
        for name, value in wanted.items():
            if number == 2:
                assert torch.equal(found[name], value), name
            else:
                torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
    assert any(not torch.equal(at_two[name], value) for name, value in tensors_of(straight).items())


def keep(directory: str, size: int, lora: bool, seed: int) -> dict[str, Tensor]:
    """Write a checkpoint of random moments, or with a negative seed read one into other weights; what is there then."""
    policy = tiny_model("llama", seed=abs(seed))
    if lora:
        add_lora(policy, 3, 4, seed=abs(seed))
    ranks = Ranks(torch.distributed.get_rank() if size > 1 else 0, size)
    if size > 1:
        shard_policy(policy, "cpu")
    trained = [value for value in policy.model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1, fused=True)
    run = Run(directory) if ranks.rank == 0 else Run.follow(directory, "", {}, 0)
    if seed < 0:
        checkpoint = run.load()
        assert checkpoint is not None
        restore(policy.model, optimizer, checkpoint.tensors)
    else:
        for step in range(2):
            for number, value in enumerate(trained):
                value.grad = torch.sin(value.detach() * (number + step + 1))
            optimizer.step()
        save(run, ranks, 7, snapshot(policy.model, optimizer) | {"alone": torch.arange(3)}, {"note": "kept"})
    found = snapshot(policy.model, optimizer)
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in found.items()}


@pytest.mark.parametrize(("writers", "readers", "lora"), [(2, 1, False), (1, 2, False), (2, 3, False), (3, 2, True)])
def test_any_number_of_processes_reads_what_another_has_written(
    writers: int, readers: int, lora: bool, tmp_path: Path
) -> None:
    """Exactly, weights and moments."""
    directory = str(tmp_path / "run")
    written = run_ranks(writers, keep, directory, writers, lora, 1) if writers > 1 else [keep(directory, 1, lora, 1)]
    read = run_ranks(readers, keep, directory, readers, lora, -2) if readers > 1 else [keep(directory, 1, lora, -2)]
    assert any(name.startswith("optimizer/exp_avg_sq/") for name in written[0])
    for other in (*written, *read):
        assert list(other) == list(written[0])
        assert all(torch.equal(other[name], value) for name, value in written[0].items())
    files = sorted(path.name for path in (tmp_path / "run" / "checkpoints" / "step-000007").iterdir())
    parts = [f"part-{rank:05d}.safetensors" for rank in range(writers)] if writers > 1 else []
    assert [name for name in files if name.startswith("part-")] == parts
    checkpoint = load_newest(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.tensors["alone"].tolist() == [0, 1, 2]
    assert checkpoint.state["note"] == "kept"


def keep_twice(directory: str, size: int) -> None:
    policy = tiny_model("llama")
    shard_policy(policy, "cpu")
    ranks = Ranks(torch.distributed.get_rank(), size)
    optimizer = torch.optim.AdamW(policy.model.parameters(), fused=True)
    run = Run(directory) if ranks.rank == 0 else Run.follow(directory, "", {}, 0)
    for step in (1, 2, 3):
        save(run, ranks, step, snapshot(policy.model, optimizer), {})
    if ranks.rank:
        run.directory = Path(directory) / "elsewhere"  # a disk of its own
    with pytest.raises(UserError, match="on a disk that all of them see"):
        save(run, ranks, 4, snapshot(policy.model, optimizer), {})


def test_a_torn_checkpoint_is_skipped(tmp_path: Path) -> None:
    run_ranks(2, keep_twice, str(tmp_path), 2)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000003"]  # nothing of the fourth
    part = folder / "step-000003" / "part-00001.safetensors"
    content = bytearray(part.read_bytes())
    content[-3] ^= 1
    part.write_bytes(content)
    older = load_newest(folder)
    assert older is not None
    assert older.step == 2
    assert "part-00001.safetensors does not match its checksum" in older.warnings[0]
    part.unlink()
    older = load_newest(folder)
    assert older is not None
    assert older.step == 2
    assert "part-00001.safetensors is missing" in older.warnings[0]

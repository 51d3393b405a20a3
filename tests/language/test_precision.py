"""int8 rollouts and gradients as parts of a run: what they touch, what they leave alone, and that a run resumes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from zerozoo.language.families import tiny_model
from zerozoo.language.int8 import Int8GradientLinear, Int8Projections
from zerozoo.language.models import load_model, save_model
from zerozoo.language.precision import importance_cap, rollout_sampler, set_gradients
from zerozoo.language.products import plain_projection
from zerozoo.language.samplers.interface import Decoding
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.samplers.reference import TransformersSampler
from zerozoo.recipes.reasoning import simplerl_zoo
from zerozoo.recipes.reasoning.simplerl_zoo import EXTENDABLE, Config
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.runs.streams import Streams

FIELDS: dict[str, Any] = {
    "data": "arithmetic",
    "level": "one-digit",
    "heldout_size": 6,
    "max_new_tokens": 3,
    "prompts_per_step": 32,
    "samples_per_prompt": 4,
    "updates_per_step": 2,
    "kl_coefficient": 0.0,
    "learning_rate": 0.003,
    "steps": 4,
    "evaluate_every": 4,
    "checkpoint_every": 2,
}
PROMPTS = [[4, 5, 6], [6, 4, 5, 5], [5, 4]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "digits"
    save_model(tiny_model("llama", vocabulary="0123 ", hidden=64, heads=2, kv_heads=1), folder)
    return str(folder)


def train(model: str, directory: Path, **changes: Any) -> list[dict[str, Any]]:
    config = Config(model=model, **{**FIELDS, **changes})
    values = dataclasses.asdict(config)
    with Run.start(directory, "simplerl-zoo", values, config.seed, extendable=EXTENDABLE) as run:
        simplerl_zoo.train(config, run)
        return [{k: v for k, v in row.items() if not k.startswith(("seconds/", "time"))} for row in run.history()]


def test_evaluation_and_forward_pass_stay_in_full_precision(model: str, tmp_path: Path):
    full, rollout = train(model, tmp_path / "full"), train(model, tmp_path / "int8", precision="int8-rollout")
    assert full[0] == rollout[0]  # the held-out answers of the same weights, greedy and sampled
    first = [next(row for row in rows if "policy/sampler_kl" in row) for rows in (full, rollout)]
    full, rollout = [full[0], first[0]], [rollout[0], first[1]]
    assert full[1]["policy/sampler_mismatch"] < 1e-5 < rollout[1]["policy/sampler_mismatch"] < 0.5
    assert full[1]["policy/sampler_kl"] < 1e-9 < rollout[1]["policy/sampler_kl"] < 0.05


def test_gradients_in_int8_leave_the_samples_alone(model: str, tmp_path: Path):
    full, backward = train(model, tmp_path / "full"), train(model, tmp_path / "int8", precision="int8-backward")
    first = [next(row for row in rows if "policy/gradient_norm" in row) for rows in (full, backward)]
    assert first[1]["policy/sampler_mismatch"] < 1e-5
    assert first[0]["reward"] == first[1]["reward"]  # nothing was learned yet
    norms = [row["policy/gradient_norm"] for row in first]
    assert norms[0] != norms[1]
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


def test_a_resumed_run_keeps_its_smoothing_and_its_numbers(model: str, tmp_path: Path):
    """The smoothing comes from the start, not from the weights at which a run goes on."""
    whole = train(model, tmp_path / "whole", precision="int8")
    train(model, tmp_path / "parts", precision="int8", steps=2)
    parts = train(model, tmp_path / "parts", precision="int8", steps=4)
    assert [row for row in parts if row["step"] in (1, 3, 4)] == [row for row in whole if row["step"] in (1, 3, 4)]
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_calibration_has_seen_prompts_and_responses_whole(model: str):
    policy = load_model(model)
    config = Config(model=model, precision="int8-rollout", seed=3)
    sampler = rollout_sampler(config, NativeSampler(policy), policy, PROMPTS, Decoding(2, 1.0))
    assert isinstance(sampler, NativeSampler)
    assert isinstance(sampler.project, Int8Projections)
    generator = Streams(3).torch("int8-calibration")
    written = NativeSampler(policy).sample(PROMPTS, 1, Decoding(2, 1.0), generator)
    seen: list[torch.Tensor] = []
    layer = policy.model.model.layers[0].self_attn.q_proj
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        for prompt, row, length in zip(PROMPTS, written.tokens.tolist(), written.lengths.tolist(), strict=True):
            policy.model.model(input_ids=torch.tensor([[*prompt, *row[:length]]]))
    hook.remove()
    expected = torch.cat(seen).square().mean(0).sqrt()
    assert torch.allclose(sampler.project.sizes["0.self_attn.q_proj"], expected, rtol=1e-5)
    assert set(sampler.project.made) == {
        f"{layer}.{name}"
        for layer in range(len(policy.model.model.layers))
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    }


def test_full_precision_changes_nothing(model: str):
    policy, config = load_model(model), Config(model=model)
    plain = NativeSampler(policy)
    set_gradients(config, policy)
    assert not any(isinstance(module, Int8GradientLinear) for module in policy.model.modules())
    assert rollout_sampler(config, plain, policy, PROMPTS, Decoding(2, 1.0)) is plain
    assert plain.project is plain_projection
    assert importance_cap(config) == 0.0
    assert importance_cap(dataclasses.replace(config, precision="int8", importance_cap=3.0)) == 3.0
    assert importance_cap(dataclasses.replace(config, precision="int8-backward")) == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int4"}, "Unknown precision"),
        ({"precision": "int8", "dtype": "bfloat16"}, "is for float32 on a CPU"),
        ({"precision": "int8", "lora_rank": 2}, "it has adapters"),
        ({"precision": "int8", "sampler": "transformers"}, "Only --sampler native"),
        ({"importance_cap": -1.0}, "importance_cap is -1.0, but must be at least 0"),
        ({"importance_cap": math.nan}, "importance_cap is nan"),
    ],
)
def test_what_int8_is_not_made_for_is_refused(model: str, tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        train(model, tmp_path / "run", **changes)


def test_another_sampler_stays_another_sampler(model: str):
    policy = load_model(model)
    config = Config(model=model, precision="int8")
    with pytest.raises(UserError, match="Only --sampler native"):
        rollout_sampler(config, TransformersSampler(policy), policy, PROMPTS, Decoding(2, 1.0))

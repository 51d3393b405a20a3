"""The critic against float64 references of its own: values, credit, gradient, and what may not change them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import make_loop, odd, weights, without_clock
from test_update import LENGTHS, make_policy, make_rollouts
from torch import Tensor

from zerozoo.language.critic import Critic, CriticSettings, ValueModel
from zerozoo.language.families import tiny_model
from zerozoo.language.parallel import ALONE, Ranks
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.zero_rl import ZeroRL
from zerozoo.runs.errors import DivergedError, UserError

DOUBLE = torch.float64
LENGTH = torch.tensor(LENGTHS)


def make_model(dtype: str = "float64", seed: int = 1) -> ValueModel:
    """A value model whose head is far from its zero start."""
    model = ValueModel(make_policy(dtype))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=generator))
        model.head.bias.fill_(0.25)
    return model


def make_critic(model: ValueModel | None = None, rate: float = 0.1, ranks: Ranks = ALONE, **options: Any) -> Critic:
    settings = CriticSettings(**{"max_gradient_norm": 1e9, "tokens_per_microbatch": 40, **options})
    model = model or make_model()
    return Critic(model, torch.optim.SGD(model.parameters(), lr=rate), settings, ranks)


def prepared(stopped: float = 0.5) -> Rollouts:
    """Half of the responses were cut off."""
    rollouts = make_rollouts()
    generator = torch.Generator().manual_seed(5)
    rollouts.samples.stopped = torch.rand(16, generator=generator) < stopped
    return rollouts


def values_by_hand(model: ValueModel, rollouts: Rollouts) -> list[Tensor]:
    """Length + 1 values of each row, each row through transformers' own forward, alone."""
    result = []
    for row, length in enumerate(LENGTHS):
        prompt = rollouts.prompts[row // 4]
        ids = torch.tensor([prompt + rollouts.samples.tokens[row, :length].tolist()])
        hidden = model.backbone.model(input_ids=ids, use_cache=False).last_hidden_state[0]
        result.append(hidden[len(prompt) - 1 :] @ model.head.weight[0] + model.head.bias[0])
    return result


def flat_weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten().clone() for value in model.parameters()])


# --- the network


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("budget", [1, 40, 10**6])
def test_values_stand_before_every_token_and_after_the_last(share: bool, budget: int) -> None:
    model, rollouts = make_model(), prepared()
    values = make_critic(model, share_prompts=share, tokens_per_microbatch=budget).values(rollouts)
    assert values.shape == (16, max(LENGTHS) + 1)
    assert not values.requires_grad
    with torch.no_grad():
        expected = values_by_hand(model, rollouts)
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(values[row, : length + 1], expected[row], atol=1e-6 if share else 1e-12, rtol=0)
        assert not values[row, length + 1 :].any()


def test_a_new_critic_expects_nothing() -> None:
    model = ValueModel(make_policy("float32"))
    assert not Critic(model, torch.optim.SGD(model.parameters(), lr=0.1), CriticSettings()).values(prepared()).any()


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # untied and tied
def test_the_vocabulary_head_is_gone(family: str) -> None:
    policy = tiny_model(family)
    body = sum(value.numel() for value in policy.model.model.parameters())
    model = ValueModel(policy)
    assert sum(value.numel() for value in model.parameters()) == body + 32 + 1


def test_the_head_works_in_float32_whatever_the_products_do() -> None:
    policy = make_policy("float32")
    policy.autocast = torch.bfloat16
    model = ValueModel(policy)
    torch.nn.init.normal_(model.head.weight)
    rollouts = make_rollouts(torch.float32)
    sequences = rollouts.sequences([0])
    values = model(sequences.prompts, sequences.responses, shared=False)
    assert values.dtype == torch.float32
    assert (values.bfloat16().float() != values).any()


def test_dropout_is_off() -> None:
    model, rollouts = make_model(), prepared()
    expected = make_critic(model).values(rollouts)
    for layer in model.backbone.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    assert torch.equal(make_critic(model).values(rollouts), expected)


# --- the credit


def credit_by_hand(
    rollouts: Rollouts, values: list[Tensor], lam: float, bootstrap: bool, kl: Tensor, coefficient: float
) -> list[list[float]]:
    """GAE of each row by its double sum; the last entry of `values` belongs to the state after the row."""
    result = []
    for row, length in enumerate(LENGTHS):
        value = values[row].tolist()
        if rollouts.samples.stopped[row] or not bootstrap:
            value[-1] = 0.0
        rewards = [-coefficient * float(kl[row, place]) for place in range(length)]
        rewards[-1] += float(rollouts.rewards[row])
        errors = [rewards[place] + 0.9 * value[place + 1] - value[place] for place in range(length)]
        places, decay = range(length), 0.9 * lam
        result.append([sum(decay ** (later - place) * errors[later] for later in places[place:]) for place in places])
    return result


@pytest.mark.parametrize("bootstrap", [True, False])
def test_credit_bootstraps_at_a_cut_and_not_at_an_end(bootstrap: bool) -> None:
    model, rollouts = make_model(), prepared()
    kl = torch.rand((16, max(LENGTHS)), generator=torch.Generator().manual_seed(1), dtype=DOUBLE) * rollouts.written()
    options = {"gamma": 0.9, "lam": 0.7, "critic_lam": 0.3, "whiten": False, "share_prompts": False}
    critic = make_critic(model, bootstrap=bootstrap, **options)
    advantages = critic.give(rollouts, kl, 0.5)
    with torch.no_grad():
        values = values_by_hand(model, rollouts)
    expected = credit_by_hand(rollouts, values, 0.7, bootstrap, kl, 0.5)
    targets = credit_by_hand(rollouts, values, 0.3, bootstrap, kl, 0.5)
    assert critic.seen is not None
    for row, length in enumerate(LENGTHS):
        assert advantages[row, :length].tolist() == pytest.approx(expected[row], abs=1e-9)
        wanted = [target + float(value) for target, value in zip(targets[row], values[row][:-1], strict=True)]
        assert critic.seen.returns[row, :length].tolist() == pytest.approx(wanted, abs=1e-9)
        assert not advantages[row, length:].any()
    # The rows that were cut off are what the switch is about, and the only ones.
    other = make_critic(model, bootstrap=not bootstrap, **options)
    differs = (other.give(rollouts, kl, 0.5) != advantages).any(1)
    assert torch.equal(differs, ~rollouts.samples.stopped)


def test_whitening_runs_over_all_tokens_of_the_step() -> None:
    rollouts = prepared()
    plain = make_critic(whiten=False).give(rollouts, None, 0.0)
    white = make_critic(whiten=True).give(rollouts, None, 0.0)
    inside = plain[rollouts.written()]
    expected = (inside - inside.mean()) / (inside.var(correction=0) + 1e-8).sqrt()
    torch.testing.assert_close(white[rollouts.written()], expected)
    assert not white[~rollouts.written()].any()


def test_lambda_by_length() -> None:
    rollouts = prepared()
    adaptive = make_critic(whiten=False, length_alpha=0.5).give(rollouts, None, 0.0)
    for row, length in ((2, 7), (0, 5), (4, 2)):
        fixed = make_critic(whiten=False, lam=max(0.0, 1 - 1 / (0.5 * length))).give(rollouts, None, 0.0)
        torch.testing.assert_close(adaptive[row], fixed[row], atol=1e-6, rtol=0)


def test_a_mask_of_tokens_is_refused() -> None:
    rollouts = prepared()
    rollouts.trained = rollouts.written()
    with pytest.raises(ValueError, match="written itself"):
        make_critic().give(rollouts, None, 0.0)


# --- learning


def train_by_hand(model: ValueModel, rollouts: Rollouts, old: Tensor, returns: Tensor, clip: float | None) -> None:
    """Two passes of two gradient steps."""
    for _ in range(2):
        for rows in (range(8), range(8, 16)):
            values = values_by_hand(model, rollouts)
            total = torch.zeros((), dtype=DOUBLE)
            for row in rows:
                for place in range(LENGTHS[row]):
                    now, before, target = values[row][place], old[row, place], returns[row, place]
                    error = (now - target) ** 2
                    if clip is not None:
                        bounded = torch.minimum(torch.maximum(now, before - clip), before + clip)
                        error = torch.maximum(error, (bounded - target) ** 2)
                    total = total + error / 2
            parameters = list(model.parameters())
            gradients = torch.autograd.grad(total / sum(LENGTHS[row] for row in rows), parameters, allow_unused=True)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter.sub_(0.1 * gradient)


@pytest.mark.parametrize("clip", [None, 0.2, 0.05])
def test_weights_after_learning_are_those_of_the_reference(clip: float | None) -> None:
    ours, theirs, start = make_model(), make_model(), flat_weights(make_model())
    rollouts = prepared()
    critic = make_critic(ours, updates_per_step=2, epochs=2, value_clip=clip, share_prompts=False)
    critic.give(rollouts, None, 0.0)
    assert critic.seen is not None
    train_by_hand(theirs, rollouts, critic.seen.values, critic.seen.returns, clip)
    metrics = critic.learn()
    moved = float((flat_weights(theirs) - start).abs().max())
    assert moved > 1e-2
    # norms are float32 inside on both sides, and round differently on the way back
    assert float((flat_weights(ours) - flat_weights(theirs)).abs().max()) < 1e-5 * moved
    assert (metrics["critic/clip_fraction"] > 0.02) == (clip is not None)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("budget", [1, 25, 10**6])
def test_micro_batches_and_shared_prompts_change_nothing(share: bool, budget: int) -> None:
    def learned(**options: Any) -> Tensor:
        critic = make_critic(rate=0.02, updates_per_step=2, epochs=2, **options)
        critic.give(prepared(), None, 0.0)
        critic.learn()
        return flat_weights(critic.model)

    expected = learned(share_prompts=False)
    difference = learned(share_prompts=share, tokens_per_microbatch=budget) - expected
    assert float(difference.abs().max()) < (1e-6 if share else 1e-12)


def recording(rank: int) -> tuple[Ranks, list[list[Tensor]]]:
    """One of two processes, and what it brings to each sum; nothing is added."""
    brought: list[list[Tensor]] = []

    class Recording(Ranks):
        def add(self, tensors: Iterable[Tensor]) -> None:
            brought.append([tensor.clone() for tensor in tensors])

    return Recording(rank, 2), brought


def test_what_two_processes_bring_adds_up_to_the_whole() -> None:
    rollouts, whole = prepared(), make_critic(share_prompts=False)
    whole.give(rollouts, None, 0.0)
    values, gradients = [], []
    for rank in range(2):
        ranks, brought = recording(rank)
        critic = make_critic(rate=0.0, ranks=ranks, share_prompts=False)
        values.append(critic.values(rollouts))
        critic.seen = whole.seen
        brought.clear()
        critic.learn()
        gradients.append(torch.cat([tensor.flatten() for tensor in brought[0]]))
        assert values[-1].any()
        assert gradients[-1].any()
    torch.testing.assert_close(values[0] + values[1], make_critic().values(rollouts), atol=1e-6, rtol=0)
    start = flat_weights(make_model())
    whole.learn()
    torch.testing.assert_close(start - 0.1 * (gradients[0] + gradients[1]), flat_weights(whole.model))


def test_metrics_by_hand() -> None:
    rollouts = prepared()
    critic = make_critic(rate=0.0, value_clip=None)
    critic.give(rollouts, None, 0.0)
    assert critic.seen is not None
    written = rollouts.written()
    values, returns = critic.seen.values[written], critic.seen.returns[written]
    metrics = critic.learn()
    assert metrics["critic/loss"] == pytest.approx(float((values - returns).square().mean() / 2), rel=1e-6)
    assert metrics["critic/value"] == pytest.approx(float(values.mean()))
    assert metrics["critic/return"] == pytest.approx(float(returns.mean()))
    explained = 1 - float((returns - values).var(correction=0) / returns.var(correction=0))
    assert metrics["critic/explained_variance"] == pytest.approx(explained)
    assert metrics["critic/clip_fraction"] == 0.0
    assert metrics["critic/gradient_norm"] > 0.1
    assert critic.learn() == {}  # what was seen has been learned


def test_nothing_to_explain_is_no_metric() -> None:
    rollouts = prepared(stopped=2.0)
    rollouts.rewards = torch.zeros(16, dtype=DOUBLE)
    critic = make_critic(critic_lam=1.0)
    critic.give(rollouts, None, 0.0)
    assert "critic/explained_variance" not in critic.learn()


def test_a_gradient_that_is_not_finite_touches_nothing() -> None:
    rollouts = prepared()
    rollouts.rewards[3] = math.nan
    critic = make_critic()
    start = flat_weights(critic.model)
    critic.give(rollouts, None, 0.0)
    with pytest.raises(DivergedError, match="gradient norm became nan"):
        critic.learn()
    assert torch.equal(flat_weights(critic.model), start)


def test_a_critic_learns_what_the_reward_depends_on() -> None:
    """The reward is in the first token, so from the second state on it is known; before, only its mean is."""
    policy = tiny_model("llama", hidden=16, heads=2, kv_heads=1)
    model = ValueModel(policy)
    settings = CriticSettings(critic_lam=1.0, value_clip=None)
    critic = Critic(model, torch.optim.AdamW(model.parameters(), lr=0.02), settings)
    rollouts = make_rollouts(torch.float32)
    rollouts.samples.tokens[:, 0] = torch.where(torch.arange(16) % 2 == 0, 10, 20)
    rollouts.rewards = (torch.arange(16) % 2).float()
    for _ in range(40):
        critic.give(rollouts, None, 0.0)
        metrics = critic.learn()
    assert metrics["critic/explained_variance"] > 0.6
    values = critic.values(rollouts)
    longer = [row for row in range(16) if LENGTHS[row] > 1]
    known = values[longer, 1]
    assert float((known - rollouts.rewards[longer]).abs().max()) < 0.3
    # The first states of a group are one and the same: their value is between.
    assert float((values[:4, 0] - values[0, 0]).abs().max()) < 1e-5
    assert 0.1 < float(values[0, 0]) < 0.9


# --- settings and resume


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gamma": 1.1}, "gamma is 1.1, but must lie between 0 and 1"),
        ({"lam": -0.1}, "lam is -0.1"),
        ({"critic_lam": math.nan}, "critic_lam is nan"),
        ({"length_alpha": -1.0}, "length_alpha is -1.0"),
        ({"value_clip": 0.0}, "value_clip is 0.0"),
        ({"updates_per_step": 0}, "critic's updates_per_step is 0"),
        ({"epochs": 0}, "critic's epochs is 0"),
    ],
)
def test_numbers_that_no_critic_could_use_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        CriticSettings(**options)


def critic_loop(directory: Path, steps: int) -> ZeroRL:
    policy = tiny_model("llama", seed=3, hidden=16, heads=2, kv_heads=1)
    model = ValueModel(policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    critic = Critic(model, optimizer, replace(CriticSettings(), updates_per_step=2))
    return make_loop(directory, rule=odd, credit=critic, steps=steps, checkpoint_every=2)


def test_the_critic_resumes_bit_for_bit(tmp_path: Path) -> None:
    unbroken = critic_loop(tmp_path / "unbroken", 5)
    unbroken.train()
    critic_loop(tmp_path / "run", 2).train()
    resumed = critic_loop(tmp_path / "run", 5)
    resumed.train()
    assert torch.equal(weights(resumed), weights(unbroken))
    for loop in (resumed, unbroken):
        assert isinstance(loop.credit, Critic)
    assert torch.equal(flat_weights(resumed.credit.model), flat_weights(unbroken.credit.model))  # type: ignore[union-attr]
    later = [row for row in without_clock(resumed.run.history()) if row["step"] > 2]
    assert later == [row for row in without_clock(unbroken.run.history()) if row["step"] > 2]
    assert all("critic/loss" in row for row in later)
    checkpoint = resumed.run.load()
    assert checkpoint is not None
    names = [name for name in checkpoint.tensors if name.startswith("credit/")]
    assert "credit/policy/head.weight" in names
    assert "credit/optimizer/exp_avg/head.weight" in names

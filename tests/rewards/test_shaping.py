from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from zerozoo.losses.filters import keep_by_rank
from zerozoo.rewards.shaping import (
    SHAPINGS,
    anneal,
    distinct_attempts,
    inverse_length,
    mix,
    place_on_tokens,
    reward_reliability,
    shape_steps,
)
from zerozoo.runs.errors import UserError

NAN = float("nan")
# Solutions of 4, 2 and 1 steps; padded scores are nonsense.
SCORES = torch.tensor([[0.9, 0.8, 0.2, 0.6], [0.7, 0.1, NAN, NAN], [0.3, NAN, 5.0, NAN]], dtype=torch.float64)
STEPS = torch.tensor([4, 2, 1])

# --- steps ---

EXPECTED = {
    "none": [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    "raw": [[0.9, 0.8, 0.2, 0.6], [0.7, 0.1, 0, 0], [0.3, 0, 0, 0]],
    "normed": [[0.225, 0.2, 0.05, 0.15], [0.35, 0.05, 0, 0], [0.3, 0, 0, 0]],
    "length-penalty": [[0.2, 0.1, -0.5, -0.1], [0.0, -0.6, 0, 0], [-0.4, 0, 0, 0]],
    "clip": [[0, 0, -0.4, 0], [0, -0.5, 0, 0], [-0.3, 0, 0, 0]],
    "delta": [[0.1, 0.6, 0.2, 0], [0.7, 0, 0, 0], [0, 0, 0, 0]],
    "clip-delta": [[0, 0.4, -0.4, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
}


@pytest.mark.parametrize("name", SHAPINGS)
def test_shapings_by_hand(name):
    result = shape_steps(name, SCORES, STEPS, eta=0.6, penalty=0.7)
    torch.testing.assert_close(result, torch.tensor(EXPECTED[name], dtype=torch.float64), atol=1e-12, rtol=0)


def test_what_a_policy_can_collect():
    """With raw scores ten more steps of 0.9 earn 9; with delta and the clips they earn nothing."""
    short, long = torch.tensor([[0.9, 0.9]]), torch.full((1, 12), 0.9)
    for name, gain in (("raw", 9.0), ("normed", 0.0), ("clip", 0.0), ("delta", 0.0), ("clip-delta", 0.0)):
        both = [shape_steps(name, scores, torch.tensor([scores.shape[1]])).sum().item() for scores in (short, long)]
        assert both[1] - both[0] == pytest.approx(gain, abs=1e-5)


def test_delta_telescopes_to_the_score():
    scores = torch.rand(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rewards = shape_steps("delta", scores, torch.full((5,), 7))
    returns = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns[:, :6], scores[:, :6])
    assert (returns[:, 6] == 0).all()


def test_no_gradient_reaches_the_scores():
    scores = torch.rand(2, 3, requires_grad=True)
    for name in SHAPINGS:
        assert not shape_steps(name, scores, torch.tensor([3, 1])).requires_grad


def test_shaping_errors():
    with pytest.raises(UserError, match="clip-delta"):
        shape_steps("clop", SCORES, STEPS)
    with pytest.raises(ValueError, match="rank 2"):
        shape_steps("raw", SCORES[0], STEPS)
    with pytest.raises(ValueError, match="integers"):
        shape_steps("normed", SCORES, STEPS.double())


def test_places():
    rewards = shape_steps("raw", SCORES, STEPS)
    ends = torch.tensor([[1, 3, 3, 5], [0, 4, 77, -1], [2, 0, 0, 0]])
    tokens = place_on_tokens(rewards, STEPS, ends, length=6)
    expected = [[0, 0.9, 0, 1.0, 0, 0.6], [0.7, 0, 0, 0, 0.1, 0], [0, 0, 0.3, 0, 0, 0]]
    torch.testing.assert_close(tokens, torch.tensor(expected, dtype=torch.float64))
    assert place_on_tokens(rewards[:0], STEPS[:0], ends[:0], 6).shape == (0, 6)
    with pytest.raises(ValueError, match="tokens 0 to 5 of 5"):
        place_on_tokens(rewards, STEPS, ends, length=5)


# --- exploration ---


def test_inverse_length_by_hand():
    assert inverse_length("x" * 400, 20.0) == pytest.approx(-0.2)
    assert inverse_length("x" * 400 + r"\boxed{3}" + "y" * 4000, 20.0) == pytest.approx(-0.2)
    assert inverse_length("x" * 40, 20.0) == -1.0
    assert inverse_length("x" * 40, 20.0, lowest=-5.0) == pytest.approx(-2.0)
    assert inverse_length(r"\boxed{3}", 20.0) == -1.0  # no reasoning is the worst
    assert inverse_length("", 20.0, lowest=-3.0) == -3.0
    assert inverse_length("some text", 0.0) == 0.0
    for coefficient, lowest in ((-1.0, -1.0), (1.0, 1.0)):
        with pytest.raises(ValueError, match="must not be negative"):
            inverse_length("a", coefficient, lowest)


@pytest.mark.parametrize(
    ("response", "share"),
    [
        ("7*3-2 = 19, no.\n7+3*2 = 13", 0.5),
        ("7*3-2 = 19\n7 * 3 - 2 = 19", 0.25),  # the same again
        ("(7+3)*2 = 10*2 = 20", 0.25),  # one chain, one attempt
        ("7 × 3\n7+3\n7-3\n3-7\n3*7\n2*7", 1.0),
        ("7 and 3", 0.0),
        ("", 0.0),
    ],
)
def test_distinct_attempts(response, share):
    assert distinct_attempts(response, most=4) == share


def test_mixture_and_annealing():
    assert mix(1.0, 0.5) == pytest.approx(0.9)
    assert mix(1.0, 0.5, weight=0.25) == pytest.approx(0.625)
    assert [anneal(step, 4, 1.0, 0.2) for step in (-1, 0, 1, 4, 9)] == pytest.approx([1.0, 1.0, 0.8, 0.2, 0.2])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        mix(1.0, 0.0, 1.1)
    with pytest.raises(ValueError, match="at least 1"):
        anneal(0, 0, 1.0, 0.0)
    with pytest.raises(ValueError, match="at least 1"):
        distinct_attempts("a", 0)


# --- reliability ---


def test_reliability_by_hand():
    """Means of the groups: rewards 1, 2, 3 and scores 0, 1, 1/2. Slope 1/4, SS_res = 3/8, SS_tot = 1/2."""
    rewards = [0.5, 3.5, 2.0, 1.5, 2.5, 2.0]
    scores = [0.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    assert reward_reliability(rewards, scores, groups=3) == pytest.approx(0.25)


def test_reliability_is_the_squared_correlation_of_group_means():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=200)
    scores = rewards + 2 * rng.normal(size=200)
    parts = np.array_split(np.argsort(rewards), 10)
    means = np.array([[rewards[part].mean(), scores[part].mean()] for part in parts])
    assert reward_reliability(rewards, scores) == pytest.approx(np.corrcoef(means.T)[0, 1] ** 2, abs=1e-12)


def test_reliability_does_not_change_with_scale_and_order():
    rng = np.random.default_rng(1)
    rewards, scores = rng.normal(size=60), rng.normal(size=60)
    value = reward_reliability(rewards, scores, groups=6)
    order = rng.permutation(60)
    assert reward_reliability(3 * rewards[order] - 7, -2 * scores[order] + 1, groups=6) == pytest.approx(value)


def test_limits_of_reliability():
    assert reward_reliability([1, 2, 3, 4], [2, 4, 6, 8], groups=4) == pytest.approx(1)
    assert math.isnan(reward_reliability([1, 2, 3, 4], [2, 2, 2, 2], groups=4))
    assert reward_reliability([1, 1, 1, 1], [0, 1, 0, 2], groups=4) == 0
    for rewards, scores, groups in (([1, 2], [1, 2], 3), ([1, 2, 3], [1, 2], 3), ([1, 2, 3], [1, 2, 3], 2)):
        with pytest.raises(ValueError):
            reward_reliability(rewards, scores, groups)


def test_best_and_worst_predict_better_where_the_middle_is_unreliable():
    """The reward is the score below 0.2 and above 0.8, and says nothing between."""
    generator = torch.Generator().manual_seed(0)
    scores = (torch.randperm(1800, generator=generator) + 0.5) / 1800
    noise = torch.rand(1800, generator=generator, dtype=torch.float64)
    rewards = torch.where((scores > 0.2) & (scores < 0.8), 0.2 + 0.6 * noise, scores.double())
    kept = keep_by_rank(rewards, torch.arange(1800) // 6, "best-worst", generator)
    everything, filtered = reward_reliability(rewards, scores), reward_reliability(rewards[kept], scores[kept])
    assert everything == pytest.approx(0.65 / 0.825, abs=0.03)  # means of ten groups of a uniform distribution
    assert filtered > everything + 0.05

from __future__ import annotations

import math

import pytest
import torch

from zerozoo.losses.filters import (
    RANK_FILTERS,
    clip_steps,
    delta_steps,
    keep_by_rank,
    one_right_one_wrong,
    pass_rate_band,
    rank_weights,
    row_probabilities,
)

DOUBLE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pass_rate_band_keeps_whole_groups_and_its_ends():
    rewards = torch.tensor([1.0] * 3 + [0.0] * 7 + [0.0] * 10 + [1.0] * 10 + [1.0] * 8 + [0.0] * 2)
    groups = torch.tensor([7, 1, 4, 2]).repeat_interleave(10)  # pass rates 0.3, 0, 1, 0.8
    shuffled = torch.randperm(40, generator=generator())
    for low, high, kept in [(0.3, 0.8, {7, 2}), (0.0, 0.3, {7, 1}), (0.0, 0.79, {7, 1}), (0.31, 1.0, {4, 2})]:
        mask = pass_rate_band(rewards[shuffled], groups[shuffled], low, high)
        assert torch.equal(mask, torch.isin(groups[shuffled], torch.tensor(sorted(kept))))
    with pytest.raises(ValueError, match="low"):
        pass_rate_band(rewards, groups, 0.8, 0.2)


def test_one_right_one_wrong_of_every_group_that_has_both():
    right = torch.tensor([True, True, False, False, False, True, True, True, False])
    groups = torch.tensor([3, 3, 3, 3, 5, 3, 8, 8, 9])  # 5 and 9 have no right, 8 no wrong row
    for seed in range(20):
        kept = one_right_one_wrong(right, groups, generator(seed))
        assert groups[kept].tolist() == [3, 3]
        assert sorted(right[kept].tolist()) == [False, True]


def test_one_right_one_wrong_is_drawn_evenly_from_the_callers_generator():
    right = torch.tensor([True, True, True, False, False])
    groups = torch.zeros(5, dtype=torch.int64)
    stream = generator()
    counts = sum(one_right_one_wrong(right, groups, stream).int() for _ in range(3000))
    # 1000 +- 26 each of three, 1500 +- 27 each of two: five standard deviations
    assert all(abs(count - 1000) < 130 for count in counts[:3].tolist())
    assert all(abs(count - 1500) < 140 for count in counts[3:].tolist())
    first, again = (one_right_one_wrong(right, groups, generator(4)) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", [0.2, 0.2, 0.2, 0.2, 0.2]),
        ("best", [1, 0, 0, 0, 0]),
        ("best-random", [0.5, 0.125, 0.125, 0.125, 0.125]),
        ("best-worst", [0.5, 0, 0, 0, 0.5]),
    ],
)
def test_rank_weights_by_hand(name, expected):
    assert rank_weights(name, 5).tolist() == expected
    rewards = torch.tensor([0.3, 0.9, -1.0, 0.5, 0.4])  # ranks 3, 0, 4, 1, 2
    groups = torch.full((5,), 6)
    probabilities = row_probabilities(rewards, groups, name, generator())
    assert probabilities.tolist() == [expected[rank] for rank in (3, 0, 4, 1, 2)]


@pytest.mark.parametrize(
    ("name", "kept"),
    [("none", {0, 1, 2, 3, 4, 5, 6}), ("best", {1, 5}), ("best-worst", {1, 2, 5, 6})],
)
def test_keep_by_rank(name, kept):
    rewards = torch.tensor([0.3, 0.9, -1.0, 0.5, 0.1, 0.7, 0.0])
    groups = torch.tensor([2, 2, 2, 2, 0, 0, 0])
    mask = keep_by_rank(rewards, groups, name, generator())
    assert set(mask.nonzero()[:, 0].tolist()) == kept


def test_best_random_keeps_the_best_and_any_other():
    rewards = torch.tensor([0.3, 0.9, -1.0, 0.5])
    groups = torch.zeros(4, dtype=torch.int64)
    stream = generator()
    masks = torch.stack([keep_by_rank(rewards, groups, "best-random", stream) for _ in range(300)])
    assert masks[:, 1].all()
    assert masks.sum(1).tolist() == [2] * 300
    assert all(count > 60 for count in masks.sum(0)[[0, 2, 3]].tolist())  # 100 expected, standard deviation 8


def test_equal_rewards_are_ranked_at_random():
    rewards, groups = torch.zeros(3), torch.zeros(3, dtype=torch.int64)
    best = {int(keep_by_rank(rewards, groups, "best", generator(seed)).nonzero()[0, 0]) for seed in range(30)}
    assert best == {0, 1, 2}


def test_a_filter_needs_enough_responses_and_numbers():
    one, zero = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    for name in ("best-random", "best-worst"):
        with pytest.raises(ValueError, match="cannot choose"):
            keep_by_rank(one, zero, name, generator())
        with pytest.raises(ValueError, match="cannot choose"):
            rank_weights(name, 1)
    for name in RANK_FILTERS:
        with pytest.raises(ValueError, match="NaN"):
            keep_by_rank(torch.tensor([1.0, math.nan]), torch.tensor([0, 0]), name, generator())
    with pytest.raises(ValueError, match="unknown rank filter"):
        rank_weights("worst", 3)
    for function in (pass_rate_band,):
        with pytest.raises(ValueError):
            function(torch.zeros(3), torch.zeros(2, dtype=torch.int64), 0.0, 1.0)
    with pytest.raises(ValueError, match="bool"):
        one_right_one_wrong(torch.ones(3), torch.zeros(3, dtype=torch.int64), generator())


# --- rewards of steps ---

SCORES = torch.tensor([[0.9, 0.6, 0.8, 0.5], [0.7, 0.2, math.nan, math.nan], [0.4, math.nan, math.nan, math.nan]])
STEPS = torch.tensor([4, 2, 1])


def test_clip_by_hand():
    expected = torch.tensor([[0, -0.1, 0, -0.2], [0, -0.5, 0, 0], [-0.3, 0, 0, 0]])
    torch.testing.assert_close(clip_steps(SCORES, STEPS, 0.7), expected)
    assert (clip_steps(SCORES, STEPS, 0.7) <= 0).all()


def test_delta_by_hand():
    expected = torch.tensor([[0.3, -0.2, 0.8, 0], [0.7, 0, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(delta_steps(SCORES, STEPS), expected)


def test_clip_delta_by_hand():
    clipped = clip_steps(SCORES, STEPS, 0.7)
    expected = torch.tensor([[0.1, -0.1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(delta_steps(clipped, STEPS), expected)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_delta_telescopes_from_every_step(steps):
    scores = torch.rand(5, 9, generator=generator(), dtype=DOUBLE)
    rewards = delta_steps(scores, torch.full((5,), steps))
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(to_go[:, : steps - 1], scores[:, : steps - 1])
    assert (to_go[:, steps - 1 :] == 0).all()


def test_repeating_a_good_step_earns_nothing_after_the_refinement():
    """Raw scores pay for every filler step of 0.9; Clip and Delta do not."""
    short, long = torch.tensor([[0.9, 0.9]]), torch.full((1, 20), 0.9)
    assert long.sum() > 5 * short.sum()
    for scores, steps in ((short, 2), (long, 20)):
        count = torch.tensor([steps])
        assert clip_steps(scores, count, 0.8).sum() == 0
        torch.testing.assert_close(delta_steps(scores, count).sum(), torch.tensor(0.9))


def test_step_rewards_refuse_wrong_input_and_have_no_gradient():
    scores = torch.rand(2, 3, requires_grad=True)
    assert not delta_steps(scores, torch.tensor([3, 1])).requires_grad
    assert not clip_steps(scores, torch.tensor([3, 1]), 0.5).requires_grad
    for steps in (torch.tensor([4, 1]), torch.tensor([1]), torch.tensor([-1, 1]), torch.tensor([1.0, 1.0])):
        with pytest.raises(ValueError):
            delta_steps(scores, steps)
        with pytest.raises(ValueError):
            clip_steps(scores, steps, 0.5)

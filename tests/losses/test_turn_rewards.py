"""Rewards and advantages of turns, against hand-computed numbers and a float64 reference."""

from __future__ import annotations

import pytest
import torch

from zerozoo.losses.turns import progress_bonus, turn_advantages


def test_the_bonus_pays_for_what_the_second_turn_changed() -> None:
    """Right stays right 1, wrong becomes right 1 + alpha, right becomes wrong -alpha, wrong stays wrong 0."""
    rewards = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    shaped = progress_bonus(rewards, 10.0)
    assert shaped[:, 1].tolist() == [1.0, 11.0, -10.0, 0.0]
    assert torch.equal(shaped[:, 0], rewards[:, 0])  # or the model would learn to begin wrong
    assert torch.equal(progress_bonus(rewards, 0.0), rewards)


def test_three_turns_are_paid_by_their_own_change() -> None:
    shaped = progress_bonus(torch.tensor([[0.0, 1.0, 0.5]]), 2.0)
    assert shaped.tolist() == [[0.0, 3.0, -0.5]]


def test_advantages_against_a_reference_in_double() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand((12, 2), generator=generator, dtype=torch.float64)
    groups = torch.tensor([7, 7, 7, 7, 2, 2, 2, 2, 5, 5, 5, 5])
    found = turn_advantages(rewards.float(), groups)
    for row in range(12):
        others = [other for other in range(12) if groups[other] == groups[row] and other != row]
        wanted = rewards[row] - rewards[others].mean(0)
        assert torch.allclose(found[row].double(), wanted, atol=1e-6)
    white = turn_advantages(rewards, groups, whiten=True)
    plain = turn_advantages(rewards, groups)
    assert torch.allclose(white, (plain - plain.mean(0)) / plain.std(0, correction=0), atol=1e-6)


def test_the_first_turn_does_not_see_the_second() -> None:
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    other = rewards.clone()
    other[:, 1] = torch.tensor([5.0, -3.0, 0.0])
    groups = torch.zeros(3, dtype=torch.int64)
    for whiten in (False, True):
        first, second = (turn_advantages(one, groups, whiten) for one in (rewards, other))
        assert torch.equal(first[:, 0], second[:, 0])
        assert not torch.equal(first[:, 1], second[:, 1])


def test_shapes_are_checked() -> None:
    for bad in (torch.zeros(3), torch.zeros((3, 2), dtype=torch.int64)):
        with pytest.raises(ValueError):
            progress_bonus(bad, 1.0)
    with pytest.raises(ValueError, match="at least two"):
        turn_advantages(torch.zeros((1, 2)), torch.zeros(1, dtype=torch.int64))

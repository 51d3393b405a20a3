"""Cloning right responses and pushing wrong ones down: values and gradients against a reference in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from zerozoo.losses.outcomes import clone_or_push, clone_or_push_clipped, side_factors

OFF = (1.0, math.inf)


def draw(size: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(size, generator=generator, dtype=torch.float64) * 3 - 0.1
    old = logprobs + 0.5 * torch.randn(size, generator=generator, dtype=torch.float64)
    advantages = torch.randn(size, generator=generator, dtype=torch.float64)
    advantages[:3] = 0
    return logprobs.requires_grad_(), old, advantages


def test_without_clips_each_side_has_its_own_loss() -> None:
    logprobs, old, advantages = draw()
    loss = clone_or_push(logprobs, old, advantages, *OFF)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    x, before, a = (value.detach().numpy() for value in (logprobs, old, advantages))
    ratio = np.exp(x - before)
    np.testing.assert_allclose(loss.detach().numpy(), np.where(a > 0, -a * x, -a * ratio), rtol=1e-12)
    np.testing.assert_allclose(gradient.numpy(), np.where(a > 0, -a, -a * ratio), rtol=1e-12)
    assert not clone_or_push_clipped(logprobs, old, advantages, *OFF).any()


def test_on_policy_both_sides_have_the_gradient_of_reinforce() -> None:
    logprobs, _, advantages = draw()
    loss = clone_or_push(logprobs, logprobs.detach(), advantages, *OFF)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    torch.testing.assert_close(gradient, -advantages)


def test_a_token_that_has_moved_far_enough_is_left_alone() -> None:
    logprobs, old, advantages = draw()
    loss = clone_or_push(logprobs, old, advantages, 0.2, 0.3)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    ratio = (logprobs.detach() - old).exp()
    clipped = ((advantages > 0) & (ratio > 1.3)) | ((advantages < 0) & (ratio < 0.8))
    assert 0 < int(clipped.sum()) < len(clipped)
    assert torch.equal(clone_or_push_clipped(logprobs, old, advantages, 0.2, 0.3), clipped)
    assert torch.equal(gradient == 0, clipped | (advantages == 0))
    ceiling = old + math.log(1.3)
    right = (advantages > 0) & clipped
    torch.testing.assert_close(loss[right], (-advantages * ceiling)[right].detach())
    wrong = (advantages < 0) & clipped
    torch.testing.assert_close(loss[wrong].detach(), (-advantages * 0.8)[wrong])


def test_what_is_no_pair_of_logprobs_is_refused() -> None:
    logprobs, old, advantages = draw(4)
    with pytest.raises(ValueError, match="shapes must be equal"):
        clone_or_push(logprobs, old[:3], advantages, *OFF)
    with pytest.raises(ValueError, match="must not be negative"):
        clone_or_push(logprobs, old, advantages, -0.1, 0.2)
    with pytest.raises(ValueError, match="floating point"):
        clone_or_push_clipped(logprobs, old, torch.ones(4, dtype=torch.int64), 0.1, 0.2)


def test_factors_make_one_mean_the_sum_of_two() -> None:
    """c+ mean of right tokens + c- mean of wrong tokens, of the counted rows only."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([3, 7, 2, 5, 4, 6])
    right = torch.tensor([True, False, True, False, False, True])
    counted = torch.tensor([True, True, True, False, True, False])
    rows = torch.arange(6).repeat_interleave(lengths)
    values = torch.rand(int(lengths.sum()), generator=generator, dtype=torch.float64)
    factors = side_factors(lengths, right, counted, 1.0, 0.5)
    assert factors[~counted].tolist() == [0.0, 0.0]
    mean = (factors.double()[rows] * values)[counted[rows]].sum() / lengths[counted].sum()
    expected = values[(right & counted)[rows]].mean() + 0.5 * values[(~right & counted)[rows]].mean()
    torch.testing.assert_close(mean, expected, rtol=1e-6, atol=0)


def test_factors_of_one_side_alone_and_of_none() -> None:
    lengths, right = torch.tensor([3, 4]), torch.tensor([True, True])
    assert side_factors(lengths, right, torch.tensor([True, True]), 1.0, 0.5).tolist() == [1.0, 1.0]
    assert side_factors(lengths, ~right, torch.tensor([True, True]), 1.0, 0.5).tolist() == [0.5, 0.5]
    assert side_factors(lengths, right, torch.tensor([False, False]), 1.0, 0.5).tolist() == [0.0, 0.0]
    assert side_factors(lengths, torch.tensor([True, False]), right, 1.0, 0.0).tolist() == [pytest.approx(7 / 3), 0.0]


def test_factors_of_what_is_no_mask_are_refused() -> None:
    lengths, right = torch.tensor([3, 4]), torch.tensor([True, False])
    with pytest.raises(ValueError, match="must be bool"):
        side_factors(lengths, torch.tensor([1, 0]), right, 1.0, 0.5)
    with pytest.raises(ValueError, match="must not be negative"):
        side_factors(lengths, right, right, 1.0, -0.5)
    with pytest.raises(ValueError, match="shapes must be equal"):
        side_factors(lengths, right[:1], right, 1.0, 0.5)

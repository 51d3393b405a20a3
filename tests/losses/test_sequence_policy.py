from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from zerozoo.losses import clipped_surrogate, group_centred, token_weights
from zerozoo.losses.sequence_policy import (
    batch_scaled,
    cispo,
    cispo_clipped_tokens,
    clipped_value_loss,
    clipped_values,
    explained_variance,
    gspo_clipped_tokens,
    gspo_surrogate,
    length_adaptive_lambda,
    overlong_penalty,
    row_sums,
    token_credit,
    token_rewards,
    whitened,
)
from zerozoo.losses.traces import gae

DOUBLE = torch.float64
LENGTHS = torch.tensor([3, 1, 4, 2])


def tokens(seed: int, count: int = 10, scale: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """New and old log-probs of `count` tokens."""
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(count, generator=generator, dtype=DOUBLE)
    return old + scale * torch.randn(count, generator=generator, dtype=DOUBLE), old


def rows_of(values: torch.Tensor) -> list[torch.Tensor]:
    return list(values.split(LENGTHS.tolist()))


# --- row sums, whitening, advantages ---


def test_row_sums():
    values = torch.arange(10.0, requires_grad=True)
    sums = row_sums(values, LENGTHS)
    assert sums.tolist() == [0 + 1 + 2, 3, 4 + 5 + 6 + 7, 8 + 9]
    (sums * torch.tensor([1.0, 10.0, 100.0, 1000.0])).sum().backward()
    assert values.grad.tolist() == [1, 1, 1, 10, 100, 100, 100, 100, 1000, 1000]
    assert row_sums(torch.ones(3), torch.tensor([0, 3, 0])).tolist() == [0, 3, 0]
    with pytest.raises(ValueError, match="add up to 9"):
        row_sums(values, torch.tensor([3, 1, 4, 1]))


def test_whitened_against_numpy():
    values = torch.tensor([2.0, -1.0, 0.5, 7.0], dtype=DOUBLE)
    expected = (values.numpy() - values.numpy().mean()) / math.sqrt(values.numpy().var() + 1e-8)
    np.testing.assert_allclose(whitened(values).numpy(), expected, atol=1e-12)


def test_weights_count_entries_as_often_as_they_say_and_zero_leaves_out():
    values = torch.tensor([2.0, -1.0, 0.5, math.nan], dtype=DOUBLE)
    result = whitened(values, torch.tensor([3, 1, 2, 0]))
    repeated = torch.tensor([2.0, 2.0, 2.0, -1.0, 0.5, 0.5], dtype=DOUBLE)
    torch.testing.assert_close(result[:3], whitened(repeated)[[0, 3, 4]])
    assert result[3] == 0
    assert whitened(values, torch.zeros(4)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1.0])
def test_equal_values_are_exactly_zero(value):
    assert whitened(torch.full((8,), value)).tolist() == [0.0] * 8
    assert batch_scaled(torch.full((8,), value), torch.arange(8) // 4).tolist() == [0.0] * 8


def test_nan_is_passed_on():
    assert whitened(torch.tensor([1.0, math.nan])).isnan().all()


def test_batch_scaled_by_hand():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=DOUBLE)
    groups = torch.tensor([0, 0, 1, 1])
    # group means 1/2 and 0: centred 1/2, -1/2, 0, 0 with variance 1/8
    expected = torch.tensor([math.sqrt(2), -math.sqrt(2), 0, 0], dtype=DOUBLE)
    torch.testing.assert_close(batch_scaled(rewards, groups), expected, atol=1e-6, rtol=0)


def test_the_batch_scales_all_groups_alike():
    """An easy group (7 of 8) keeps its small weight; dividing by its own deviation would raise it."""
    rewards = torch.tensor([1.0] * 7 + [0.0] + [1.0] * 4 + [0.0] * 4, dtype=DOUBLE)
    groups = torch.arange(2).repeat_interleave(8)
    ratio = batch_scaled(rewards, groups) / group_centred(rewards, groups)
    torch.testing.assert_close(ratio, ratio[0].expand(16))


def test_wrong_reward_shapes_are_refused():
    for rewards, groups in [
        (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64)),
        (torch.zeros(3), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(3), torch.zeros(3)),
    ]:
        with pytest.raises(ValueError):
            batch_scaled(rewards, groups)


def test_overlong_penalty_by_hand():
    penalty = overlong_penalty(torch.tensor([0, 12, 14, 15, 16, 17, 40]), longest=16, buffer=4)
    assert penalty.tolist() == [0, 0, -0.5, -0.75, -1, -1, -1]
    for buffer in (0, 17):
        with pytest.raises(ValueError, match="buffer"):
            overlong_penalty(LENGTHS, 16, buffer)


# --- GSPO ---


def gspo_sequence_form(new, old, advantages, low, high):
    """(1/N) sum_i max(-A s, -A clip(s)), written as the paper has it."""
    losses = []
    for row_new, row_old, advantage in zip(rows_of(new), rows_of(old), advantages, strict=True):
        ratio = (row_new.sum() - row_old.sum()).div(len(row_new)).exp()
        losses.append(torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - low, 1 + high)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("clips", [(0.2, 0.3), (3e-4, 4e-4), (0.0, 0.0), (1.0, math.inf)])
@pytest.mark.parametrize("seed", range(4))
def test_gspo_has_value_and_gradient_of_the_sequence_form(seed, clips):
    new, old = tokens(seed)
    advantages = torch.tensor([1.0, -0.5, -2.0, 0.7], dtype=DOUBLE)
    new.requires_grad_(True)
    expected = gspo_sequence_form(new, old, advantages, *clips)
    (expected_gradient,) = torch.autograd.grad(expected, new)
    per_token = gspo_surrogate(new, old, advantages.repeat_interleave(LENGTHS), LENGTHS, *clips)
    weights = token_weights(LENGTHS, "sequence-mean").double().repeat_interleave(LENGTHS)
    loss = (weights * per_token).sum()
    (gradient,) = torch.autograd.grad(loss, new)
    torch.testing.assert_close(loss, expected, atol=1e-7, rtol=1e-6)  # the weights are float32
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-7, rtol=1e-6)


def test_gspo_clips_the_response_as_a_whole():
    """Ratios 2 and 1/2 of two tokens: PPO clips one of them, the response (ratio 1) is untouched."""
    new = torch.tensor([math.log(2), -math.log(2)], dtype=DOUBLE, requires_grad=True)
    old, ones = torch.zeros(2, dtype=DOUBLE), torch.ones(2, dtype=DOUBLE)
    gspo_surrogate(new, old, ones, torch.tensor([2]), 0.2, 0.2).sum().backward()
    torch.testing.assert_close(new.grad, -ones)
    new.grad = None
    clipped_surrogate(new, old, ones, 0.2, 0.2).sum().backward()
    torch.testing.assert_close(new.grad, torch.tensor([0, -0.5], dtype=DOUBLE))


def test_gspo_of_rows_with_one_token_is_ppo():
    new, old = tokens(5)
    advantages = torch.linspace(-1, 1, 10, dtype=DOUBLE)
    ones = torch.ones(10, dtype=torch.int64)
    torch.testing.assert_close(
        gspo_surrogate(new, old, advantages, ones, 0.1, 0.2), clipped_surrogate(new, old, advantages, 0.1, 0.2)
    )


@pytest.mark.parametrize("seed", range(3))
def test_gspo_clipped_tokens_are_those_without_gradient(seed):
    new, old = tokens(seed)
    new.requires_grad_(True)
    found = []
    for sign in (1, -1):
        advantages = sign * torch.tensor([1.0, 0.5, 0.0, 0.7], dtype=DOUBLE).repeat_interleave(LENGTHS)
        (gradient,) = torch.autograd.grad(gspo_surrogate(new, old, advantages, LENGTHS, 0.02, 0.02).sum(), new)
        found.append(gspo_clipped_tokens(new, old, advantages, LENGTHS, 0.02, 0.02))
        assert torch.equal(found[-1], (gradient == 0) & (advantages != 0))
    assert (found[0] | found[1]).any()  # a row that has moved is clipped for one of the signs
    assert not (found[0] & found[1]).any()


def test_gspo_gradient_through_the_new_logprobs_only():
    new, old = (tensor.requires_grad_(True) for tensor in tokens(1))
    advantages = torch.ones(10, dtype=DOUBLE, requires_grad=True)
    gspo_surrogate(new, old, advantages, LENGTHS, 0.2, 0.2).sum().backward()
    assert new.grad is not None
    assert old.grad is None
    assert advantages.grad is None


@pytest.mark.parametrize("function", [gspo_surrogate, gspo_clipped_tokens])
def test_gspo_refuses_wrong_shapes(function):
    flat = torch.zeros(10)
    for arguments in [
        (flat, flat, flat, torch.tensor([5, 4])),
        (flat, flat, torch.zeros(4), LENGTHS),
        (flat.view(2, 5), flat.view(2, 5), flat.view(2, 5), torch.tensor([5, 5])),
        (flat, flat, flat, LENGTHS.float()),
    ]:
        with pytest.raises(ValueError):
            function(*arguments, 0.2, 0.2)
    with pytest.raises(ValueError, match="negative"):
        function(flat, flat, flat, LENGTHS, -0.1, 0.2)


# --- CISPO ---


@pytest.mark.parametrize(
    ("ratio", "advantage", "low", "gradient"),
    [  # gradient of the loss by log pi: -clip(rho) A, never 0
        (1.1, 1.0, 1.0, -1.1),
        (3.0, 1.0, 1.0, -1.5),
        (3.0, -2.0, 1.0, 3.0),
        (0.1, 1.0, 1.0, -0.1),
        (0.1, 1.0, 7.0, -0.1),
        (0.1, 1.0, 0.2, -0.8),
        (0.1, -1.0, 0.2, 0.8),
        (1.0, 1.0, 0.2, -1.0),
    ],
)
def test_cispo_keeps_the_gradient_of_every_token(ratio, advantage, low, gradient):
    new = torch.tensor([math.log(ratio)], dtype=DOUBLE, requires_grad=True)
    loss = cispo(new, torch.zeros(1, dtype=DOUBLE), torch.tensor([advantage], dtype=DOUBLE), low, 0.5)
    loss.sum().backward()
    assert new.grad.item() == pytest.approx(gradient)
    assert loss.item() == pytest.approx(gradient * math.log(ratio))


def test_cispo_on_policy_is_the_policy_gradient():
    new, _ = tokens(2)
    new.requires_grad_(True)
    advantages = torch.linspace(-1, 2, 10, dtype=DOUBLE)
    cispo(new, new, advantages, 1.0, 0.2).sum().backward()
    torch.testing.assert_close(new.grad, -advantages)


def test_cispo_clipped_tokens_are_those_whose_weight_is_not_the_ratio():
    new, old = tokens(3)
    new.requires_grad_(True)
    advantages = torch.tensor([1.0, -1.0, 0.0, 0.5, 2.0] * 2, dtype=DOUBLE)
    (gradient,) = torch.autograd.grad(cispo(new, old, advantages, 0.1, 0.2).sum(), new)
    plain = -(new.detach() - old).exp() * advantages
    clipped = cispo_clipped_tokens(new, old, advantages, 0.1, 0.2)
    assert torch.equal(clipped, (gradient - plain).abs() > 1e-12)
    assert 0 < clipped.sum() < 8
    assert (gradient[clipped] != 0).all()


def test_cispo_refuses_wrong_input():
    flat = torch.zeros(4)
    whole = torch.ones(4, dtype=torch.int64)
    for arguments in [(flat, flat, torch.zeros(3)), (flat, torch.zeros(2, 2), flat), (flat, flat, whole)]:
        for function in (cispo, cispo_clipped_tokens):
            with pytest.raises(ValueError):
                function(*arguments, 1.0, 0.2)
    with pytest.raises(ValueError, match="negative"):
        cispo(flat, flat, flat, 1.0, -0.2)


# --- PPO with a critic ---


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "gradient"),
    [
        (1.1, 1.0, 2.0, 0.405, -0.9),  # inside the clip
        (1.5, 1.0, 2.0, 0.32, 0.0),  # moved by more than the clip: the clipped error 0.8 is the larger one, and flat
        (1.5, 1.0, 0.0, 1.125, 1.5),  # moved away from the target: the unclipped error is the larger one
        (0.5, 1.0, 0.0, 0.32, 0.0),
    ],
)
def test_clipped_value_loss_by_hand(value, old, target, loss, gradient):
    values = torch.tensor([value], dtype=DOUBLE, requires_grad=True)
    result = clipped_value_loss(values, torch.tensor([old]).double(), torch.tensor([target]).double(), 0.2)
    result.sum().backward()
    assert result.item() == pytest.approx(loss)
    assert values.grad.item() == pytest.approx(gradient)
    arguments = (values, torch.tensor([old]).double(), torch.tensor([target]).double())
    assert clipped_values(*arguments, 0.2).item() == (gradient == 0)
    assert not clipped_values(*arguments, None).item()


def test_value_loss_without_clip_and_wrong_clips():
    values, returns = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])
    assert clipped_value_loss(values, torch.zeros(2), returns, None).tolist() == [0.5, 2.0]
    with pytest.raises(ValueError, match="clip"):
        clipped_value_loss(values, values, returns, 0.0)
    with pytest.raises(ValueError, match="shapes"):
        clipped_value_loss(values, values, torch.zeros(3), None)


def test_token_rewards_by_hand():
    kl = torch.tensor([[0.1, 0.2, math.nan], [0.5, math.nan, math.nan], [0.0, 0.0, 1.0], [math.nan] * 3])
    rewards = token_rewards(torch.tensor([10.0, 0.0, -10.0, 5.0]), torch.tensor([2, 1, 3, 0]), 3, kl, 0.5)
    expected = torch.tensor([[-0.05, 9.9, 0], [-0.25, 0, 0], [0, 0, -10.5], [0, 0, 0]])
    torch.testing.assert_close(rewards, expected)
    plain = token_rewards(torch.tensor([1.0, 2.0]), torch.tensor([1, 2]), 2)
    assert plain.tolist() == [[1, 0], [0, 2]]
    with pytest.raises(ValueError, match="between 0 and 2"):
        token_rewards(torch.ones(1), torch.tensor([3]), 2)


def credit_of_one_row(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """GAE by its definition, a double sum over the tokens of one response."""
    deltas = [
        rewards[t] + (gamma * values[t + 1] if t + 1 < len(values) else 0.0) - values[t] for t in range(len(values))
    ]
    return [
        sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, len(values))) for t in range(len(values))
    ]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_token_credit_against_the_definition(gamma, lam):
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(4, 5, generator=generator, dtype=DOUBLE) for _ in range(2))
    padded = torch.arange(5) >= LENGTHS[:, None]
    rewards[padded], values[padded] = math.nan, math.nan
    credit = token_credit(rewards, values, LENGTHS, gamma, lam)
    for row, length in enumerate(LENGTHS.tolist()):
        inside = slice(0, length)
        expected = credit_of_one_row(rewards[row, inside].tolist(), values[row, inside].tolist(), gamma, lam)
        assert credit.advantages[row, inside].tolist() == pytest.approx(expected)
        assert credit.returns[row, inside].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, values[row, inside].tolist(), strict=True)]
        )
    assert (credit.advantages[padded] == 0).all()
    assert (credit.returns[padded] == 0).all()


def test_with_lambda_one_every_token_gets_the_score_minus_its_value():
    rewards = token_rewards(torch.tensor([1.0, 0.0]), torch.tensor([3, 2]), 4)
    values = torch.tensor([[0.5, 0.25, 0.75, 9.0], [0.5, 0.25, 9.0, 9.0]])
    credit = token_credit(rewards, values, torch.tensor([3, 2]), 1.0, 1.0)
    torch.testing.assert_close(credit.advantages, torch.tensor([[0.5, 0.75, 0.25, 0], [-0.5, -0.25, 0, 0]]))
    torch.testing.assert_close(credit.returns, torch.tensor([[1.0, 1.0, 1.0, 0], [0, 0, 0, 0]]))


def test_a_response_that_was_cut_off_goes_on_from_the_value_of_its_end():
    """The trap: a true end is followed by nothing, a cut by what the critic expects there."""
    rewards = torch.zeros(2, 4, dtype=DOUBLE)
    values = torch.tensor([[0.5, 0.25, 0.75, math.nan]] * 2, dtype=DOUBLE)
    lengths = torch.tensor([3, 3])
    credit = token_credit(rewards, values, lengths, 0.9, 0.5, bootstrap=torch.tensor([2.0, 0.0], dtype=DOUBLE))
    last = [0.9 * 2.0 - 0.75, -0.75]
    for row in range(2):
        second = 0.9 * 0.75 - 0.25 + 0.45 * last[row]
        first = 0.9 * 0.25 - 0.5 + 0.45 * second
        assert credit.advantages[row].tolist() == pytest.approx([first, second, last[row], 0.0])
    assert credit.returns[0, 2] == pytest.approx(1.8)
    assert credit.returns[1, 2] == 0
    without = token_credit(rewards, values, lengths, 0.9, 0.5)
    assert torch.equal(without.advantages[1], credit.advantages[1])
    assert torch.equal(without.advantages[0], credit.advantages[1])


def test_a_lambda_for_each_row():
    generator = torch.Generator().manual_seed(2)
    rewards, values = (torch.randn(4, 5, generator=generator, dtype=DOUBLE) for _ in range(2))
    lams = torch.tensor([0.0, 0.5, 0.95, 1.0], dtype=DOUBLE)
    together = token_credit(rewards, values, LENGTHS, 0.9, lams).advantages
    for row, lam in enumerate(lams.tolist()):
        alone = token_credit(rewards[row : row + 1], values[row : row + 1], LENGTHS[row : row + 1], 0.9, lam)
        torch.testing.assert_close(together[row : row + 1], alone.advantages)


def test_token_credit_is_gae_with_the_true_successors():
    """The same numbers from the library's other implementation, which works along time and knows two flags."""
    generator = torch.Generator().manual_seed(3)
    rewards, values = (torch.randn(3, 4, generator=generator, dtype=DOUBLE) for _ in range(2))
    after = torch.randn(3, generator=generator, dtype=DOUBLE)
    stopped = torch.tensor([True, False, True])
    following = torch.cat([values[:, 1:], after[:, None]], dim=1)
    last = torch.zeros(4, 3, dtype=torch.bool)
    last[-1] = True
    expected = gae(rewards.T, values.T, following.T, last & stopped, last, 0.97, 0.8).T
    whole = torch.full((3,), 4)
    credit = token_credit(rewards, values, whole, 0.97, 0.8, bootstrap=after.masked_fill(stopped, 0.0))
    torch.testing.assert_close(credit.advantages, expected)


def test_length_adaptive_lambda_by_hand():
    lams = length_adaptive_lambda(torch.tensor([0, 10, 20, 40, 2000]), 0.05)
    assert lams.tolist() == pytest.approx([0.0, 0.0, 0.0, 0.5, 0.99])
    with pytest.raises(ValueError, match="alpha"):
        length_adaptive_lambda(LENGTHS, 0.0)


def test_explained_variance_by_hand():
    returns = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=DOUBLE)
    assert explained_variance(returns + 7, returns).item() == pytest.approx(1.0)  # a constant error is no variance
    assert explained_variance(torch.full_like(returns, 5.0), returns).item() == pytest.approx(0.0)
    assert explained_variance(-returns, returns).item() == pytest.approx(-3.0)
    assert explained_variance(returns / 2, returns).item() == pytest.approx(0.75)
    assert explained_variance(returns, torch.ones_like(returns)).isnan()
    assert explained_variance(returns, 0.1 + 1e-16 * returns).isnan()
    assert explained_variance(returns * 1e-6, returns * 1e-6).item() == pytest.approx(1.0)


def test_padding_changes_no_credit():
    generator = torch.Generator().manual_seed(1)
    rewards, values = (torch.randn(2, 3, generator=generator, dtype=DOUBLE) for _ in range(2))
    lengths = torch.tensor([3, 2])
    wide = [torch.nn.functional.pad(tensor, (0, 4), value=7.0) for tensor in (rewards, values)]
    for narrow, padded in zip(token_credit(rewards, values, lengths), token_credit(*wide, lengths), strict=True):
        torch.testing.assert_close(padded[:, :3], narrow)


def test_token_credit_refuses_wrong_shapes():
    zeros = torch.zeros(2, 3)
    for values, lengths in [
        (torch.zeros(2, 2), torch.tensor([1, 1])),
        (zeros, torch.tensor([1])),
        (zeros, torch.tensor([1, 4])),
        (zeros, torch.tensor([1.0, 1.0])),
    ]:
        with pytest.raises(ValueError):
            token_credit(zeros, values, lengths)
    with pytest.raises(ValueError, match="bootstrap"):
        token_credit(zeros, zeros, torch.tensor([1, 1]), bootstrap=torch.zeros(3))

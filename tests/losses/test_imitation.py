from __future__ import annotations

import math

import pytest
import torch

from zerozoo.losses.imitation import (
    advantage_weights,
    denoising,
    gaussian_nll,
    masked_cross_entropy,
    masked_mse,
    td3_bc_weight,
)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_advantage_weights_by_hand():
    advantages = torch.tensor([-1.0, 0.0, 1.0, 2.0, 400.0], dtype=torch.float64, requires_grad=True)
    weights, share = advantage_weights(advantages, 3.0, 100.0)
    expected = [math.exp(-3), 1.0, math.exp(3), 100.0, 100.0]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))
    assert float(share) == pytest.approx(2 / 5)
    assert not weights.requires_grad
    for beta, cap in [(-1.0, 100.0), (1.0, 0.0)]:
        with pytest.raises(ValueError, match="beta must not be negative"):
            advantage_weights(advantages, beta, cap)


def test_td3_bc_weight_makes_the_q_term_scale_free():
    q = normal(0, 64).requires_grad_(True)
    weight = td3_bc_weight(q, 2.5)
    assert not weight.requires_grad
    assert float(weight * q.abs().mean()) == pytest.approx(2.5)
    torch.testing.assert_close(td3_bc_weight(7 * q, 2.5) * 7 * q, weight * q)
    assert math.isfinite(float(td3_bc_weight(torch.zeros(4), 2.5)))


@pytest.mark.parametrize("shape", [(5, 3), (3,)])
def test_gaussian_nll_is_that_of_torch(shape):
    mean, action, log_std = normal(1, 5, 3), normal(2, 5, 3), normal(3, *shape)
    expected = -torch.distributions.Normal(mean, log_std.exp()).log_prob(action).sum(-1)
    torch.testing.assert_close(gaussian_nll(mean, log_std, action), expected)
    with pytest.raises(ValueError, match="equal"):
        gaussian_nll(mean, log_std, action[:1])


def test_denoising_by_hand_and_its_gradient_goes_to_the_prediction_only():
    prediction = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    target = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    weight = torch.tensor([2.0, 0.1], requires_grad=True)
    assert denoising(prediction, target).tolist() == [5.0, 25.0]
    loss = denoising(prediction, target, weight)
    assert loss.tolist() == [10.0, 2.5]
    loss.sum().backward()
    assert prediction.grad is not None
    assert target.grad is None
    assert weight.grad is None
    with pytest.raises(ValueError, match="equal"):
        denoising(prediction, target, weight[:1])


def sequences() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    prediction, action = normal(4, 3, 6, 2), normal(5, 3, 6, 2)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6, [0] * 6], dtype=torch.bool)
    return prediction.requires_grad_(True), action, mask


def test_masked_mse_averages_over_valid_steps_whatever_stands_at_the_padding():
    prediction, action, mask = sequences()
    loss = masked_mse(prediction, action, mask)
    expected = sum(float((prediction - action)[b, t].square().mean()) for b, t in mask.nonzero().tolist()) / 10
    assert float(loss) == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(loss, prediction)
    padded = action.clone()
    padded[~mask] = math.nan
    spoiled = masked_mse(prediction, padded, mask)
    (same,) = torch.autograd.grad(spoiled, prediction)
    assert torch.equal(loss, spoiled)
    assert torch.equal(gradient, same)
    assert float(gradient[~mask].abs().max()) == 0
    assert float(masked_mse(prediction, action, torch.zeros_like(mask))) == 0


def test_masked_mse_does_not_depend_on_the_amount_of_padding():
    prediction, action, mask = sequences()
    longer = [torch.cat([torch.ones_like(tensor[:, :4]), tensor], 1) for tensor in (prediction, action)]
    padded = torch.cat([torch.zeros(3, 4, dtype=torch.bool), mask], 1)
    torch.testing.assert_close(masked_mse(*longer, padded), masked_mse(prediction, action, mask))


def test_masked_cross_entropy_is_that_of_torch_on_the_valid_steps():
    logits, _, mask = sequences()
    action = (normal(6, 3, 6) > 0).long()
    expected = torch.nn.functional.cross_entropy(logits[mask], action[mask])
    torch.testing.assert_close(masked_cross_entropy(logits, action, mask), expected)
    assert float(masked_cross_entropy(logits, action, torch.zeros_like(mask))) == 0
    with pytest.raises(ValueError, match="integers"):
        masked_cross_entropy(logits, action.double(), mask)
    with pytest.raises(ValueError, match="equal"):
        masked_cross_entropy(logits, action, mask[:1])
    with pytest.raises(ValueError, match="equal"):
        masked_mse(logits, logits.detach()[:1], mask)

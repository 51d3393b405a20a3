from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from zerozoo.losses.values import (
    CONJUGATES,
    MAXIMISERS,
    calibrated,
    chi_square,
    conjugate,
    cql_penalty,
    expectile,
    gumbel,
    hl_gauss_targets,
    huber,
    implicit_maximum,
    mse,
    quantile_huber,
    total_variation,
)

DOUBLE = torch.float64


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def minimiser(loss, targets: torch.Tensor) -> float:
    """The value v that minimises mean loss(targets - v), by bisection on the sign of the gradient."""
    low, high = float(targets.min()) - 1, float(targets.max()) + 1
    for _ in range(60):
        value = torch.tensor((low + high) / 2, dtype=DOUBLE, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(targets - value).mean(), value)
        low, high = (low, float(value)) if float(gradient) > 0 else (float(value.detach()), high)
    return (low + high) / 2


# --- regression


def test_mse_has_no_half_and_no_gradient_to_the_target():
    prediction = torch.tensor([[1.0, 2.0], [3.0, 5.0]], requires_grad=True)
    target = torch.tensor([0.0, 1.0], requires_grad=True)
    losses = mse(prediction, target)
    assert losses.tolist() == [[1.0, 1.0], [9.0, 16.0]]
    losses.sum().backward()
    assert target.grad is None
    assert prediction.grad is not None
    assert prediction.grad.tolist() == [[2.0, 2.0], [6.0, 8.0]]


@pytest.mark.parametrize(("shape", "other"), [((2, 3), (2,)), ((3,), (2, 3)), ((2, 3), (1, 3)), ((3,), (1,))])
def test_targets_must_not_broadcast_along_the_batch(shape, other):
    with pytest.raises(ValueError, match="trailing dimensions"):
        mse(torch.zeros(shape), torch.zeros(other))
    with pytest.raises(ValueError, match="trailing dimensions"):
        calibrated(torch.zeros(shape), torch.zeros(other))


def test_huber_by_hand_and_its_gradient_is_clipped():
    error = torch.tensor([-30.0, -2.0, 0.0, 20.0, 21.0], requires_grad=True)
    losses = huber(error, 20.0)
    assert losses.tolist() == [20 * (30 - 10), 2.0, 0.0, 200.0, 20 * (21 - 10)]
    losses.sum().backward()
    assert error.grad is not None
    assert error.grad.tolist() == [-20.0, -2.0, 0.0, 20.0, 20.0]
    with pytest.raises(ValueError, match="threshold"):
        huber(error, 0.0)


# --- implicit maximisers


def test_expectile_by_hand():
    error = torch.tensor([-2.0, 0.0, 3.0], dtype=DOUBLE)
    torch.testing.assert_close(expectile(error, 0.9), torch.tensor([0.1 * 4, 0, 0.9 * 9], dtype=DOUBLE))
    for tau in (0.0, 1.0):
        with pytest.raises(ValueError, match="tau"):
            expectile(error, tau)


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.7, 0.99])
def test_the_expectile_solves_its_defining_equation(tau):
    """tau E[(X - v)+] = (1 - tau) E[(v - X)+]; 0.5 gives the mean."""
    targets = normal(0, 400)
    value = minimiser(lambda u: expectile(u, tau), targets)
    above, below = (targets - value).clamp(min=0).mean(), (value - targets).clamp(min=0).mean()
    assert float(tau * above) == pytest.approx(float((1 - tau) * below), abs=1e-9)
    if tau == 0.5:
        assert value == pytest.approx(float(targets.mean()), abs=1e-9)


def test_the_reverse_expectile_mirrors_the_expectile():
    """FISOR's |tau - 1(u > 0)| u^2 is expectile(-u, tau), and leans to the minimum."""
    error = normal(1, 50)
    reverse = torch.abs(0.9 - (error > 0).double()) * error.square()
    torch.testing.assert_close(expectile(-error, 0.9), reverse)
    lowest, highest = minimiser(lambda u: expectile(-u, 0.9), error), minimiser(lambda u: expectile(u, 0.9), -error)
    assert lowest == pytest.approx(-highest)


def test_surrogates_by_hand():
    error = torch.tensor([-10.0, -5.0, -1.0, 0.0, 1.0, 4.0])
    assert total_variation(error).tolist() == [0, 0, 0, 0, 1, 4]
    # The released code, max(u + u^2 / 4, 0), gives 15 and 1.25 at the first two.
    assert chi_square(error).tolist() == [0, 0, 0, 0, 1.25, 8]


@pytest.mark.parametrize(("strength", "quantile"), [(0.8, 0.75), (0.6, 1 / 3), (0.9, 8 / 9)])
def test_total_variation_finds_a_quantile(strength, quantile):
    targets = normal(2, 2001)
    value = minimiser(lambda u: implicit_maximum(u, "total-variation", strength), targets)
    assert float((targets < value).double().mean()) == pytest.approx(quantile, abs=1e-3)


@pytest.mark.parametrize("strength", [0.5, 0.9])
def test_chi_square_solves_its_equation(strength):
    """The gradient is zero where lambda E[1(u > 0) (1 + u / 2)] = 1 - lambda ... with u = target - v."""
    targets = normal(3, 4001)
    value = minimiser(lambda u: implicit_maximum(u, "chi-square", strength), targets)
    error = targets - value
    weight = torch.where(error > 0, 1 + error / 2, 0.0).mean()
    assert float(strength * weight) == pytest.approx(1 - strength, abs=1e-3)


@pytest.mark.parametrize("beta", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("shift", [True, False])
def test_gumbel_finds_the_soft_maximum_with_and_without_shift(beta, shift):
    targets = normal(4, 300)
    value = minimiser(lambda u: gumbel(u, beta, shift=shift), targets)
    expected = beta * (torch.logsumexp(targets / beta, 0) - math.log(300))
    assert value == pytest.approx(float(expected), abs=1e-8)


def test_gumbel_is_the_formula_of_the_code_and_survives_huge_errors():
    error = normal(5, 40) * 4
    z = torch.minimum(error / 2, torch.tensor(3.0))
    largest = max(float(z.max()), -1.0)
    expected = torch.exp(z - largest) - z * math.exp(-largest) - math.exp(-largest)
    torch.testing.assert_close(gumbel(error, 2.0, clip=3.0), expected)
    low = error - 1000  # the shift is at least -1
    torch.testing.assert_close(gumbel(low, 2.0), torch.exp(low / 2 + 1) - (low / 2) * math.e - math.e)
    huge = torch.tensor([1e4, 0.0], requires_grad=True)
    loss = gumbel(huge, 1.0).sum()
    loss.backward()
    assert huge.grad is not None
    assert bool(loss.isfinite())
    assert bool(huge.grad.isfinite().all())
    assert not bool(gumbel(huge, 1.0, shift=False).isfinite().all())
    with pytest.raises(ValueError, match="beta"):
        gumbel(huge, 0.0)


def test_errors_above_the_clip_have_no_gradient():
    error = torch.tensor([7.0, 2.0], requires_grad=True)
    gumbel(error, 1.0, clip=5.0).sum().backward()
    assert error.grad is not None
    assert error.grad[0] == 0
    assert error.grad[1] > 0


@pytest.mark.parametrize("maximiser", MAXIMISERS)
def test_implicit_maxima_rise_with_their_strength_and_move_with_the_targets(maximiser):
    targets = normal(6, 500)
    weak, strong = (5.0, 0.3) if maximiser == "reverse-kl" else (0.6, 0.9)
    values = [minimiser(lambda u, s=s: implicit_maximum(u, maximiser, s), targets) for s in (weak, strong)]
    assert values[0] < values[1] <= float(targets.max())
    moved = minimiser(lambda u: implicit_maximum(u, maximiser, strong), targets + 3)
    assert moved == pytest.approx(values[1] + 3, abs=1e-6)


def test_implicit_maximum_uses_its_parts():
    error = normal(7, 30)
    torch.testing.assert_close(implicit_maximum(error, "expectile", 0.8), expectile(error, 0.8))
    torch.testing.assert_close(implicit_maximum(error, "reverse-kl", 0.7, clip=2.0), gumbel(error, 0.7, clip=2.0))
    torch.testing.assert_close(
        implicit_maximum(error, "total-variation", 0.8), 0.8 * total_variation(error) - 0.2 * error
    )
    torch.testing.assert_close(implicit_maximum(error, "chi-square", 0.4), 0.4 * chi_square(error) - 0.6 * error)


@pytest.mark.parametrize(
    ("maximiser", "strength", "clip", "message"),
    [
        ("reverse-KL", 1.0, None, "unknown maximiser"),  # the spelling of the authors' README selects no branch there
        ("chi-square", 1.0, None, "lambda"),
        ("chi-square", 0.0, None, "lambda"),
        ("total-variation", 0.5, None, "lambda"),
        ("expectile", 1.0, None, "tau"),
        ("reverse-kl", -1.0, None, "beta"),
        ("chi-square", 0.5, 5.0, "clip"),
    ],
)
def test_wrong_options_are_refused(maximiser, strength, clip, message):
    with pytest.raises(ValueError, match=message):
        implicit_maximum(torch.zeros(2), maximiser, strength, clip)


@pytest.mark.parametrize("divergence", CONJUGATES)
def test_conjugates_are_the_supremum_over_weights(divergence):
    divergences = {
        "total-variation": lambda w: (w - 1).abs() / 2,
        "chi-square": lambda w: (w - 1).square(),
        "reverse-kl": lambda w: torch.xlogy(w, w),
    }
    weights = torch.linspace(0, 20, 200_001, dtype=DOUBLE)
    y = torch.tensor([-4.0, -2.0, -1.0, -0.5, -0.1, 0.0, 0.3, 0.5], dtype=DOUBLE)
    supremum = (weights * y[:, None] - divergences[divergence](weights)).amax(1)
    torch.testing.assert_close(conjugate(y, divergence), supremum, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="unknown divergence"):
        conjugate(y, divergence.upper())


def test_the_conjugate_of_total_variation_is_infinite_above_a_half():
    assert conjugate(torch.tensor([0.51]), "total-variation").tolist() == [math.inf]


# --- quantiles


def test_quantile_huber_against_loops():
    quantiles, target = normal(8, 2, 4, 5), normal(9, 4, 3)
    expected = np.zeros((2, 4))
    for e, b in np.ndindex(2, 4):
        for i in range(5):
            for j in range(3):
                error = float(target[b, j] - quantiles[e, b, i])
                size = abs(error)
                loss = error * error / 2 if size <= 0.5 else 0.5 * (size - 0.25)
                expected[e, b] += abs((i + 0.5) / 5 - (error < 0)) * loss / 0.5 / 3
    np.testing.assert_allclose(quantile_huber(quantiles, target, 0.5).numpy(), expected, atol=1e-12)


def test_quantile_huber_converges_to_the_quantiles():
    """With a small threshold the fixed point is the (i + 1/2) / K quantile of the targets."""
    targets = torch.arange(1000, dtype=DOUBLE)[None] / 1000
    quantiles = torch.full((1, 4), 0.5, dtype=DOUBLE, requires_grad=True)
    for step in range(600):
        (gradient,) = torch.autograd.grad(quantile_huber(quantiles, targets, 1e-4).sum(), quantiles)
        quantiles = (quantiles - gradient * 0.5 / (step + 1) ** 0.9).detach().requires_grad_()
    assert quantiles.detach()[0].tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875], abs=5e-3)


# --- histograms


def test_histogram_targets_are_the_probabilities_of_a_truncated_normal():
    edges = torch.linspace(-3, 5, 17, dtype=DOUBLE)
    values = torch.tensor([[-3.0, -1.2, 0.0], [0.26, 4.4, 5.0]], dtype=DOUBLE)
    cdf = torch.distributions.Normal(values[..., None], 0.4).cdf(edges)
    expected = cdf.diff(dim=-1) / (cdf[..., -1:] - cdf[..., :1])
    torch.testing.assert_close(hl_gauss_targets(values, edges, 0.4), expected)


def test_histogram_targets_sum_to_one_and_have_the_right_mean_inside():
    edges = torch.linspace(-10, 10, 52)
    width = 20 / 51
    centres = (edges[1:] + edges[:-1]) / 2
    values = torch.linspace(-8, 8, 333)
    targets = hl_gauss_targets(values, edges, 0.75 * width)
    assert float((targets.sum(-1) - 1).abs().max()) < 1e-5
    assert float(((targets * centres).sum(-1) - values).abs().max()) < width / 10


def test_values_outside_of_the_range_count_as_its_ends():
    edges = torch.linspace(0, 1, 6)
    inside = hl_gauss_targets(torch.tensor([0.0, 1.0]), edges, 0.1)
    outside = hl_gauss_targets(torch.tensor([-7.0, 1e30]), edges, 0.1)
    assert torch.equal(inside, outside)
    half = hl_gauss_targets(torch.tensor([0.5], dtype=torch.float16), edges, 0.1)
    assert half.dtype == torch.float32
    with pytest.raises(ValueError, match="sigma"):
        hl_gauss_targets(torch.zeros(2), edges, 0.0)
    with pytest.raises(ValueError, match="edges"):
        hl_gauss_targets(torch.zeros(2), edges[None], 0.1)


# --- conservative values


def test_cql_penalty_against_loops():
    q_sampled, log_density, q_data = normal(10, 2, 5, 3), normal(11, 5, 3), normal(12, 2, 3)
    expected = np.zeros((2, 3))
    for e, b in np.ndindex(2, 3):
        total = sum(math.exp(float(q_sampled[e, s, b] - log_density[s, b])) for s in range(5))
        expected[e, b] = math.log(total / 5) - float(q_data[e, b])
    np.testing.assert_allclose(cql_penalty(q_sampled, log_density, q_data).numpy(), expected, atol=1e-12)


def test_cql_penalty_estimates_the_integral_for_any_proposal():
    """Q(a) = -a^2 / 2 on [-1, 1]: log of its integral of exp is log(sqrt(2 pi) (2 Phi(1) - 1))."""
    exact = math.log(math.sqrt(2 * math.pi) * math.erf(1 / math.sqrt(2)))
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(40_000, generator=generator, dtype=DOUBLE) * 2 - 1
    triangle = 1 - (1 - torch.rand(40_000, generator=generator, dtype=DOUBLE)).sqrt() * 2  # density (1 - a) / 2
    densities = [torch.full_like(uniform, -math.log(2)), ((1 - triangle) / 2).log()]
    for action, log_density in zip([uniform, triangle], densities, strict=True):
        q = -action.square() / 2
        penalty = cql_penalty(q[None, :, None], log_density[:, None], torch.zeros(1, 1, dtype=DOUBLE))
        assert float(penalty) == pytest.approx(exact, abs=0.02)


def test_cql_penalty_of_discrete_actions_is_the_plain_logsumexp():
    q = normal(13, 2, 4, 6)  # (E, A, B)
    penalty = cql_penalty(q, torch.full((4, 6), -math.log(4), dtype=DOUBLE), q[:, 1])
    torch.testing.assert_close(penalty, torch.logsumexp(q, 1) - q[:, 1])
    with pytest.raises(ValueError, match="rank 3"):
        cql_penalty(q[0], q[0], q[0, 0])
    with pytest.raises(ValueError, match="equal"):
        cql_penalty(q, torch.zeros(4, 1), q[:, 1])
    with pytest.raises(ValueError, match="equal"):
        cql_penalty(q, q[0], q[0, 1])


def test_calibrated_values_are_bounded_by_the_return_and_then_have_no_gradient():
    q = torch.tensor([[[1.0, 5.0]], [[4.0, 2.0]]], requires_grad=True)
    bounded = calibrated(q, torch.tensor([3.0, 3.0]))
    assert bounded.tolist() == [[[3.0, 5.0]], [[4.0, 3.0]]]
    bounded.sum().backward()
    assert q.grad is not None
    assert q.grad.tolist() == [[[0.0, 1.0]], [[1.0, 0.0]]]

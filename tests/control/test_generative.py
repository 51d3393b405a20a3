from __future__ import annotations

import math

import pytest
import torch

from zerozoo.control.generative import (
    Diffusion,
    Flow,
    FourierTime,
    ancestral_sample,
    best_of,
    euler_sample,
    vp_schedule,
)
from zerozoo.control.networks import initialise
from zerozoo.control.spec import Spec

MEAN, STD = 0.4, 0.3  # of the known data
SMALL = {"width": 32, "blocks": 1, "time_features": 16, "dropout": 0.0}
KINDS = [Diffusion, Flow]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- schedule and samplers, in closed form


def test_the_schedule_is_the_formula():
    schedule = vp_schedule(5)
    betas = [1 - math.exp(-0.1 / 5 - 0.5 * 9.9 * (2 * t - 1) / 25) for t in range(1, 6)]
    torch.testing.assert_close(schedule.betas, torch.tensor(betas))
    torch.testing.assert_close(schedule.alphas, 1 - schedule.betas)
    product = 1.0
    for step, beta in enumerate(betas):
        product *= 1 - beta
        assert float(schedule.cumulative[step]) == pytest.approx(product)
    # The exponents telescope: what is left of the data at the end does not depend on the number of steps.
    for steps in (1, 5, 1000):
        assert float(vp_schedule(steps).cumulative[-1]) == pytest.approx(math.exp(-0.1 - 9.9 / 2), rel=1e-4)
    with pytest.raises(ValueError, match="at least one step"):
        vp_schedule(0)


def exact_noise(schedule):
    """E[eps | x_t] when the data are N(MEAN, STD^2)."""

    def predict(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        cumulative = schedule.cumulative.double()[time, None]
        variance = cumulative * STD**2 + 1 - cumulative
        return (1 - cumulative).sqrt() * (x - cumulative.sqrt() * MEAN) / variance

    return predict


def test_the_diffusion_sampler_recovers_a_known_gaussian():
    schedule = vp_schedule(200)
    noise = torch.randn(40_000, 1, generator=generator(), dtype=torch.float64)
    sample = ancestral_sample(exact_noise(schedule), noise, schedule, generator(1), clip=None)
    assert float(sample.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(sample.std()) == pytest.approx(STD, abs=0.01)


def test_the_diffusion_sampler_follows_its_recursion_exactly():
    """Few steps are not the data yet, but the sampler is linear here: mean and variance follow by hand."""
    schedule = vp_schedule(5)
    mean, variance = 0.0, 1.0
    for step in reversed(range(5)):
        beta, alpha, cumulative = (float(part[step]) for part in schedule)
        slope = math.sqrt(1 - cumulative) / (cumulative * STD**2 + 1 - cumulative)  # eps = slope x + offset
        offset = -slope * math.sqrt(cumulative) * MEAN
        factor = beta / math.sqrt(1 - cumulative)
        mean = (mean - factor * (slope * mean + offset)) / math.sqrt(alpha)
        variance = variance * (1 - factor * slope) ** 2 / alpha + (beta if step > 0 else 0.0)
    noise = torch.randn(400_000, 1, generator=generator(), dtype=torch.float64)
    sample = ancestral_sample(exact_noise(schedule), noise, schedule, generator(1), clip=None)
    assert float(sample.mean()) == pytest.approx(mean, abs=0.003)
    assert float(sample.var()) == pytest.approx(variance, rel=0.01)


def test_the_diffusion_sampler_clips_every_step():
    schedule, seen = vp_schedule(5), []

    def predict(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        seen.append(float(x.abs().max()))
        assert time.tolist() == [4 - (len(seen) - 1)] * len(x)
        return -10 * torch.ones_like(x)

    sample = ancestral_sample(predict, torch.full((3, 2), 5.0), schedule, generator())
    assert seen[0] == 5.0
    assert max(seen[1:]) == 1.0
    assert sample.tolist() == [[1.0, 1.0]] * 3


def test_the_flow_sampler_recovers_a_known_gaussian():
    """velocity = E[a - x0 | x_t] of independent noise and data N(MEAN, STD^2)."""

    def velocity(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        t = time[:, None]
        slope = (t * STD**2 - (1 - t)) / (t.square() * STD**2 + (1 - t).square())
        return MEAN + slope * (x - t * MEAN)

    noise = torch.randn(40_000, 1, generator=generator(), dtype=torch.float64)
    sample = euler_sample(velocity, noise, 400)
    assert float(sample.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(sample.std()) == pytest.approx(STD, abs=0.01)


def test_one_euler_step_by_hand():
    noise = torch.tensor([[0.5, -1.0]])
    seen = []

    def velocity(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        seen.append(time.tolist())
        return 2 * x

    assert euler_sample(velocity, noise, 2).tolist() == [[2.0, -4.0]]  # (1 + 2 / 2)^2
    assert seen == [[0.0], [0.5]]


# --- the policies


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_their_formulas(kind):
    spec = Spec((5,), 3, discrete=False)
    policy = kind(spec, steps=4, generator=generator(), **SMALL)
    obs, action = torch.randn(6, 5, generator=generator(1)), torch.rand(6, 3, generator=generator(2)) * 2 - 1
    loss = policy.loss(obs, action, generator(3))
    draws = generator(3)
    if kind is Diffusion:
        time = torch.randint(4, (6,), generator=draws)
        noise = torch.randn(6, 3, generator=draws)
        cumulative = policy.schedule.cumulative[time]
        noisy, target = cumulative.sqrt()[:, None] * action + (1 - cumulative).sqrt()[:, None] * noise, noise
    else:
        time = torch.rand(6, generator=draws)
        noise = torch.randn(6, 3, generator=draws)
        noisy, target = (1 - time)[:, None] * noise + time[:, None] * action, action - noise
    expected = (policy.network(noisy, obs, time) - target).square().sum(-1)
    torch.testing.assert_close(loss, expected)
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0, 1.0])
    torch.testing.assert_close(policy.loss(obs, action, generator(3), weight), weight * loss)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_their_shape_and_range_and_depend_on_the_generator_only(kind):
    policy = kind(Spec((5,), 3, discrete=False), steps=4, generator=generator(), **SMALL)
    obs = torch.randn(6, 5, generator=generator(1))
    before = torch.get_rng_state()
    sample = policy.sample(obs, 7, generator(2))
    assert sample.shape == (7, 6, 3)
    assert float(sample.abs().max()) <= 1
    assert not sample.requires_grad
    assert torch.equal(sample, policy.sample(obs, 7, generator(2)))
    assert not torch.equal(sample, policy.sample(obs, 7, generator(3)))
    assert float((sample[0] - sample[1]).abs().max()) > 0
    assert torch.equal(policy.act(obs), policy.act(obs))
    assert torch.equal(policy.act(obs, generator(2)), policy.sample(obs, 1, generator(2))[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_two_modes_are_learned_and_a_weight_keeps_one(kind):
    """Actions are +0.7 or -0.7 at random: a Gaussian would answer 0. The sign of the state says which is weighted."""
    spec = Spec((1,), 1, discrete=False)
    draws = generator(1)
    kept = {}
    for weighted in (False, True):
        policy = kind(spec, steps=10, generator=generator(), **SMALL)
        optimiser = torch.optim.Adam(policy.parameters(), 3e-3)
        for _ in range(400):
            action = 0.7 * torch.randn(256, 1, generator=draws).sign()
            obs = torch.randn(256, 1, generator=draws).sign()
            weight = (action * obs > 0).float()[:, 0] if weighted else None
            optimiser.zero_grad()
            policy.loss(obs, action, draws, weight).mean().backward()
            optimiser.step()
        state = torch.tensor([[1.0], [-1.0]])
        kept[weighted] = policy.sample(state, 500, generator(2))[..., 0]  # (500, 2)
    for sample in kept.values():
        assert float(((sample.abs() - 0.7).abs() < 0.25).float().mean()) > 0.85
    assert 0.3 < float((kept[False] > 0).float().mean()) < 0.7
    assert float((kept[True][:, 0] > 0).float().mean()) > 0.95
    assert float((kept[True][:, 1] < 0).float().mean()) > 0.95


def test_options_reach_the_network():
    """Trap 21: width, blocks, time features and dropout change the network."""
    spec, obs = Spec((5,), 3, discrete=False), torch.randn(6, 5, generator=generator(1))
    plain = Diffusion(spec, generator=generator(), **SMALL)
    for option, setting in {"width": 48, "blocks": 2, "time_features": 8, "dropout": 0.5, "steps": 7}.items():
        changed = Diffusion(spec, generator=generator(), **(SMALL | {option: setting}))
        assert not torch.equal(plain.sample(obs, 1, generator(2)), changed.sample(obs, 1, generator(2)))
    assert Diffusion(spec).steps == 5
    assert Flow(spec).steps == 10
    with pytest.raises(ValueError, match="steps"):
        Flow(spec, steps=0)


def test_time_features_are_bounded_and_tell_the_steps_apart():
    features = initialise(FourierTime(16), generator())(torch.arange(5))
    assert features.shape == (5, 16)
    torch.testing.assert_close(features[:, :8].square() + features[:, 8:].square(), torch.ones(5, 8))
    assert float(torch.pdist(features.detach()).min()) > 0.1


def test_images_are_encoded_once_for_all_candidates():
    policy = Diffusion(Spec((7, 7, 3), 2, discrete=False), generator=generator(), **SMALL)
    images = torch.randint(256, (3, 7, 7, 3), generator=generator(1), dtype=torch.uint8)
    assert policy.sample(images, 4, generator(2)).shape == (4, 3, 2)


def test_best_of_takes_each_row_from_its_best_candidate():
    candidates = torch.arange(12.0).view(3, 2, 2)
    scores = torch.tensor([[0.0, 5.0], [2.0, 1.0], [1.0, 4.0]])
    assert best_of(candidates, scores).tolist() == [[4.0, 5.0], [2.0, 3.0]]

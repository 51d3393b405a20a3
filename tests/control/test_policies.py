from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from zerozoo.control.policies import LARGEST_ACTION, Categorical, Deterministic, Gaussian, Temperature
from zerozoo.control.spec import Spec

BOX = Spec((5,), 3, discrete=False)
CHOICE = Spec((5,), 4, discrete=True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def gaussian(squash: bool, **options) -> Gaussian:
    policy = Gaussian(BOX, squash, (16, 16), generator=generator(), **options).double()
    if not policy.state_std:
        with torch.no_grad():
            policy.log_std.copy_(torch.tensor([-1.0, 0.0, 0.7]))
    return policy


def reference(policy: Gaussian, obs: torch.Tensor) -> torch.distributions.Distribution:
    mean, log_std = policy.distribution(obs)
    base = Independent(Normal(mean, log_std.exp().expand_as(mean)), 1)
    return TransformedDistribution(base, [TanhTransform()]) if policy.squash else base


# --- Gaussian


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("state_std", [False, True])
def test_log_probs_are_those_of_torch(squash, state_std):
    policy, obs = gaussian(squash, state_std=state_std), normal(1, 40, 5)
    action, log_prob = policy.sample(obs, generator(2))
    distribution = reference(policy, obs)
    expected = distribution.log_prob(action)
    torch.testing.assert_close(log_prob, expected, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(policy.log_prob(obs, action), expected, atol=1e-8, rtol=1e-8)


def test_the_squashed_log_prob_is_exact_far_out_where_the_naive_form_is_not():
    """log(1 - tanh(u)^2) at u = 15 in float32: the naive form gives -inf."""
    policy = gaussian(True).float()
    for bias in (15.0, -15.0):
        with torch.no_grad():
            policy.network[-1].weight.zero_()
            policy.network[-1].bias.fill_(bias)
        obs = normal(1, 4, 5, dtype=torch.float32)
        action, log_prob = policy.sample(obs, generator(2))
        exact = policy.double().sample(obs.double(), generator(2))[1]
        policy.float()
        assert float(action.detach().abs().max()) == 1.0
        assert bool(log_prob.isfinite().all())
        slope = -2 * abs(bias) + 2 * math.log(2)
        assert bool((log_prob > -3 * slope - 60).all())
        assert exact.shape == log_prob.shape


@pytest.mark.parametrize("squash", [False, True])
def test_the_density_integrates_to_one(squash):
    policy = Gaussian(Spec((5,), 1, discrete=False), squash, (8,), state_std=True, generator=generator()).double()
    obs = normal(1, 1, 5)
    limit = LARGEST_ACTION if squash else 12.0
    grid = torch.linspace(-limit, limit, 200_001, dtype=torch.float64)
    density = policy.log_prob(obs.expand(len(grid), 5), grid[:, None]).exp()
    assert float(torch.trapezoid(density, grid).detach()) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("squash", [False, True])
def test_samples_have_the_moments_of_the_distribution(squash):
    policy, obs = gaussian(squash, state_std=False), normal(1, 1, 5).expand(100_000, 5)
    action, log_prob = policy.sample(obs, generator(3))
    mean, log_std = policy.distribution(obs[:1])
    before = torch.atanh(action) if squash else action
    torch.testing.assert_close(before.mean(0), mean[0], atol=0.03, rtol=0)
    torch.testing.assert_close(before.std(0), log_std.exp(), atol=0.03, rtol=0)
    if not squash:
        entropy = policy.evaluate(obs[:1], action[:1])[1]
        torch.testing.assert_close(-log_prob.mean(), entropy[0], atol=0.02, rtol=0)


def test_sampling_is_reparametrised():
    """d a / d mean = 1 without squashing, 1 - a^2 with it; log-probs of samples carry gradients too."""
    for squash in (False, True):
        policy, obs = gaussian(squash, tanh_mean=False), normal(1, 6, 5)
        action, log_prob = policy.sample(obs, generator(1))
        (gradient,) = torch.autograd.grad(action.sum(), policy.network[-1].bias, retain_graph=True)
        slope = (1 - action.square() if squash else torch.ones_like(action)).sum(0)
        torch.testing.assert_close(gradient[0, 0, :3], slope)
        parameter = policy.network[-1].bias if squash else policy.log_std
        (gradient,) = torch.autograd.grad(log_prob.sum(), parameter)
        assert float(gradient.abs().min()) > 0


def test_the_log_std_stays_in_its_bounds():
    obs = normal(1, 500, 5) * 1000
    log_std = gaussian(True, log_std_bounds=(-2.0, 0.5)).distribution(obs)[1].detach()
    assert float(log_std.min()) >= -2
    assert float(log_std.max()) <= 0.5
    assert float(log_std.min()) < -1.9
    assert float(log_std.max()) > 0.4
    policy = gaussian(False, log_std_bounds=(-0.5, 0.5))
    assert policy.distribution(obs)[1].tolist() == [-0.5, 0.0, 0.5]
    fresh = Gaussian(BOX, False, (4,), initial_log_std=-1.0, generator=generator())
    assert fresh.distribution(normal(1, 2, 5).float())[1].tolist() == [-1.0] * 3


def test_the_mean_of_an_unsquashed_policy_is_inside_by_default_and_free_on_request():
    obs = normal(1, 500, 5) * 100
    assert float(gaussian(False).mode(obs).detach().abs().max()) <= 1
    assert float(gaussian(False, tanh_mean=False).mode(obs).detach().abs().max()) > 1
    squashed = gaussian(True)
    torch.testing.assert_close(squashed.mode(obs), squashed.distribution(obs)[0].tanh())


def test_environments_get_actions_inside():
    obs = normal(1, 500, 5)
    policy = gaussian(False)
    assert float(policy.sample(obs, generator())[0].detach().abs().max()) > 1
    acted = policy.act(obs, generator())
    assert float(acted.abs().max()) == 1
    torch.testing.assert_close(acted, policy.sample(obs, generator())[0].clamp(-1, 1))
    torch.testing.assert_close(policy.act(obs), policy.mode(obs))
    assert not acted.requires_grad


def test_entropy_of_a_gaussian_is_that_of_torch():
    for state_std in (False, True):
        policy, obs = gaussian(False, state_std=state_std), normal(1, 6, 5)
        action = policy.sample(obs, generator())[0]
        log_prob, entropy = policy.evaluate(obs, action)
        torch.testing.assert_close(log_prob, policy.log_prob(obs, action))
        torch.testing.assert_close(entropy, reference(policy, obs).entropy())
    with pytest.raises(ValueError, match="closed form"):
        gaussian(True).evaluate(obs, action)


# --- the others


def test_deterministic_actions_and_their_exploration():
    policy, obs = Deterministic(BOX, (16,), noise=0.3, generator=generator()), normal(1, 20_000, 5, dtype=torch.float32)
    torch.testing.assert_close(policy(obs), policy.outputs(obs).tanh())
    torch.testing.assert_close(policy.act(obs), policy.mode(obs))
    explored = policy.act(obs, generator(1))
    inside = explored.abs() < 1
    assert float(explored.abs().max()) == 1
    noise = (explored - policy.mode(obs).detach())[inside]
    assert float(noise.std()) == pytest.approx(0.3, abs=0.03)
    quiet = Deterministic(BOX, (16,), noise=0.0, generator=generator())
    torch.testing.assert_close(quiet.act(obs, generator(1)), quiet.mode(obs))


def test_categorical_is_that_of_torch():
    policy, obs = Categorical(CHOICE, (16,), generator=generator()), normal(1, 30, 5, dtype=torch.float32)
    expected = TorchCategorical(logits=policy.outputs(obs))
    action, log_prob = policy.sample(obs, generator(1))
    assert action.dtype == torch.int64
    torch.testing.assert_close(log_prob, expected.log_prob(action))
    evaluated, entropy = policy.evaluate(obs, action)
    torch.testing.assert_close(evaluated, log_prob)
    torch.testing.assert_close(entropy, expected.entropy())
    torch.testing.assert_close(policy.log_prob(obs, action), log_prob)
    assert torch.equal(policy.mode(obs), expected.probs.argmax(-1))
    assert torch.equal(policy.act(obs), policy.mode(obs))


def test_categorical_samples_follow_the_probabilities():
    policy, obs = Categorical(CHOICE, (16,), generator=generator()), normal(1, 1, 5, dtype=torch.float32)
    action, _ = policy.sample(obs.expand(40_000, 5), generator(1))
    frequencies = torch.bincount(action, minlength=4) / 40_000
    torch.testing.assert_close(frequencies, policy.log_probs(obs)[0].exp(), atol=0.01, rtol=0)


def test_temperature_is_positive_and_moves_the_entropy_to_its_target():
    temperature = Temperature(0.2)
    assert float(temperature()) == pytest.approx(0.2)
    too_certain = temperature.loss(torch.tensor([5.0, 3.0]), target_entropy=-1.0)
    assert too_certain.tolist() == pytest.approx([-math.log(0.2) * 4, -math.log(0.2) * 2])
    too_certain.mean().backward()
    assert float(temperature.log_alpha.grad) == -3.0  # a step downhill raises alpha


@pytest.mark.parametrize(
    "make",
    [
        lambda g: Gaussian(BOX, True, (8,), generator=g),
        lambda g: Gaussian(BOX, False, (8,), generator=g),
        lambda g: Deterministic(BOX, (8,), generator=g),
        lambda g: Categorical(CHOICE, (8,), generator=g),
    ],
)
def test_policies_are_functions_of_their_generators_only(make):
    first, second = make(generator(4)), make(generator(4))
    obs = normal(1, 6, 5, dtype=torch.float32)
    before = torch.get_rng_state()
    assert torch.equal(first.act(obs, generator(5)), second.act(obs, generator(5)))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first.act(obs.repeat(50, 1), generator(5)), first.act(obs.repeat(50, 1), generator(6)))


@pytest.mark.parametrize(
    ("option", "setting"), [("layer_norm", True), ("activation", "tanh"), ("orthogonal", 1.0), ("dropout", 0.5)]
)
def test_every_option_reaches_the_network(option, setting):
    obs = normal(1, 6, 5, dtype=torch.float32)
    for kind, arguments in [(Gaussian, (BOX, True)), (Deterministic, (BOX,)), (Categorical, (CHOICE,))]:
        plain = kind(*arguments, hidden=(16, 16), generator=generator())
        changed = kind(*arguments, hidden=(16, 16), generator=generator(), **{option: setting})
        assert not torch.allclose(plain.outputs(obs), changed.outputs(obs))
        with pytest.raises(TypeError):
            kind(*arguments, layernorm=True)

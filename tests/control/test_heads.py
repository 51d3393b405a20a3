from __future__ import annotations

import math

import pytest
import torch

from zerozoo.control.heads import HLGaussHead, QuantileHead, ScalarHead, critic, value
from zerozoo.control.spec import Spec
from zerozoo.losses.values import hl_gauss_targets, quantile_huber

BOX = Spec((5,), 3, discrete=False)
CHOICE = Spec((5,), 4, discrete=True)
HEADS = {"scalar": lambda: "scalar", "histogram": lambda: HLGaussHead(-10, 10), "quantile": lambda: QuantileHead(8)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


# --- heads


def test_scalar_head_by_hand():
    logits, target = torch.tensor([[[1.0], [5.0]]]), torch.tensor([3.0, 2.0])
    assert ScalarHead().value(logits).tolist() == [[1.0, 5.0]]
    assert ScalarHead().loss(logits, target).tolist() == [[4.0, 9.0]]
    assert ScalarHead(threshold=2.0).loss(logits, target).tolist() == [[2.0, 4.0]]


@pytest.mark.parametrize("sigma_ratio", [0.5, 0.75, 2.0])
def test_the_histogram_decodes_what_it_encodes(sigma_ratio):
    """A public implementation has its centres half a bin off; the centres are midpoints."""
    head = HLGaussHead(-4, 8, bins=40, sigma_ratio=sigma_ratio)
    width = 12 / 40
    assert float(head.centres[0]) == pytest.approx(-4 + width / 2)
    values = torch.linspace(-4 + 3 * sigma_ratio * width + width, 8 - 3 * sigma_ratio * width - width, 101)
    targets = hl_gauss_targets(values, head.edges, head.sigma)
    error = (head.value(targets.clamp(min=1e-30).log()) - values).abs().max()
    assert float(error) < width / 10


def test_the_histogram_loss_is_the_cross_entropy_and_its_minimum_the_entropy():
    head = HLGaussHead(-1, 1, bins=11)
    logits, target = normal(1, 2, 6, 11), torch.linspace(-0.7, 0.7, 6)
    probabilities = hl_gauss_targets(target, head.edges, head.sigma)
    expected = torch.nn.functional.cross_entropy(
        logits.reshape(12, 11), probabilities.expand(2, 6, 11).reshape(12, 11), reduction="none"
    )
    torch.testing.assert_close(head.loss(logits, target).flatten(), expected)
    perfect = probabilities.clamp(min=1e-30).log()
    entropy = -(probabilities * perfect).sum(-1)
    torch.testing.assert_close(head.loss(perfect[None], target)[0], entropy)


def test_the_histogram_has_no_state_to_save_and_refuses_empty_ranges():
    assert HLGaussHead(0, 1).state_dict() == {}
    for low, high, bins in [(1, 1, 5), (2, 1, 5), (0, 1, 1)]:
        with pytest.raises(ValueError, match="low < high"):
            HLGaussHead(low, high, bins)


def test_quantile_head_uses_the_quantile_huber_loss():
    head = QuantileHead(8, threshold=0.5)
    logits, target = normal(1, 2, 6, 8), normal(2, 6)
    torch.testing.assert_close(head.value(logits), logits.mean(-1))
    torch.testing.assert_close(head.loss(logits, target), quantile_huber(logits, target[:, None], 0.5))


@pytest.mark.parametrize("kind", HEADS)
def test_every_head_learns_its_target(kind):
    """A few hundred steps on three fixed targets; the value, not only the loss, has to arrive."""
    net = critic(BOX, (32,), ensemble=2, head=HEADS[kind](), generator=generator())
    obs, action, target = normal(1, 3, 5), normal(2, 3, 3).tanh(), torch.tensor([-5.0, 0.5, 4.0])
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(500):
        optimiser.zero_grad()
        net.loss(obs, action, target).mean(-1).sum().backward()
        optimiser.step()
    values = net(obs, action).detach()
    torch.testing.assert_close(values, target.expand(2, 3), atol=0.15, rtol=0)


# --- critics and values


@pytest.mark.parametrize("kind", HEADS)
def test_shapes_of_critics(kind):
    obs = normal(1, 6, 5)
    net = critic(BOX, (8,), ensemble=3, head=HEADS[kind](), generator=generator())
    assert net(obs, normal(2, 6, 3)).shape == (3, 6)
    net = critic(CHOICE, (8,), ensemble=3, head=HEADS[kind](), generator=generator())
    action = torch.tensor([0, 1, 2, 3, 0, 1])
    everything = net(obs)
    assert everything.shape == (3, 6, 4)
    torch.testing.assert_close(net(obs, action), everything[:, torch.arange(6), action])
    assert net.loss(obs, action, normal(3, 6)).shape == (3, 6)


def test_shapes_of_state_values():
    obs = normal(1, 6, 5)
    assert value(BOX, (8,), generator=generator())(obs).shape == (6,)
    net = value(BOX, (8,), ensemble=2, head=QuantileHead(4), generator=generator())
    assert net(obs).shape == (2, 6)
    assert net.loss(obs, normal(2, 6)).shape == (2, 6)
    assert value(BOX, (8,), generator=generator()).loss(obs, normal(2, 6)).shape == (6,)


def test_a_critic_sees_both_arguments():
    net = critic(BOX, (16,), generator=generator())
    obs, action = normal(1, 6, 5).requires_grad_(True), normal(2, 6, 3).requires_grad_(True)
    net(obs, action).sum().backward()
    assert obs.grad is not None
    assert action.grad is not None
    assert float(obs.grad.abs().min()) > 0
    assert float(action.grad.abs().min()) > 0
    with pytest.raises(ValueError, match="needs an action"):
        net(obs)


def test_members_of_a_critic_disagree_and_images_work():
    net = critic(Spec((9, 9, 3), 4, discrete=True), (16,), generator=generator())
    images = torch.randint(256, (2, 9, 9, 3), generator=generator(1), dtype=torch.uint8)
    values = net(images)
    assert values.shape == (2, 2, 4)
    assert float((values[0] - values[1]).detach().abs().min()) > 0


@pytest.mark.parametrize(
    ("option", "setting"), [("layer_norm", True), ("activation", "tanh"), ("orthogonal", 1.0), ("dropout", 0.5)]
)
def test_every_option_reaches_the_network(option, setting):
    """Trap 21: an option that changes nothing is a lie."""
    obs, action = normal(1, 6, 5), normal(2, 6, 3)
    plain, changed = (critic(BOX, (16, 16), generator=generator(), **options) for options in ({}, {option: setting}))
    assert not torch.allclose(plain(obs, action), changed(obs, action))
    plain_value, changed_value = (value(BOX, (16, 16), generator=generator(), **o) for o in ({}, {option: setting}))
    assert not torch.allclose(plain_value(obs), changed_value(obs))


def test_layer_norm_bounds_the_values_far_from_the_data():
    net = critic(BOX, (64, 64), layer_norm=True, generator=generator())
    near, far = (net(scale * normal(1, 32, 5), scale * normal(2, 32, 3)).detach().abs().max() for scale in (1, 1e4))
    assert float(far) < 5 * float(near)
    assert math.isfinite(float(far))


def test_unknown_heads_and_options_are_refused():
    with pytest.raises(ValueError, match="unknown head 'c51'"):
        critic(BOX, head="c51")
    with pytest.raises(TypeError):
        critic(BOX, layernorm=True)

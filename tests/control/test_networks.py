from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from zerozoo.control.networks import (
    ACTIVATIONS,
    ALIGNMENT,
    GPT,
    Dropout,
    EnsembleLinear,
    EnsembleNorm,
    FlatParameters,
    Pixels,
    encoder,
    initialise,
    mlp,
    stop,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


# --- layers


def test_an_ensemble_layer_is_its_members_side_by_side():
    layer = initialise(EnsembleLinear(3, 4, 5), generator())
    shared, own = normal(1, 7, 4), normal(2, 3, 7, 4)
    for member in range(3):
        weight, bias = layer.weight[member], layer.bias[member]
        torch.testing.assert_close(layer(shared)[member], shared @ weight + bias)
        torch.testing.assert_close(layer(own)[member], own[member] @ weight + bias)
    assert layer(shared).shape == (3, 7, 5)


def test_members_differ_and_do_not_touch_each_other():
    net = mlp((4, 8, 1), ensemble=2, layer_norm=True, generator=generator())
    output = net(normal(1, 6, 4))
    assert float((output[0] - output[1]).detach().abs().min()) > 1e-3
    output[0].sum().backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad[0].abs().sum()) > 0
        assert float(parameter.grad[1].abs().sum()) == 0


def test_an_ensemble_norm_is_layer_norm_per_member():
    norm = EnsembleNorm(2, 5)
    with torch.no_grad():
        norm.weight.copy_(normal(1, 2, 1, 5))
        norm.bias.copy_(normal(2, 2, 1, 5))
    x = normal(3, 2, 4, 5)
    for member in range(2):
        expected = functional.layer_norm(x[member], (5,), norm.weight[member, 0], norm.bias[member, 0])
        torch.testing.assert_close(norm(x)[member], expected)


def test_the_mlp_against_plain_linear_layers():
    net = mlp((4, 8, 6, 3), activation="tanh", generator=generator())
    x = expected = normal(1, 5, 4)
    for layer in net:
        expected = functional.linear(expected, layer.weight[0].T, layer.bias[0, 0])
        expected = expected if layer is net[-1] else expected.tanh()
    torch.testing.assert_close(net(x), expected[None])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_that_of_torch(name):
    x = normal(1, 50)
    torch.testing.assert_close(ACTIVATIONS[name](x.clone()), getattr(functional, name)(x))
    net = mlp((4, 8, 8, 1), activation=name, layer_norm=True, generator=generator()).double()
    inputs = normal(1, 3, 4).double().requires_grad_(True)
    assert torch.autograd.gradcheck(net, (inputs,))


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="unknown activation 'swish'"):
        mlp((2, 2, 2), activation="swish")
    with pytest.raises(ValueError, match="sizes"):
        mlp((2,))
    with pytest.raises(ValueError, match="dropout"):
        mlp((2, 2, 2), dropout=1.0)
    with pytest.raises(ValueError, match="heads"):
        GPT(10, 3, 1)


# --- how weights are drawn


def test_weights_come_from_the_generator_and_from_nothing_else():
    before = torch.get_rng_state()
    first, second, other = (mlp((3, 16, 2), generator=generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    x = normal(1, 4, 3)
    assert torch.equal(first(x), second(x))
    assert not torch.equal(first(x), other(x))


def test_forgotten_weights_are_loud_and_drawn_ones_stay():
    net = mlp((3, 16, 2))
    assert bool(net(normal(1, 4, 3)).isnan().all())
    initialise(net, generator())
    drawn = copy.deepcopy(net.state_dict())
    initialise(net, generator(9))
    assert all(torch.equal(value, drawn[name]) for name, value in net.state_dict().items())


def test_linear_layers_start_as_torch_does():
    layer = initialise(EnsembleLinear(4, 100, 200), generator())
    for values in (layer.weight.detach(), layer.bias.detach()):
        assert float(values.abs().max()) <= 0.1
        assert float(values.std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.05)


def test_orthogonal_layers():
    net = mlp((6, 10, 4), ensemble=2, orthogonal=0.01, generator=generator())
    first, last = net[0], net[-1]
    for member in range(2):
        wide, tall = first.weight[member].detach(), last.weight[member].detach()
        torch.testing.assert_close(wide @ wide.T, 2 * torch.eye(6), atol=1e-5, rtol=0)
        torch.testing.assert_close(tall.T @ tall, 1e-4 * torch.eye(4), atol=1e-8, rtol=0)
    assert float(first.bias.detach().abs().max()) == 0
    assert not torch.equal(first.weight[0], first.weight[1])


# --- dropout


def test_dropout_keeps_the_mean_and_draws_from_its_generator_only():
    layer = initialise(Dropout(0.25), generator(3))
    x = torch.ones(200, 100)
    before = torch.get_rng_state()
    first = layer(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float((first == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    again = initialise(Dropout(0.25), generator(3))
    assert torch.equal(again(x), first)
    assert not torch.equal(layer(x), first)
    layer.eval()
    assert layer(x) is x


def test_dropout_reaches_the_network():
    """Trap 21 at the level of the network: the option is not swallowed."""
    net = mlp((3, 64, 64, 1), dropout=0.5, generator=generator())
    x = normal(1, 4, 3)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    with pytest.raises(ValueError, match="no generator"):
        mlp((3, 4, 1), dropout=0.5)(x)


# --- images


def test_pixels_divide_bytes_by_255_once():
    net, features = encoder((10, 12, 3))
    initialise(net, generator())
    images = torch.randint(256, (4, 10, 12, 3), generator=generator(1), dtype=torch.uint8)
    output = net(images)
    assert output.shape == (4, features)
    torch.testing.assert_close(net(images.float() / 255), output)
    assert float(output.detach().std()) > 0


@pytest.mark.parametrize("shape", [(7, 7, 3), (10, 10, 4), (56, 56, 3), (5, 9, 1)])
def test_pixels_take_any_size(shape):
    net = initialise(Pixels(shape, features=11), generator())
    assert net(torch.zeros(2, *shape, dtype=torch.uint8)).shape == (2, 11)


def test_flat_observations_pass_through_the_encoder():
    vector, matrix = normal(1, 5, 3), normal(2, 5, 3, 4)
    net, features = encoder((3,))
    assert features == 3
    assert net(vector) is vector
    net, features = encoder((3, 4))
    assert features == 12
    torch.testing.assert_close(net(matrix), matrix.view(5, 12))


# --- GPT


def gpt(**options: float) -> GPT:
    return GPT(8, 2, 2, generator=generator(), **options)


def test_the_past_does_not_see_the_future():
    net, x = gpt(), normal(1, 2, 6, 8)
    changed = x.clone()
    changed[:, 4:] += torch.linspace(-1, 1, 8)  # a constant would vanish in the LayerNorm
    torch.testing.assert_close(net(changed)[:, :4], net(x)[:, :4], atol=0, rtol=0)
    assert float((net(changed)[:, 4:] - net(x)[:, 4:]).detach().abs().max()) > 1e-3


def test_the_past_is_seen():
    net, x = gpt(), normal(1, 1, 6, 8)
    changed = x.clone()
    changed[:, 0] += torch.linspace(-1, 1, 8)
    assert float((net(changed)[:, 5] - net(x)[:, 5]).detach().abs().max()) > 1e-3


def test_left_padding_changes_nothing_and_gives_no_nan():
    net, x = gpt(), normal(1, 2, 5, 8)
    padded = torch.cat([normal(2, 2, 3, 8) * 100, x], 1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)], 1)
    output = net(padded, mask)
    assert bool(output.isfinite().all())
    torch.testing.assert_close(output[:, 3:], net(x), atol=1e-6, rtol=1e-5)
    for position in range(3):  # padding sees itself, so that no row of the attention is empty
        torch.testing.assert_close(output[:, [position]], net(padded[:, [position]]), atol=1e-5, rtol=1e-5)
    output[:, 3:].sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())


def test_gpt_dropout_draws_from_its_generator():
    before = torch.get_rng_state()
    x = normal(1, 2, 5, 8)
    first, second = gpt(dropout=0.3), gpt(dropout=0.3)
    assert torch.equal(first(x), second(x))
    assert not torch.equal(first(x), first.eval()(x))
    assert torch.equal(torch.get_rng_state(), before)


# --- flat parameters


def test_flat_parameters_are_the_same_network():
    net = mlp((5, 7, 3), ensemble=2, layer_norm=True, generator=generator())
    plain = copy.deepcopy(net)
    flat = FlatParameters(net)
    x = normal(1, 6, 5)
    assert torch.equal(net(x), plain(x))
    for parameter, expected in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter, expected)
        assert (parameter.data_ptr() - flat.values.data_ptr()) % (4 * ALIGNMENT) == 0
    net(x).square().sum().backward()
    plain(x).square().sum().backward()
    for parameter, expected in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter.grad, expected.grad)
    assert float(flat.gradients.square().sum()) == pytest.approx(
        sum(float(p.grad.square().sum()) for p in plain.parameters()), rel=1e-5
    )
    flat.gradients.zero_()
    assert all(float(p.grad.abs().sum()) == 0 for p in net.parameters())
    flat.values.fill_(0.5)
    assert all(float(p.detach().min()) == 0.5 for p in net.parameters())


def test_loading_a_state_keeps_the_flat_tensor():
    net, other = (mlp((5, 7, 3), generator=generator(seed)) for seed in (0, 1))
    flat = FlatParameters(net)
    net.load_state_dict(other.state_dict())
    assert torch.equal(net[0].weight, other[0].weight)
    flat.values.zero_()
    assert float(net(normal(1, 2, 5)).detach().abs().max()) == 0


def test_flat_parameters_leave_frozen_ones_out_and_refuse_shared_ones():
    shared = mlp((2, 3), generator=generator())
    first, second = nn.Sequential(shared, mlp((3, 1), generator=generator())), nn.Sequential(shared)
    first[1].requires_grad_(False)
    flat = FlatParameters(first)
    total = sum(float(p.detach().abs().sum()) for p in shared.parameters())
    assert float(flat.values.abs().sum()) == pytest.approx(total)
    with pytest.raises(ValueError, match="two networks"):
        FlatParameters(second)
    with pytest.raises(ValueError, match="no parameter"):
        FlatParameters(Dropout(0.1))


# --- stop


def test_stop_lets_the_gradient_through_but_not_in():
    net = mlp((3, 8, 1), generator=generator())
    flat = FlatParameters(net)
    x = normal(1, 4, 3).requires_grad_(True)
    stopped = stop(net)(x)
    assert torch.equal(stopped, net(x))
    stopped.sum().backward()
    (expected,) = torch.autograd.grad(net(x).sum(), x)
    assert torch.equal(x.grad, expected)
    assert float(flat.gradients.abs().sum()) == 0
    assert all(p.requires_grad for p in net.parameters())


def test_stop_does_not_reach_other_uses_of_the_network_in_one_loss():
    net = mlp((3, 8, 1), generator=generator())
    x, y = normal(1, 4, 3), normal(2, 4, 3)
    (net(x) - stop(net)(y)).square().sum().backward()
    mixed = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    (net(x) - net(y).detach()).square().sum().backward()
    assert all(torch.equal(p.grad, expected) for p, expected in zip(net.parameters(), mixed, strict=True))


def test_stop_reaches_methods_and_survives_errors_and_frozen_parts():
    class Net(nn.Module):
        size = 3

        def __init__(self) -> None:
            super().__init__()
            self.body = mlp((3, 1), generator=generator())
            self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

        def twice(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.body(x) * self.frozen

    net = Net()
    assert stop(net).size == 3
    assert not stop(net).twice(normal(1, 2, 3)).requires_grad
    assert net.twice(normal(1, 2, 3)).requires_grad
    with pytest.raises(RuntimeError):
        stop(net).twice(normal(1, 2, 9))
    assert net.body[0].weight.requires_grad
    assert not net.frozen.requires_grad

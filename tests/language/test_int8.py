"""int8 products: exact where nothing is rounded, close elsewhere, the same function behind smoothing and rotation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zerozoo.language.decoder import OwnDecoder
from zerozoo.language.families import tiny_model
from zerozoo.language.int8 import (
    EXACT,
    Int8GradientLinear,
    Int8Projection,
    Int8Projections,
    channel_sizes,
    hadamard,
    int8_product,
    quantised,
    use_int8_gradients,
    whole_product,
)
from zerozoo.language.products import plain_projection
from zerozoo.language.samplers.interface import Decoding
from zerozoo.language.samplers.native import NativeSampler


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_quantised_rows_by_hand():
    values, scale = quantised(torch.tensor([[1.27, -0.635, 0.004], [0.0, 0.0, 0.0]]), 1)
    assert values.tolist() == [[127, -64, 0], [0, 0, 0]]  # -63.5 rounds to the even -64
    assert scale[:, 0].tolist() == pytest.approx([0.01, 1.0])


def test_quantised_columns_have_a_scale_each():
    values, scale = quantised(torch.tensor([[127.0, 1.27], [0.0, 0.0]]), 0)
    assert values.tolist() == [[127, 127], [0, 0]]
    assert scale[0].tolist() == pytest.approx([1.0, 0.01])


def test_product_of_whole_numbers_up_to_127_is_exact():
    left = torch.randint(-127, 128, (32, 24), generator=generator(1)).double()
    right = torch.randint(-127, 128, (24, 40), generator=generator(2)).double()
    left[:, 0], right[0] = 127, 127  # every scale is 1
    assert torch.equal(int8_product(left, right), left @ right)


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("terms", [EXACT, EXACT + 1, 3 * EXACT + 24])
def test_sums_of_the_largest_values_are_exact_with_and_without_units(
    units: bool, terms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zerozoo.language.int8.has_int8_units", lambda: units)
    left = torch.full((4, terms), 127, dtype=torch.int8)
    left[1] = torch.randint(-127, 128, (terms,), generator=generator(1))
    right = torch.full((terms, 8), 127, dtype=torch.int8)
    right[0] = 1  # the sums are odd where the last bit matters
    result = whole_product(left, right)
    assert torch.equal(result.double(), left.double() @ right.double())


def test_a_projection_gives_the_same_numbers_with_and_without_units(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = torch.randn((24, 192), generator=generator(1)), torch.randn((5, 192), generator=generator(2))
    results = []
    for units in (True, False):
        monkeypatch.setattr("zerozoo.language.int8.has_int8_units", lambda units=units: units)
        projection = Int8Projection(weight, None, torch.ones(192))
        assert projection.weight.dtype == (torch.int8 if units else torch.float32)
        results.append(projection(inputs))
    assert torch.equal(*results)


def test_error_of_a_product_is_that_of_eight_bits():
    left = torch.randn((64, 128), generator=generator(1), dtype=torch.float64)
    right = torch.randn((128, 96), generator=generator(2), dtype=torch.float64)
    error = int8_product(left, right) - left @ right
    # Rounding adds uniform noise of s / sqrt(12) to every factor; s is about 3 / 127 for 128 normal numbers.
    assert 0.005 < float(error.std() / (left @ right).std()) < 0.015


def test_gradients_are_exact_on_whole_numbers():
    layer = nn.Linear(24, 40, bias=True, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-127, 128, (40, 24), generator=generator(3)))
        layer.weight[0] = 127
    inputs = torch.randint(-127, 128, (2, 16, 24), generator=generator(4)).double()
    inputs[0, 0] = 127
    outer = torch.randint(-127, 128, (2, 16, 40), generator=generator(5)).double()
    outer[0, 0], outer[..., 0] = 127, 127
    results = []
    for kind in (nn.Linear, Int8GradientLinear):
        layer.__class__ = kind
        layer.zero_grad()
        leaf = inputs.clone().requires_grad_()
        output = layer(leaf)
        output.backward(outer)
        results.append((output.detach(), leaf.grad, layer.weight.grad.clone(), layer.bias.grad.clone()))
    for plain, int8 in zip(*results, strict=True):
        assert torch.equal(plain, int8)


def test_whole_model_keeps_its_forward_pass_and_the_direction_of_its_gradient():
    policy = tiny_model("llama", seed=0)
    ids = torch.randint(4, 40, (4, 12), generator=generator())
    model = policy.model
    losses, gradients = [], []
    for int8 in (False, True):
        if int8:
            assert use_int8_gradients(model) == 7 * len(model.model.layers)
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([p.grad.flatten() for p in model.model.layers.parameters()]))
    assert losses[0] == losses[1]
    assert not torch.equal(*gradients)
    assert float(nn.functional.cosine_similarity(*gradients, dim=0)) > 0.999
    assert use_int8_gradients(model) == 0  # nothing is left to change


def test_hadamard_is_orthogonal_and_symmetric():
    matrix = hadamard(64)
    assert torch.allclose(matrix @ matrix, torch.eye(64), atol=1e-6)
    assert torch.equal(matrix, matrix.t())
    with pytest.raises(ValueError, match="power of two"):
        hadamard(12)


@pytest.mark.parametrize("width", [64, 96, 20])
def test_projection_approximates_the_linear_layer(width: int):
    layer = nn.Linear(width, 48)
    inputs = torch.randn((40, width), generator=generator(1))
    projection = Int8Projection(layer.weight, layer.bias, inputs.square().mean(0).sqrt())
    exact = layer(inputs).detach()
    assert float((projection(inputs) - exact).std() / exact.std()) < 0.02


def test_rotation_and_smoothing_tame_an_outlier_channel():
    layer = nn.Linear(64, 48, bias=False)
    inputs = torch.randn((40, 64), generator=generator(1))
    inputs[:, 7] *= 100
    exact = layer(inputs).detach()
    values, scale = quantised(inputs, 1)
    plain = (values * scale) @ layer.weight.t().detach()
    projection = Int8Projection(layer.weight, None, inputs.square().mean(0).sqrt())
    small = exact - inputs[:, 7:8] * layer.weight.detach()[:, 7]
    assert float((projection(inputs) - exact).std()) < 0.3 * float((plain - exact).std())
    assert float((projection(inputs) - exact).std()) < 0.2 * float(small.std())


def test_projection_reads_changed_weights_at_refresh_only():
    layer = nn.Linear(64, 48)
    inputs = torch.randn((40, 64), generator=generator(1))
    projection = Int8Projection(layer.weight, layer.bias, torch.ones(64))
    before = projection(inputs)
    with torch.no_grad():
        layer.weight.mul_(2)
        layer.bias.mul_(2)
    assert torch.equal(projection(inputs), before)
    projection.refresh(layer.weight, layer.bias)
    assert torch.allclose(projection(inputs), 2 * before, rtol=1e-5, atol=1e-5)


def test_channel_sizes_by_an_independent_sum():
    policy = tiny_model("llama", seed=0)
    seen: list[torch.Tensor] = []
    first = policy.model.model.layers[0].self_attn.q_proj
    handle = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    sizes = channel_sizes(policy.model, [[5, 6, 7], [8, 9]])
    handle.remove()
    rows = torch.cat([one[0] for one in seen]).double()
    assert [len(one[0]) for one in seen] == [3, 2]
    assert torch.allclose(sizes["0.self_attn.q_proj"].double(), (rows**2).mean(0).sqrt(), rtol=1e-6)
    assert len(sizes) == 7 * len(policy.model.model.layers)
    assert not any(layer._forward_pre_hooks for layer in policy.model.modules())


def test_decoder_in_int8_stays_close_and_reads_new_weights():
    policy = tiny_model("llama", seed=0)
    prompts = [[5, 6, 7], [8, 9, 10, 11]]
    projections = Int8Projections(channel_sizes(policy.model, prompts))

    def error() -> float:
        """Mean difference of the first token's log-probs."""
        exact, rounded = (
            OwnDecoder(policy.model, 16, project=project).read(prompts, [[0], [1]]).log_softmax(-1)
            for project in (plain_projection, projections)
        )
        return float((exact - rounded).detach().abs().mean())

    assert 0 < error() < 0.05
    assert set(projections.made) == {
        f"{layer}.{name}"
        for layer in range(len(policy.model.model.layers))
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    }
    with torch.no_grad():
        for parameter in policy.model.model.layers.parameters():
            parameter.mul_(1.5)
    assert 0 < error() < 0.05


def test_sampler_in_int8_gives_the_log_probs_it_drew_from():
    policy = tiny_model("llama", seed=0)
    prompts = [[5, 6, 7], [8, 9, 10, 11]]
    projections = Int8Projections(channel_sizes(policy.model, prompts))
    samples = NativeSampler(policy, project=projections).sample(prompts, 4, Decoding(1), generator())
    logits = OwnDecoder(policy.model, 16, project=projections).read(prompts, [[0], [1]])
    expected = logits.log_softmax(-1)[samples.groups, samples.tokens[:, 0]]
    assert torch.allclose(samples.logprobs[:, 0], expected, atol=1e-5)

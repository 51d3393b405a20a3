"""Tokens without padding: where they stand, and what norms and gates give back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from zerozoo.language import packing as module
from zerozoo.language.decoder import can_pack
from zerozoo.language.families import tiny_model
from zerozoo.language.logprobs import Sequences, response_scores
from zerozoo.language.lora import add_lora
from zerozoo.language.models import LanguageModel
from zerozoo.language.packing import fill_by_tokens, pack

# Two groups whose rows are mixed, prompts and responses of different lengths, one response of a single token.
PROMPTS = [[5, 6, 7], [8, 9], [5, 6, 7], [8, 9], [5, 6, 7]]
RESPONSES = [[4, 9, 4], [7, 5, 5, 8, 6], [6], [5, 9], [4, 9, 8, 4]]


def test_where_tokens_stand_with_shared_prompts() -> None:
    packing = pack(PROMPTS, RESPONSES, shared=True)
    #                              0  1  2  3  4    5  6  7  8  9 10    11   12 13 14
    assert packing.ids.tolist() == [5, 6, 7, 4, 9, 8, 9, 7, 5, 5, 8, 5, 4, 9, 8]
    assert packing.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 2, 3, 4, 5]
    assert packing.rows.tolist() == [
        [0, 1, 2, 3, 4, 0],
        [5, 6, 7, 8, 9, 10],
        [0, 1, 2, 0, 0, 0],
        [5, 6, 11, 0, 0, 0],
        [0, 1, 2, 12, 13, 14],
    ]
    assert packing.own.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 20, 27, 28, 29]
    assert packing.predicts.tolist() == [2, 3, 4, 6, 7, 8, 9, 10, 2, 6, 11, 2, 12, 13, 14]


def test_where_tokens_stand_without_sharing() -> None:
    packing = pack(PROMPTS[:3], RESPONSES[:3], shared=False)
    assert packing.ids.tolist() == [5, 6, 7, 4, 9, 8, 9, 7, 5, 5, 8, 5, 6, 7]
    assert packing.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert packing.own.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    assert packing.predicts.tolist() == [2, 3, 4, 6, 7, 8, 9, 10, 13]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=12), st.booleans())
@settings(max_examples=100, deadline=None)
def test_rows_hold_their_sequences(rows: list[tuple[int, int]], shared: bool) -> None:
    prompts = [[10 + group] * (group + 1) for group, _ in rows]
    responses = [[100 * (row + 1) + place for place in range(length)] for row, (_, length) in enumerate(rows)]
    packing = pack(prompts, responses, shared)
    flat = packing.rows.flatten()
    assert torch.equal(flat[packing.own], torch.arange(len(packing.ids)))  # every token finds itself again
    predicts = packing.predicts.tolist()
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        sequence = [*prompt, *response[:-1]]
        places = packing.rows[row, : len(sequence)]
        assert packing.ids[places].tolist() == sequence
        assert packing.positions[places].tolist() == list(range(len(sequence)))
        expected, predicts = predicts[: len(response)], predicts[len(response) :]
        assert places[len(prompt) - 1 :].tolist() == expected
    groups = {group for group, _ in rows} if shared else range(len(rows))
    inner = sum(length - 1 for _, length in rows)
    assert len(packing.ids) == inner + sum(group + 1 if shared else len(prompts[group]) for group in groups)


def gradient(policy: LanguageModel, shared: bool, rows: Sequences) -> torch.Tensor:
    policy.model.zero_grad()
    scores = response_scores(policy.model, rows, 0.8, shared=shared)
    (scores.logprobs * torch.linspace(-1, 2, len(scores.logprobs))).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "one key head": {"family": "llama", "kv_heads": 1},
    "tied": {"family": "qwen2", "tied": True},
    "window": {"family": "mistral", "sliding_window": 3},
    "window in every other layer": {"family": "qwen3", "sliding_window": 3},
}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_values_and_gradients_are_those_of_transformers(
    variant: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_model(**VARIANTS[variant])
    rows = Sequences(PROMPTS, RESPONSES)
    with torch.no_grad():
        values = response_scores(policy.model, rows, 0.8, shared=shared).logprobs
        found = torch.enable_grad()(gradient)(policy, shared, rows)
        monkeypatch.setattr("zerozoo.language.logprobs.can_pack", lambda model: False)
        expected = torch.enable_grad()(gradient)(policy, False, rows)
        torch.testing.assert_close(values, response_scores(policy.model, rows, 0.8).logprobs, rtol=0, atol=1e-5)
    assert float((found - expected).norm() / expected.norm()) < 2e-6


def test_checkpointed_layers_run_twice_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Sequences(PROMPTS, RESPONSES)
    runs: list[int] = []
    layer = module._layer

    def watched(*arguments: Any) -> Any:
        runs.append(1)
        return layer(*arguments)

    monkeypatch.setattr(module, "_layer", watched)
    results = []
    for checkpointed in (False, True):
        policy = tiny_model("llama")
        if checkpointed:
            policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            policy.model.train()
        runs.clear()
        results.append(gradient(policy, True, rows))
        assert len(runs) == (4 if checkpointed else 2)
    assert torch.equal(*results)


def test_what_is_left_to_transformers() -> None:
    model: Any = tiny_model("llama").model
    assert can_pack(model)
    model.enable_input_require_grads()  # as checkpointing of activations does: a hook on the embedding
    assert can_pack(model)
    model.model.layers[1].self_attn.attention_dropout = 0.1
    assert can_pack(model)
    model.train()
    assert not can_pack(model)
    assert not can_pack(tiny_model("gemma").model)


def test_adapters_are_called_by_name() -> None:
    pytest.importorskip("peft")
    policy = tiny_model("llama")
    add_lora(policy, rank=2, alpha=8, seed=0)
    assert can_pack(policy.model)
    with torch.no_grad():
        for name, value in policy.model.named_parameters():
            if "lora_B" in name:
                value.copy_(0.3 * torch.ones_like(value).cumsum(0).sin())
    rows = Sequences(PROMPTS, RESPONSES)
    found = gradient(policy, True, rows)
    assert bool((found != 0).any())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zerozoo.language.logprobs.can_pack", lambda model: False)
        expected = gradient(policy, False, rows)
    assert float((found - expected).norm() / expected.norm()) < 3e-5


def test_products_in_bfloat16_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast the residual stream, the norms and the gradients of weights stay in float32."""
    policy = tiny_model("qwen3")
    policy.autocast = torch.bfloat16
    rows = Sequences(PROMPTS, RESPONSES)

    def scores() -> torch.Tensor:
        with policy.precision():
            return response_scores(policy.model, rows).logprobs

    found = scores()
    found.sum().backward()
    found = found.detach()
    assert found.dtype == torch.float32
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in policy.model.parameters())
    exact = response_scores(policy.model, rows).logprobs.detach()
    monkeypatch.setattr("zerozoo.language.logprobs.can_pack", lambda model: False)
    theirs = float((scores() - exact).norm().detach())
    assert 1e-3 < float((found - exact).norm()) < 1.5 * theirs


class Norm(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.variance_epsilon = 1e-5


def compared(ours: Any, theirs: Any, inputs: list[torch.Tensor], tolerance: float) -> None:
    """Values and gradients of two functions."""
    results = []
    for function in (ours, theirs):
        leaves = [one.clone().requires_grad_() for one in inputs]
        value = function(*leaves)
        outer = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).cos().view(value.shape)
        results.append((value, *torch.autograd.grad(value, leaves, outer)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(5, 12), (3, 4, 12)])
def test_norm_against_autograd(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator) * 3, torch.randn(12, generator=generator)]

    def ours(hidden: torch.Tensor, weight: torch.Tensor) -> Any:
        return module._RootMeanSquareNorm.apply(hidden, weight, 1e-2)

    def theirs(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight * hidden * (hidden.square().mean(-1, keepdim=True) + 1e-2).rsqrt()

    compared(ours, theirs, inputs, 3e-6)
    frozen = Norm(inputs[1]).requires_grad_(False)
    hidden = inputs[0].clone().requires_grad_()
    module._norm(hidden, frozen).sum().backward()
    assert hidden.grad is not None
    assert frozen.weight.grad is None


def test_gate_against_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn((5, 7), generator=generator, dtype=torch.float64) for _ in range(2)]
    compared(module._Gate.apply, lambda gate, up: functional.silu(gate) * up, inputs, 1e-12)


def test_micro_batches_count_a_prompt_once_in_each() -> None:
    prompts = [[1] * 4, [1] * 4, [2] * 2, [1] * 4, [2] * 2]
    responses = [[0] * 3, [0] * 5, [0] * 3, [0] * 3, [0]]
    assert fill_by_tokens(prompts, responses, 100) == [([2, 4, 0, 1, 3], 2 + 2 + 0 + 4 + 2 + 4 + 2)]
    assert fill_by_tokens(prompts, responses, 10) == [([2, 4, 0], 10), ([1, 3], 10)]
    assert fill_by_tokens(prompts, responses, 7) == [([2, 4], 4), ([0], 6), ([1], 8), ([3], 6)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 30)), min_size=1, max_size=30), st.integers(1, 90))
def test_micro_batches_hold_every_row_once_within_the_budget(rows: list[tuple[int, int]], budget: int) -> None:
    prompts = [[group] * (3 * group) for group, _ in rows]
    responses = [[9] * length for _, length in rows]
    batches = fill_by_tokens(prompts, responses, budget)
    assert sorted(row for batch, _ in batches for row in batch) == list(range(len(rows)))
    for batch, tokens in batches:
        packing = pack([prompts[row] for row in batch], [responses[row] for row in batch], shared=True)
        assert len(packing.ids) == tokens
        assert tokens <= budget or len(batch) == 1

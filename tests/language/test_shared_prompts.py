"""A prompt that is run once for its group gives what each response gives alone."""

from __future__ import annotations

import pytest
import torch

from zerozoo.language.families import tiny_model
from zerozoo.language.logprobs import Sequences, response_scores
from zerozoo.language.models import SUPPORTED, LanguageModel
from zerozoo.language.shared_prompts import LONGEST_ROW, can_share

# Two groups whose rows are mixed, prompts and responses of different lengths, one response of a single token.
ROWS = Sequences(
    [[5, 6, 7], [8, 9], [5, 6, 7], [8, 9], [5, 6, 7]],
    [[4, 9, 4], [7, 5, 5, 8, 6], [6], [5, 9], [4, 9, 8, 4]],
)


def gradient(policy: LanguageModel, values: torch.Tensor) -> torch.Tensor:
    policy.model.zero_grad()
    (values * torch.linspace(-1, 2, len(values), dtype=values.dtype)).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", SUPPORTED)
def test_values_and_gradients_are_those_of_rows_alone(family: str) -> None:
    exact = not family.startswith("gemma")  # Gemma computes in float32 inside
    policy = tiny_model(family, dtype="float64" if exact else "float32")
    alone = response_scores(policy.model, ROWS, 0.8, entropy_gradient=True)
    expected = gradient(policy, alone.logprobs + alone.entropy)
    together = response_scores(policy.model, ROWS, 0.8, shared=True, entropy_gradient=True)
    tolerance = 1e-12 if exact else 1e-5
    torch.testing.assert_close(together.logprobs, alone.logprobs, rtol=0, atol=tolerance)
    torch.testing.assert_close(together.entropy, alone.entropy, rtol=0, atol=tolerance)
    found = gradient(policy, together.logprobs + together.entropy)
    # The norms work in float32 inside, and the gradients of all responses pass those of the prompt as one sum.
    # How the sums are rounded differs from processor to processor.
    assert float((found - expected).abs().max()) < 3e-6 * max(1.0, float(expected.abs().max()))


def test_each_prompt_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_model("gemma")  # a model for which transformers runs
    seen: list[torch.Tensor] = []
    forward = policy.model.model.forward
    monkeypatch.setattr(policy.model.model, "forward", lambda *a, **k: seen.append(k["input_ids"]) or forward(*a, **k))
    response_scores(policy.model, ROWS, shared=True)
    # 3 + 2 + 0 + 3 tokens of the first group, 2 + 4 + 1 of the second and one of padding.
    assert [ids.tolist() for ids in seen] == [[[5, 6, 7, 4, 9, 4, 9, 8], [8, 9, 7, 5, 5, 8, 5, 0]]]


def test_when_a_prompt_may_be_shared() -> None:
    model = tiny_model("llama").model
    assert can_share(model, 3, [4, 5])
    assert not can_share(model, 3, [4])
    assert can_share(model, LONGEST_ROW - 8, [4, 4])
    assert not can_share(model, LONGEST_ROW - 7, [4, 4])
    windowed = tiny_model("mistral", sliding_window=8).model
    assert can_share(windowed, 3, [4, 5])
    assert not can_share(windowed, 3, [4, 6])  # the ninth token must not see the first
    model.config._attn_implementation = "flash_attention_2"
    assert not can_share(model, 3, [4, 5])

"""Log-probs of response tokens: the right token at the right place, whatever the layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zerozoo.language import heads, packing
from zerozoo.language import logprobs as module
from zerozoo.language.families import SUPPORTED, tiny_model
from zerozoo.language.heads import decoder_hidden
from zerozoo.language.logprobs import Sequences, TokenScores, response_scores, split_by_tokens
from zerozoo.language.models import LanguageModel

WINDOWS: dict[str, dict[str, Any]] = {
    family: {"sliding_window": 4} if family in ("mistral", "qwen2", "gemma2", "gemma3_text") else {}
    for family in SUPPORTED
}


def some_rows(vocabulary: int = 90, seed: int = 0) -> Sequences:
    """Prompts and responses of many lengths, single tokens among them."""
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(4, vocabulary, (length,), generator=generator).tolist()

    return Sequences([ids(length) for length in (3, 1, 9, 5, 1)], [ids(length) for length in (6, 1, 2, 9, 4)])


def reference(policy: LanguageModel, rows: Sequences, temperature: float = 1.0) -> TokenScores:
    """Each row alone through transformers' own forward, the whole softmax in float64, entropy by its definition."""
    logprobs, entropies = [], []
    for prompt, response in zip(rows.prompts, rows.responses, strict=True):
        logits = policy.model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
        table = (logits.double() / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
        logprobs.append(table.gather(-1, torch.tensor(response)[:, None])[:, 0])
        entropies.append(-(table.exp() * table).sum(-1))
    return TokenScores(torch.cat(logprobs), torch.cat(entropies))


def gradient(policy: LanguageModel, scores: TokenScores, entropy: bool = False) -> torch.Tensor:
    """Gradient of an arbitrary weighted sum of the scores, all parameters in one vector."""
    weights = torch.linspace(-1, 2, len(scores.logprobs), dtype=torch.float64).cos()
    total = (weights * scores.logprobs).sum()
    if entropy:
        total = total + (weights.flip(0) * scores.entropy).sum()
    parameters = [value for value in policy.model.parameters() if value.requires_grad]
    return torch.cat([part.flatten() for part in torch.autograd.grad(total, parameters)])


def test_every_token_is_scored_by_the_row_of_the_token_before_it(table_model: Callable[..., LanguageModel]) -> None:
    """Trap 8: with a table of known log-probs a shift by one gives other numbers."""
    table = torch.randn((9, 9), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    policy = table_model(table, "abcde", dtype=torch.float64)
    rows = Sequences([[3, 4], [8], [5, 6, 7]], [[5, 1], [4, 4, 8, 1], [6]])
    expected = [
        (4, 5), (5, 1),
        (8, 4), (4, 4), (4, 8), (8, 1),
        (7, 6),
    ]  # fmt: skip
    for temperature in (1.0, 0.7):
        log_table = (table / temperature).log_softmax(-1)
        values = torch.stack([log_table[before, token] for before, token in expected])
        entropy = torch.stack([-(log_table[before].exp() * log_table[before]).sum() for before, _ in expected])
        for packed in (False, True):
            scores = response_scores(policy.model, rows, temperature, packed=packed)
            # Not 1e-12: the norm of llama works in float32 whatever the weights are.
            torch.testing.assert_close(scores.logprobs, values, rtol=0, atol=1e-6)
            torch.testing.assert_close(scores.entropy, entropy, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", SUPPORTED)
def test_layout_and_chunks_change_neither_values_nor_gradients(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded, packed and one row at a time, any chunk: as transformers' own forward of each row alone.

    1e-12 in float64; Gemma's layers compute in float32 inside, and its attention cannot do float64 with a window. The
    norms work in float32 inside, and ours have a backward pass of their own that rounds in another order: here they
    are those of transformers, so that all else can be compared to 1e-12.
    """
    monkeypatch.setattr(packing, "_norm", lambda hidden, norm: norm(hidden))
    exact = not family.startswith("gemma")
    policy = tiny_model(family, dtype="float64" if exact else "float32", **WINDOWS[family])
    tolerance = 1e-12 if exact else 1e-5
    rows = some_rows()
    expected = reference(policy, rows, 0.8)
    expected_gradient = gradient(policy, expected, entropy=True)
    size = float(expected_gradient.abs().max())

    def check(scores: TokenScores) -> None:
        for ours, theirs in zip(scores, expected, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance)
        difference = gradient(policy, scores, entropy=True) - expected_gradient
        assert float(difference.abs().max()) < tolerance * max(1.0, size)

    for packed in (False, True):
        for chunk in (1, 5, 512):
            check(response_scores(policy.model, rows, 0.8, packed=packed, chunk=chunk, entropy_gradient=True))
    alone = [
        response_scores(policy.model, Sequences([prompt], [response]), 0.8, entropy_gradient=True)
        for prompt, response in zip(rows.prompts, rows.responses, strict=True)
    ]
    check(TokenScores(torch.cat([one.logprobs for one in alone]), torch.cat([one.entropy for one in alone])))


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_float32_is_good_to_a_few_roundings(family: str) -> None:
    policy = tiny_model(family, **WINDOWS[family])
    exact = tiny_model(family, dtype="float64", **WINDOWS[family])
    rows = some_rows()
    with torch.no_grad():
        expected = reference(exact, rows).logprobs
        for packed in (False, True):
            scores = response_scores(policy.model, rows, packed=packed, chunk=4)
            assert scores.logprobs.dtype == scores.entropy.dtype == torch.float32
            assert float((scores.logprobs - expected).abs().max()) < 1e-5
        padded, packed_ = (response_scores(policy.model, rows, packed=packed).logprobs for packed in (False, True))
        assert float((padded - packed_).abs().max()) < 5e-6


def test_half_precision_weights_are_scored_with_a_float32_softmax() -> None:
    """A vocabulary of bfloat16 logits cannot be summed in bfloat16: the probabilities would not add up to one."""
    policy = tiny_model("llama", dtype="bfloat16")
    rows = some_rows()
    with torch.no_grad():
        scores = response_scores(policy.model, rows)
        assert scores.logprobs.dtype == torch.float32
        ids = torch.tensor([rows.prompts[0] + rows.responses[0]])
        hidden = decoder_hidden(policy.model, ids, None, torch.arange(ids.shape[1])[None])
        table = policy.model.lm_head(hidden[0, 2:-1]).float().log_softmax(-1)
    expected = table.gather(-1, ids[0, 3:, None])[:, 0]
    assert float((scores.logprobs[:6] - expected).abs().max()) < 1e-6


def test_a_row_does_not_see_its_neighbours() -> None:
    """Trap 1: other rows and their padding change nothing, bit for bit where the shapes are the same."""
    policy = tiny_model("llama", dtype="float64")
    rows = some_rows()
    other = some_rows(seed=9)
    mixed = Sequences([rows.prompts[0], *other.prompts[1:]], [rows.responses[0], *other.responses[1:]])
    with torch.no_grad():
        for packed in (False, True):
            first = response_scores(policy.model, rows, packed=packed).logprobs
            second = response_scores(policy.model, mixed, packed=packed).logprobs
            assert torch.equal(first[:6], second[:6])
            assert not torch.equal(first[6:], second[6:])


def test_temperature_zero_counts_as_one() -> None:
    policy = tiny_model("llama")
    with torch.no_grad():
        assert torch.equal(
            response_scores(policy.model, some_rows(), 0.0).logprobs,
            response_scores(policy.model, some_rows()).logprobs,
        )


def test_the_entropy_has_a_gradient_only_when_asked_for() -> None:
    policy = tiny_model("llama")
    scores = response_scores(policy.model, some_rows())
    assert scores.logprobs.requires_grad
    assert not scores.entropy.requires_grad
    assert response_scores(policy.model, some_rows(), entropy_gradient=True).entropy.requires_grad
    with torch.no_grad():
        assert not response_scores(policy.model, some_rows(), entropy_gradient=True).entropy.requires_grad


@pytest.mark.parametrize(("family", "place", "name"), [("llama", heads, "_logits"), ("gemma2", module, "head_logits")])
def test_logits_exist_for_one_chunk_of_response_tokens_only(
    family: str, place: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory: no logits of prompt positions, none of more than a chunk at a time."""
    policy = tiny_model(family)
    tables: list[torch.Tensor] = []
    original = getattr(place, name)

    def watched(*arguments: Any) -> torch.Tensor:
        tables.append(original(*arguments))
        return tables[-1]

    def sizes() -> list[int]:
        return [len(table) for table in tables]

    monkeypatch.setattr(place, name, watched)
    with torch.no_grad():
        response_scores(policy.model, some_rows(), chunk=8)
    assert sizes() == [8, 8, 6]  # 22 response tokens
    tables.clear()
    response_scores(policy.model, some_rows(), chunk=8).logprobs.sum().backward()
    assert sorted(sizes()) == [6, 6, 8, 8, 8, 8]  # made a second time for the backward pass, not kept
    tables.clear()
    response_scores(policy.model, some_rows(), chunk=22).logprobs.sum().backward()
    assert sizes() == [22]  # all of them are one chunk: kept


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scores_of_the_head_and_their_gradients(temperature: float, keep: bool) -> None:
    """Against autograd of the definition, in float64; a token without probability has entropy 0 and no NaN."""
    model: Any = tiny_model("llama", dtype="float64", tied=False).model
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((7, 32), generator=generator, dtype=torch.float64)
    hidden[-1] *= 1e4
    targets = torch.randint(100, (7,), generator=generator)
    weights = torch.randn(7, generator=generator, dtype=torch.float64)

    def gradients(of: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, ...]:
        inputs = hidden.clone().requires_grad_()
        values = of(inputs)
        grads = torch.autograd.grad((weights * values).sum(), [inputs, model.lm_head.weight])
        return values.detach(), *grads

    def defined(inputs: torch.Tensor) -> torch.Tensor:
        return (model.lm_head(inputs) / temperature).log_softmax(-1).gather(-1, targets[:, None])[:, 0]

    found = gradients(lambda inputs: heads.head_scores(model, inputs, targets, temperature, keep)[0])
    for ours, theirs in zip(found, gradients(defined), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-9)
    entropy = heads.head_scores(model, hidden, targets, temperature, keep)[1]
    table = torch.distributions.Categorical(logits=model.lm_head(hidden).detach() / temperature)
    torch.testing.assert_close(entropy, table.entropy(), rtol=1e-10, atol=1e-10)
    assert not entropy.requires_grad


@pytest.mark.parametrize(("prompts", "responses"), [([[]], [[1]]), ([[1]], [[]])])
def test_empty_prompts_and_responses_are_refused(prompts: list[list[int]], responses: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        Sequences(prompts, responses)


def test_lengths_leave_out_the_last_token() -> None:
    rows = Sequences([[5, 6, 7], [8]], [[9], [10, 11]])
    assert rows.lengths == [3, 2]
    assert rows.inputs(0) == [5, 6, 7]
    assert rows.inputs(1) == [8, 10]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 200))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = split_by_tokens(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) * longest <= budget or len(batch) == 1
    ordered = [lengths[row] for batch in batches for row in batch]
    assert ordered == sorted(ordered)  # rows of like length together: least padding
    for batch, following in zip(batches, batches[1:], strict=False):
        assert (len(batch) + 1) * lengths[following[0]] > budget  # no batch is cut short for nothing


def test_micro_batches_of_a_small_example() -> None:
    assert split_by_tokens([5, 1, 3, 3, 20, 2], budget=9) == [[1, 5, 2], [3], [0], [4]]
    assert split_by_tokens([], budget=9) == []

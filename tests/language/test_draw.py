"""Drawing tokens: exact against the cumulative distribution, and the log-probs of what was drawn."""

from __future__ import annotations

import math

import pytest
import torch

from zerozoo.language.samplers.draw import BLOCK, draw, inverse_cdf, nucleus

SIZES = (1, 2, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 7)
LARGEST_BELOW_ONE = math.nextafter(1.0, 0.0)


def counts(vocabulary: int, total: int) -> torch.Tensor:
    """Whole numbers that add up to `total`, about a third of them zero: their cumulative sums are exact."""
    generator = torch.Generator().manual_seed(vocabulary)
    weights = torch.rand(vocabulary, generator=generator) * (torch.rand(vocabulary, generator=generator) < 0.67)
    weights[vocabulary // 2] = 1.0
    whole = (weights / weights.sum() * total).floor()
    whole[vocabulary // 2] += total - whole.sum()
    return whole.long()


@pytest.mark.parametrize("vocabulary", SIZES)
@pytest.mark.parametrize("place", [0.0, 0.5])
def test_every_uniform_of_a_grid_gives_the_token_of_the_exact_cumulative_sum(vocabulary: int, place: float) -> None:
    """u = (j + place) / total with a power of two as total, so u * total has no rounding; at place 0 u lies exactly on
    the borders, which belong to the token behind them."""
    total = 4096
    row = counts(vocabulary, total)
    uniforms = (torch.arange(total, dtype=torch.float64) + place) / total
    drawn = inverse_cdf(row.float().expand(total, -1), uniforms)
    assert drawn.tolist() == torch.arange(vocabulary).repeat_interleave(row).tolist()


def test_rows_are_drawn_independently_of_one_another() -> None:
    table = torch.stack([counts(600, 1024), counts(600, 1024).flip(0), torch.ones(600).long()]).float()
    uniforms = torch.tensor([0.2, 0.9, 0.5], dtype=torch.float64)
    together = inverse_cdf(table, uniforms)
    alone = [int(inverse_cdf(table[row : row + 1], uniforms[row : row + 1])) for row in range(3)]
    assert together.tolist() == alone
    assert alone[2] == 300  # half of 600 equal weights lies before token 300


@pytest.mark.parametrize("uniform", [0.0, LARGEST_BELOW_ONE, 1 - 1e-13])
@pytest.mark.parametrize("vocabulary", [3, BLOCK, 5 * BLOCK + 3])
def test_tokens_without_probability_are_never_drawn_at_the_ends(vocabulary: int, uniform: float) -> None:
    generator = torch.Generator().manual_seed(7)
    table = torch.rand((64, vocabulary), generator=generator)
    table[:, 0] = table[:, -1] = 0.0
    table[:, 2 * BLOCK : 4 * BLOCK] = 0.0  # whole blocks without probability
    table[:, 1] = 1e-30
    table = table / table.sum(-1, keepdim=True)
    drawn = inverse_cdf(table, torch.full((64,), uniform, dtype=torch.float64))
    assert bool((table[torch.arange(64), drawn] > 0).all())
    if uniform == 0.0:
        assert drawn.tolist() == [1] * 64


def test_rounding_at_the_end_of_a_block_draws_no_token_without_probability() -> None:
    """The sum of a block and its cumulative sum round differently, so a number just below the end of a block may lie
    behind its last token; the first token of every block has no probability here."""
    generator = torch.Generator().manual_seed(1)
    blocks = 20
    table = (6 * torch.randn((200, blocks * BLOCK), generator=generator)).exp()  # sums of these are not exact
    table[:, ::BLOCK] = 0.0
    exact = table.double().cumsum(-1) / table.double().sum(-1, keepdim=True)
    ends = table.view(200, blocks, BLOCK).sum(-1, dtype=torch.float64).cumsum(-1)
    for block in range(blocks):
        uniforms = torch.nextafter(ends[:, block] / ends[:, -1], torch.zeros(200, dtype=torch.float64))
        drawn = inverse_cdf(table, uniforms)
        assert int(drawn.max()) < blocks * BLOCK
        assert bool((table[torch.arange(200), drawn] > 0).all())
        before = torch.where(drawn > 0, exact.gather(1, (drawn - 1).clamp(min=0)[:, None])[:, 0], 0.0)
        after = exact.gather(1, drawn[:, None])[:, 0]
        assert bool(((before - 1e-6 < uniforms) & (uniforms < after + 1e-6)).all())  # float32 sums of 256 numbers


def test_frequencies_are_the_probabilities() -> None:
    """40,000 seeded draws over 700 tokens; 5 standard deviations for the worst token."""
    generator = torch.Generator().manual_seed(3)
    probabilities = torch.randn(700, generator=generator).mul(1.5).softmax(-1)
    number = 40_000
    uniforms = torch.rand(number, generator=generator, dtype=torch.float64)
    drawn = torch.cat([inverse_cdf(probabilities.expand(len(part), -1), part) for part in uniforms.split(10_000)])
    seen = torch.bincount(drawn, minlength=700).double()
    expected = number * probabilities.double()
    assert float(((seen - expected) / (expected * (1 - probabilities)).sqrt()).abs().max()) < 5


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.01, {2}),
        (0.5, {2}),
        (0.51, {2, 0}),
        (0.75, {2, 0}),
        (0.76, {2, 0, 3}),
        (0.9375, {2, 0, 3}),
        (0.94, {0, 1, 2, 3}),
    ],
)
def test_nucleus_is_the_smallest_set_that_reaches_top_p(top_p: float, kept: set[int]) -> None:
    row = torch.tensor([[0.25, 0.0625, 0.5, 0.1875], [0.0, 1.0, 0.0, 0.0]])
    cut = nucleus(row, top_p)
    assert set(cut[0].nonzero()[:, 0].tolist()) == kept
    assert torch.equal(cut[0][list(kept)], row[0][list(kept)])
    assert cut[1].tolist() == [0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.5])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_logprobs_are_those_of_the_tempered_softmax(temperature: float, top_p: float) -> None:
    """Trap 10: the temperature belongs to the log-prob; trap 11: the nucleus does not."""
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn((200, 300), generator=generator)
    tokens, logprobs = draw(logits, temperature, top_p, torch.rand(200, generator=generator, dtype=torch.float64))
    exact = (logits.double() / temperature).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    assert float((logprobs - exact).abs().max()) < 1e-5  # logits of 50 have steps of 4e-6 in float32
    assert logprobs.dtype == torch.float32


@pytest.mark.parametrize(("temperature", "top_p"), [(0.5, 1.0), (2.0, 1.0), (1.0, 0.8), (0.5, 0.8)])
def test_draws_follow_the_tempered_and_cut_distribution(temperature: float, top_p: float) -> None:
    """An even grid of uniforms meets every token as often as its probability says, to within one grid point."""
    logits = torch.tensor([[1.0, -1.0, 0.5, 2.0, 0.0, -3.0]])
    number = 20_000
    uniforms = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    tokens, _ = draw(logits.expand(number, -1), temperature, top_p, uniforms)
    exact = (logits[0].double() / temperature).softmax(-1)
    ordered = exact.sort(descending=True).values
    nucleus_size = int((ordered.cumsum(0) < top_p - 1e-9).sum()) + 1 if top_p < 1 else len(exact)
    exact = torch.where(exact >= ordered[nucleus_size - 1], exact, 0.0)
    exact = exact / exact.sum()
    assert float((torch.bincount(tokens, minlength=6) - number * exact).abs().max()) < 1.5


def test_greedy_takes_the_likeliest_and_scores_it_at_temperature_one() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, -2.0, 4.9]])
    nothing = torch.full((2,), math.nan, dtype=torch.float64)  # greedy must not look at the random numbers
    tokens, logprobs = draw(logits, 0.0, 1.0, nothing)
    assert tokens.tolist() == [1, 0]
    torch.testing.assert_close(logprobs, logits.log_softmax(-1)[[0, 1], [1, 0]])


def test_large_and_infinite_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1e4, 1e4 - 1.0, -math.inf, -1e4]])
    for uniform in (0.0, 0.5, LARGEST_BELOW_ONE):
        tokens, logprobs = draw(logits, 1.0, 1.0, torch.tensor([uniform], dtype=torch.float64))
        assert int(tokens) in (0, 1)
        expected = -math.log1p(math.exp(-1)) - float(tokens)
        assert float(logprobs) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_greedy_rows_beside_drawn_ones(temperature: float) -> None:
    logits = torch.randn((6, 700), generator=torch.Generator().manual_seed(1))
    uniforms = torch.rand(6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    greedy = torch.tensor([True, False, False, True, False, True])
    both = draw(logits, temperature, 1.0, uniforms, greedy)
    for mixed, taken, drawn in zip(
        both, draw(logits, 0.0, 1.0, uniforms), draw(logits, temperature, 1.0, uniforms), strict=True
    ):
        assert torch.equal(mixed, torch.where(greedy, taken, drawn))


@pytest.mark.parametrize("vocabulary", [3, BLOCK, 5 * BLOCK + 3])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.7, 1.0), (1.0, 1.0), (1.0, 0.8)])
def test_logits_column_by_column_in_memory_draw_the_same(vocabulary: int, temperature: float, top_p: float) -> None:
    logits = torch.randn((9, vocabulary), generator=torch.Generator().manual_seed(1))
    uniforms = torch.rand(9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = draw(logits, temperature, top_p, uniforms)
    columns = logits.t().contiguous().t()
    assert columns.stride() == (1, 9)
    tokens, logprobs = draw(columns, temperature, top_p, uniforms)
    assert torch.equal(tokens, expected[0])
    torch.testing.assert_close(logprobs, expected[1])
    exact = (logits.double() / (temperature or 1.0)).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), exact, rtol=1e-5, atol=1e-5)


def test_the_first_of_equal_logits_is_the_greedy_one() -> None:
    logits = torch.zeros((2, 3 * BLOCK))
    logits[0, [BLOCK + 7, BLOCK + 9, 2 * BLOCK]] = 1.0
    logits[1, [5, BLOCK]] = 2.0
    tokens, _ = draw(logits, 0.0, 1.0, torch.zeros(2, dtype=torch.float64))
    assert tokens.tolist() == [BLOCK + 7, 5]

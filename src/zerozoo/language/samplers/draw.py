"""Drawing one token per row from logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 256


def inverse_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draw from each row by inverting its cumulative distribution in two levels.

    The vocabulary is cut into blocks of 256; the block is found from the block sums, the token inside that one
    block. So one uniform number a row is enough and no cumulative sum runs over the whole vocabulary, which on a
    CPU costs a hundred times more than this.

    Args:
        probabilities: (B, V) non-negative, rows need not sum to one.
        uniforms: (B,) float64 in [0, 1).

    Returns:
        (B,) int64 token ids; a token of probability zero is never drawn.
    """
    table = _in_blocks(probabilities)
    return _invert(table, _sums(table), uniforms)


def _in_blocks(values: Tensor, behind: float = 0.0) -> Tensor:
    """(B, V) -> (B, blocks, BLOCK), `behind` after the last token."""
    missing = -values.shape[1] % BLOCK
    if missing:
        values = torch.nn.functional.pad(values, (0, missing), value=behind)
    return values.unflatten(1, (-1, BLOCK))


def _sums(table: Tensor) -> Tensor:
    """(B, blocks) float64. Sums of 256 numbers are good to a few roundings, and faster than in float64."""
    return _each_block(table, torch.sum).double()


def _each_block(table: Tensor, reduce: Callable[[Tensor, int], Tensor]) -> Tensor:
    """(B, blocks, BLOCK) -> (B, blocks), as quick when the rows lie side by side in memory, column by column."""
    if table.stride(0) == 1:
        return reduce(table.permute(1, 2, 0), 1).t()
    return reduce(table, -1)


def _invert(table: Tensor, sums: Tensor, uniforms: Tensor) -> Tensor:
    block_ends = sums.cumsum(-1)  # (B, blocks)
    target = uniforms * block_ends[:, -1]
    block = _first_above(block_ends, target)
    before = torch.where(block > 0, block_ends.gather(1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    inside = table[torch.arange(len(table), device=table.device), block].double().cumsum(-1)  # (B, BLOCK)
    return block * BLOCK + _first_above(inside, target - before)


def _first_above(ends: Tensor, target: Tensor) -> Tensor:
    """Index of the first of the rising `ends` (B, K) that lies above `target` (B,)."""
    # Rounding can carry the target to the very end of the row, behind the last token that has probability.
    target = torch.minimum(target, ends[:, -1] * (1 - 1e-12))
    return (ends <= target[:, None]).sum(-1)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of tokens whose probability reaches `top_p` (Holtzman et al. 2020).

    Args:
        probabilities: (B, V), rows sum to one.
    """
    ordered, order = probabilities.sort(-1, descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p  # the token that crosses the line is kept
    return probabilities.masked_fill(outside.gather(-1, order.argsort(-1)), 0.0)


def draw(
    logits: Tensor, temperature: float, top_p: float, uniforms: Tensor, greedy: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw one token a row and give its log-prob from the same logits.

    Args:
        logits: (B, V) float32.
        uniforms: (B,) float64 in [0, 1); not used when temperature is 0.
        greedy: (B,) bool, rows whose temperature is 0 whatever that of the others is.

    Returns:
        (B,) int64 tokens and (B,) float32 log-probs before the nucleus cut, temperature applied.
    """
    scaled = logits if temperature in (0, 1) else logits / _temperatures(temperature, greedy)
    # No step of this needs one row after the other in memory: logits may lie there column by column.
    table = _in_blocks(scaled, -math.inf)
    highest = _each_block(table, torch.amax)
    peak = highest.amax(-1)
    weights = (table - peak[:, None, None]).exp_()  # probabilities times `total`
    sums = _sums(weights)
    total = sums.sum(-1)
    if temperature == 0:
        tokens = _first_highest(table, highest)
    elif top_p < 1:
        tokens = inverse_cdf(nucleus((weights.flatten(1) / total[:, None]).float(), top_p), uniforms)
    else:
        tokens = _invert(weights, sums, uniforms)
    if greedy is not None:
        tokens = torch.where(greedy, _first_highest(table, highest), tokens)
    chosen = scaled.gather(-1, tokens[:, None])[:, 0]
    return tokens, ((chosen - peak).double() - total.log()).float()


def _first_highest(table: Tensor, highest: Tensor) -> Tensor:
    """(B,) place of the first of the largest values of a table (B, blocks, BLOCK), given the largest of each block."""
    block = highest.argmax(-1)
    return block * BLOCK + table[torch.arange(len(table), device=table.device), block].argmax(-1)


def _temperatures(temperature: float, greedy: Tensor | None) -> Tensor | float:
    if greedy is None:
        return temperature
    return torch.where(greedy, 1.0, temperature)[:, None]

"""Drawing one token per row from logits."""

from __future__ import annotations

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


def _in_blocks(probabilities: Tensor) -> Tensor:
    """(B, V) -> (B, blocks, BLOCK), zeros behind the last token."""
    rows, vocabulary = probabilities.shape
    missing = -vocabulary % BLOCK
    if missing:
        probabilities = torch.nn.functional.pad(probabilities, (0, missing))
    return probabilities.view(rows, -1, BLOCK)


def _sums(table: Tensor) -> Tensor:
    """(B, blocks) float64. Sums of 256 numbers are good to a few roundings, and faster than in float64."""
    return table.sum(-1).double()


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
    probabilities = scaled.softmax(-1)
    table = _in_blocks(probabilities)
    sums = _sums(table)
    if temperature == 0:
        tokens = scaled.argmax(-1)
    elif top_p < 1:
        tokens = inverse_cdf(nucleus(probabilities, top_p), uniforms)
    else:
        tokens = _invert(table, sums, uniforms)
    if greedy is not None:
        tokens = torch.where(greedy, scaled.argmax(-1), tokens)
    chosen = probabilities.gather(-1, tokens[:, None])[:, 0]
    # The softmax adds up a whole vocabulary in float32; the sums say by how much it has missed one.
    return tokens, (chosen.double() / sums.sum(-1)).log().float()


def _temperatures(temperature: float, greedy: Tensor | None) -> Tensor | float:
    if greedy is None:
        return temperature
    return torch.where(greedy, 1.0, temperature)[:, None]

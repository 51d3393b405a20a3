"""Log-probs of response tokens under a model, with memory that does not grow with vocabulary x tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zerozoo.language.decoder import can_pack
from zerozoo.language.heads import causal_model, decoder_hidden, enter, has_plain_head, head_logits, head_scores
from zerozoo.language.packing import pack, packed_hidden
from zerozoo.language.shared_prompts import shared_hidden

CHUNK = 512  # response tokens whose logits exist at one time


class TokenScores(NamedTuple):
    """One value for each response token, the tokens of all rows behind one another.

    Attributes:
        logprobs: (M,) float32, temperature applied.
        entropy: (M,) float32, entropy in nats of the whole softmax at that position, temperature applied.
    """

    logprobs: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class Sequences:
    """Rows to score: a prompt and the tokens of its response, both as lists of ids."""

    prompts: Sequence[Sequence[int]]
    responses: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if not all(len(row) for row in (*self.prompts, *self.responses)):
            raise ValueError("every prompt and every response needs at least one token")

    @property
    def lengths(self) -> list[int]:
        """Tokens that go through the model per row: the last response token predicts nothing and stays out."""
        return [len(p) + len(r) - 1 for p, r in zip(self.prompts, self.responses, strict=True)]

    def inputs(self, index: int) -> list[int]:
        return [*self.prompts[index], *self.responses[index][:-1]]


def response_scores(
    model: nn.Module,
    sequences: Sequences,
    temperature: float = 1.0,
    packed: bool = False,
    shared: bool = False,
    chunk: int = CHUNK,
    entropy_gradient: bool = False,
) -> TokenScores:
    """Score the response tokens of all rows in one forward pass.

    The token at position t is predicted from the hidden state at t - 1, so the first response token belongs to
    the last prompt position (trap 8). Rows never see padding or one another, whichever layout is chosen.

    Args:
        temperature: the sampling temperature; logits are divided by it (trap 10). 0 (greedy) counts as 1.
        packed: rows behind one another without padding, in place of one row each padded on the right. Models that
            `decoder.can_pack` takes are never padded.
        shared: equal prompts once, their responses behind them (`shared_prompts.can_share` says when that is right).
        chunk: response tokens per slice of the vocabulary head; it changes memory, not the numbers.
        entropy_gradient: whether the entropy may be differentiated.
    """
    compute = partial(_response_scores, model, sequences, temperature, packed, shared, chunk, entropy_gradient)
    return enter(causal_model(model), compute)


def _response_scores(
    model: nn.Module,
    sequences: Sequences,
    temperature: float,
    packed: bool,
    shared: bool,
    chunk: int,
    entropy_gradient: bool,
) -> TokenScores:
    device = next(model.parameters()).device
    if can_pack(model):
        hidden = packed_hidden(model, pack(sequences.prompts, sequences.responses, shared).to(device))  # (M, H)
    elif shared:
        hidden = shared_hidden(model, sequences.prompts, sequences.responses, device)  # (M, H)
    else:
        hidden = (_packed if packed else _padded)(model, sequences, device)  # (M, H)
    targets = torch.tensor([token for row in sequences.responses for token in row], device=device)

    if not entropy_gradient and has_plain_head(model):
        pieces = zip(hidden.split(chunk), targets.split(chunk), strict=True)
        keep = len(targets) <= chunk
        return TokenScores(*_joined(head_scores(model, *piece, temperature or 1.0, keep) for piece in pieces))

    def score(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return _score(model, states, tokens, temperature or 1.0, entropy_gradient)

    parts = []
    for start in range(0, len(targets), chunk):
        part = hidden[start : start + chunk], targets[start : start + chunk]
        if torch.is_grad_enabled() and len(targets) > chunk:
            parts.append(checkpoint(score, *part, use_reentrant=False))
        else:
            parts.append(score(*part))
    return TokenScores(*_joined(parts))


def _joined(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    logprobs, entropy = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropy)


def _score(
    model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    logits = head_logits(model, hidden) / temperature  # (chunk, V)
    normaliser = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets[:, None])[:, 0] - normaliser
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        probabilities = (logits - normaliser[:, None]).exp()
        entropy = normaliser - torch.einsum("mv,mv->m", probabilities, logits)
    return logprobs, entropy


def _padded(model: nn.Module, sequences: Sequences, device: torch.device) -> Tensor:
    """(M, H) states that predict response tokens, from rows padded on the right."""
    lengths = sequences.lengths
    # On the right the value of the padding reaches no valid position: attention is causal and masked.
    ids = torch.zeros((len(lengths), max(lengths)), dtype=torch.int64)
    predicts = torch.zeros_like(ids, dtype=torch.bool)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.tensor(sequences.inputs(row))
        predicts[row, len(sequences.prompts[row]) - 1 : length] = True
    mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    hidden = decoder_hidden(model, ids.to(device), mask.to(device), positions.to(device))
    return hidden[predicts.to(device)]


def _packed(model: nn.Module, sequences: Sequences, device: torch.device) -> Tensor:
    """(M, H) states that predict response tokens, from one row that holds all sequences."""
    ids: list[int] = []
    positions: list[int] = []
    predicts: list[bool] = []
    for row, length in enumerate(sequences.lengths):
        first = len(sequences.prompts[row]) - 1
        ids += sequences.inputs(row)
        positions += range(length)
        predicts += [position >= first for position in range(length)]
    # Without a mask, positions that start again at 0 tell transformers where one sequence ends.
    hidden = decoder_hidden(model, torch.tensor([ids], device=device), None, torch.tensor([positions], device=device))
    return hidden[0, torch.tensor(predicts, device=device)]


def split_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Row indices in micro-batches of at most `budget` padded tokens, rows of like length together.

    A single row longer than the budget makes a micro-batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    batches: list[list[int]] = []
    for row in order:
        if batches and (len(batches[-1]) + 1) * lengths[row] <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches

"""What every sampler takes and gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from zerozoo.language.models import LanguageModel
from zerozoo.runs.errors import DivergedError


@dataclass(frozen=True)
class Decoding:
    """How responses are drawn.

    Attributes:
        max_new_tokens: longest response in tokens, at least 1.
        temperature: logits are divided by it before the softmax; 0 takes the most likely token (greedy).
        top_p: nucleus size in (0, 1]. Evaluation only: a truncated distribution is not the one that the policy
            gradient differentiates (trap 11), so the training loop refuses anything but 1.
        stop_ids: token ids that end a response, besides the model's own end-of-text ids.
        stop_strings: texts that end a response. The tokens that complete the text stay in the response.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative: {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}")
        if "" in self.stop_strings:
            raise ValueError("an empty stop string would end every response at once")


@dataclass
class Samples:
    """N = prompts x samples responses; the responses of one prompt are adjacent.

    Attributes:
        tokens: (N, T) int64, exactly the ids that were drawn, padded on the right.
        lengths: (N,) int64, tokens of each response, the end token included.
        logprobs: (N, T) float32, log-prob of every drawn token under the distribution it was drawn from before
            any nucleus cut (temperature applied; 1 for greedy), zero where padded.
        stopped: (N,) bool, True for finish reason "stop", False for "length".
        groups: (N,) int64, index of the prompt.
        texts: N decoded responses without special tokens, cut before a stop string.
        drawn: how often a token was drawn: the lengths, and what was drawn for finished rows that waited for others.
            0: no more than the lengths.
        versions: (N, T) int32, by which version of the weights each token was written, zero where padded. A sampler
            that reads the weights of the policy itself leaves them 0.
    """

    tokens: Tensor
    lengths: Tensor
    logprobs: Tensor
    stopped: Tensor
    groups: Tensor
    texts: list[str]
    drawn: int = 0
    versions: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        self.drawn = self.drawn or int(self.lengths.sum())
        if self.versions.shape != self.tokens.shape:
            if len(self.versions):
                raise ValueError(f"versions are {tuple(self.versions.shape)}, tokens {tuple(self.tokens.shape)}")
            self.versions = torch.zeros_like(self.tokens, dtype=torch.int32)


class Sampler(Protocol):
    """Draws `samples` responses for each prompt (token ids); randomness comes from `generator` alone."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int,
        decoding: Decoding,
        generator: torch.Generator,
    ) -> Samples: ...


class Pending(Protocol):
    """Responses under way."""

    def result(self) -> Samples:
        """Wait for them. Call it once."""


@dataclass(frozen=True)
class Ready:
    """Responses that were written at once: a `Pending` that waits for nothing."""

    samples: Samples

    def result(self) -> Samples:
        """See `Pending`."""
        return self.samples


@runtime_checkable
class AsyncSampler(Sampler, Protocol):
    """A sampler with weights of its own, which may write beside the caller and several batches ahead.

    It says in `Samples.versions` by which weights each token was written.
    """

    def publish(self, version: int) -> None:
        """Take the weights that the policy has now as `version`; `sample` and later tokens are written by them.

        The loop calls it with the steps trained so far before it draws anything, and after every update.
        """

    def submit(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int,
        decoding: Decoding,
        generator: torch.Generator,
    ) -> Pending:
        """Begin what `sample` would do.

        All randomness is drawn from `generator` before this returns, so that a response depends neither on who writes
        it nor on when its results are taken. Results are taken in the order of the submissions.
        """


class Ends:
    """The rule by which responses end: at an end id, or with the token that completes a stop string.

    A stop string that is one special token of the model, such as <|im_end|>, counts as its id: texts are decoded
    without special tokens, so it could not be found in them.
    """

    def __init__(self, policy: LanguageModel, decoding: Decoding) -> None:
        self.tokenizer = policy.tokenizer
        self.strings = decoding.stop_strings
        added = self.tokenizer.added_tokens_decoder.items()
        spelled = {index for index, token in added if token.special and token.content in self.strings}
        self.ids = torch.tensor(sorted({*policy.eos_ids, *decoding.stop_ids, *spelled}), device=policy.model.device)
        # A token decodes to at least one byte, so a stop string lies within this many last tokens. The margin is
        # for tokenizers that decode the first token of a piece without its space.
        self.tail = max((len(stop.encode()) for stop in self.strings), default=0) + 4

    def reached(self, written: Tensor) -> Tensor:
        """(B,) bool: whether the last of the tokens (B, L) written so far ends the response."""
        done = torch.isin(written[:, -1], self.ids)
        if self.strings:
            done |= torch.tensor(self.spelled(written[:, -self.tail :].tolist()), device=done.device)
        return done

    def spelled(self, tails: list[list[int]]) -> list[bool]:
        """Whether the last tokens of each row, `tail` of them where there are so many, hold a stop string."""
        texts = self.tokenizer.batch_decode(tails, skip_special_tokens=True)
        return [any(stop in text for stop in self.strings) for text in texts]


def check_prompts(prompts: Sequence[Sequence[int]]) -> None:
    """ValueError for no prompts or an empty one."""
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError("every prompt needs at least one token")


def check_finite(values: Tensor) -> None:
    """DivergedError when the model's numbers are no numbers any more."""
    if not torch.isfinite(values).all():
        raise DivergedError("The model's log-probs are not finite.")


def cut_at_stop(text: str, stop_strings: Sequence[str]) -> str:
    """Text before the earliest stop string, or all of it."""
    ends = [text.find(stop) for stop in stop_strings]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def pad_rows(rows: Sequence[Sequence[int]], pad: int, side: str) -> tuple[Tensor, Tensor]:
    """Rows of ids as one (N, L) int64 tensor and its (N, L) bool mask; `side` says where the padding goes."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.int64)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[index, place] = torch.tensor(row, dtype=torch.int64)
        mask[index, place] = True
    return ids, mask


def join_samples(parts: Sequence[Samples], pad_id: int) -> Samples:
    """Several samples one below the other, padded to the longest response, groups numbered on."""
    longest = max(part.tokens.shape[1] for part in parts)

    def widen(rows: Tensor, value: float) -> Tensor:
        return torch.nn.functional.pad(rows, (0, longest - rows.shape[1]), value=value)

    groups, start = [], 0
    for part in parts:
        groups.append(part.groups + start)
        start += int(part.groups.max()) + 1
    return Samples(
        tokens=torch.cat([widen(part.tokens, pad_id) for part in parts]),
        lengths=torch.cat([part.lengths for part in parts]),
        logprobs=torch.cat([widen(part.logprobs, 0.0) for part in parts]),
        stopped=torch.cat([part.stopped for part in parts]),
        groups=torch.cat(groups),
        texts=[text for part in parts for text in part.texts],
        drawn=sum(part.drawn for part in parts),
        versions=torch.cat([widen(part.versions, 0) for part in parts]),
    )

"""Responses that are kept while the weights change: each version of the weights writes a slice of them.

A long response need not be finished by the weights that began it. What is written so far is read again under the new
weights, as a part of the prompt, and the response goes on with the random numbers that are left to it. So every token
is drawn from one distribution, that of the version which `Samples.versions` names, and has its log-prob under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from zerozoo.language.models import LanguageModel
from zerozoo.language.samplers.interface import AsyncSampler, Decoding, Pending, Sampler, Samples, check_prompts
from zerozoo.language.staleness import written_by


@runtime_checkable
class SliceWriter(Sampler, Protocol):
    """A sampler that goes on with responses: `NativeSampler`, or one whose workers do.

    Attributes:
        policy: the language model.
    """

    policy: LanguageModel

    def uniforms(self, rows: int, decoding: Decoding, generator: torch.Generator) -> Tensor:
        """(rows, U) random numbers, all that the responses need."""

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int,
        decoding: Decoding,
        uniforms: Tensor,
        begun: Tensor | None = None,
    ) -> Pending:
        """Begin to write the responses that these random numbers make, by the weights of now.

        begun: (prompts, B) int64, the first tokens of responses that have been written already, one of each prompt;
            `samples` is 1 then. They are part of the result, and count in `max_new_tokens`; their log-probs do not.
        """


class PartialSampler:
    """An `AsyncSampler` that has each version of the weights write a slice of every response that is under way.

    Batches leave whole and in their order. To hand out whatever is finished first would prefer short responses. What a
    batch still lacks when it is asked for is written by the weights of that moment, however much it is.

    Args:
        sampler: writes.
        slice_tokens: most tokens of a response that one version of the weights writes ahead, at least 1.
    """

    def __init__(self, sampler: SliceWriter, slice_tokens: int) -> None:
        if slice_tokens < 1:
            raise ValueError(f"slice_tokens must be at least 1, not {slice_tokens}")
        self.sampler, self.slice_tokens = sampler, slice_tokens
        self.version = 0
        self.unfinished: list[Unfinished] = []

    def publish(self, version: int) -> None:
        """See `AsyncSampler`. What is unfinished goes on at the next call, before anything new."""
        if isinstance(self.sampler, AsyncSampler):
            self.sampler.publish(version)
        self.version = version

    def sample(
        self, prompts: Sequence[Sequence[int]], samples: int, decoding: Decoding, generator: torch.Generator
    ) -> Samples:
        """See `Sampler`; nothing else goes on meanwhile."""
        return written_by(self.sampler.sample(prompts, samples, decoding, generator), self.version)

    def submit(
        self, prompts: Sequence[Sequence[int]], samples: int, decoding: Decoding, generator: torch.Generator
    ) -> PendingPartial:
        """See `AsyncSampler`."""
        check_prompts(prompts)
        uniforms = self.sampler.uniforms(len(prompts) * samples, decoding, generator)
        self.unfinished.append(Unfinished(self.sampler, prompts, samples, decoding, uniforms))
        self._go_on()
        return PendingPartial(self, self.unfinished[-1])

    def finish(self, batch: Unfinished) -> Samples:
        """The whole responses of a batch; the others go on meanwhile."""
        self.unfinished.remove(batch)
        batch.go_on(self.version)
        self._go_on()
        return batch.samples()

    def _go_on(self) -> None:
        for batch in self.unfinished:
            if batch.version != self.version:
                batch.go_on(self.version, self.slice_tokens)


class PendingPartial:
    """See `Pending`."""

    def __init__(self, owner: PartialSampler, batch: Unfinished) -> None:
        self.owner, self.batch = owner, batch

    def result(self) -> Samples:
        """See `Pending`."""
        return self.owner.finish(self.batch)


@dataclass(frozen=True)
class _Slice:
    """Tokens up to `end` of the given rows, which weights of `version` are writing."""

    rows: Tensor
    end: int
    version: int
    pending: Pending


class Unfinished:
    """N responses to a batch of prompts, T tokens at most, of which the first `reached` have been written.

    Attributes:
        version: the last one that was asked to write; None before the first.
    """

    def __init__(
        self,
        sampler: SliceWriter,
        prompts: Sequence[Sequence[int]],
        samples: int,
        decoding: Decoding,
        uniforms: Tensor,
    ) -> None:
        self.sampler, self.prompts, self.per_prompt, self.decoding = sampler, prompts, samples, decoding
        self.uniforms = uniforms
        rows, longest = len(prompts) * samples, decoding.max_new_tokens
        self.tokens = torch.full((rows, longest), sampler.policy.pad_id)
        self.logprobs = torch.zeros((rows, longest))
        self.versions = torch.zeros((rows, longest), dtype=torch.int32)
        self.lengths = torch.zeros(rows, dtype=torch.int64)
        self.stopped = torch.zeros(rows, dtype=torch.bool)
        self.texts = [""] * rows
        self.reached = self.drawn = 0
        self.version: int | None = None
        self.writing: _Slice | None = None

    def go_on(self, version: int, most: int | None = None) -> None:
        """Begin `most` further tokens of every response that has not ended, all that are left without it.

        Waits for the tokens before them. version: of the weights that write now.
        """
        self._take()
        self.version = version
        longest = self.decoding.max_new_tokens
        end = longest if most is None else min(self.reached + most, longest)
        rows = (~self.stopped).nonzero()[:, 0]
        if end == self.reached or not len(rows):
            return
        decoding, uniforms = replace(self.decoding, max_new_tokens=end), self.uniforms[rows, :end]
        if self.reached:
            prompts = [self.prompts[row // self.per_prompt] for row in rows.tolist()]
            begun = self.tokens[rows, : self.reached]
            pending = self.sampler.begin(prompts, 1, decoding, uniforms, begun)
        else:
            pending = self.sampler.begin(self.prompts, self.per_prompt, decoding, uniforms)
        self.writing = _Slice(rows, end, version, pending)

    def samples(self) -> Samples:
        """What has been begun, once it is written."""
        self._take()
        longest = int(self.lengths.max())
        return Samples(
            tokens=self.tokens[:, :longest],
            lengths=self.lengths,
            logprobs=self.logprobs[:, :longest],
            stopped=self.stopped,
            groups=torch.arange(len(self.prompts)).repeat_interleave(self.per_prompt),
            texts=self.texts,
            drawn=self.drawn,
            versions=self.versions[:, :longest],
        )

    def _take(self) -> None:
        """Take over the slice that is being written."""
        if self.writing is None:
            return
        rows, part = self.writing.rows, self.writing.pending.result()
        new = slice(self.reached, part.tokens.shape[1])
        self.tokens[rows, new] = part.tokens[:, new]
        self.logprobs[rows, new] = part.logprobs[:, new]
        self.versions[rows, new] = written_by(part, self.writing.version).versions[:, new]
        self.lengths[rows], self.stopped[rows] = part.lengths, part.stopped
        for row, text in zip(rows.tolist(), part.texts, strict=True):
            self.texts[row] = text
        self.drawn += part.drawn
        self.reached, self.writing = self.writing.end, None

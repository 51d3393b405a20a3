"""The sampler of zerozoo: one prompt pass a group, rows that finish make place, log-probs from the sampling logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zerozoo.language.models import LanguageModel
from zerozoo.language.products import MakeProjection, plain_projection
from zerozoo.language.samplers.decoders import Decoder, make_decoder
from zerozoo.language.samplers.draw import draw
from zerozoo.language.samplers.interface import (
    Decoding,
    Ends,
    Pending,
    Ready,
    Samples,
    check_finite,
    check_prompts,
    cut_at_stop,
)

# Finished rows make place for new prompts, or leave, when at most this share is still being written: reading a prompt
# costs as much as a step of many rows, so a few are read together.
DROP_FINISHED_BELOW = 0.75
# Tokens drawn between two looks at which rows have finished. A look waits for the device.
LOOK_EVERY = {"cpu": 1, "mps": 8, "cuda": 8}


class NativeSampler:
    """Samples with the learner's own weights, so there is nothing to synchronise (traps 13 and 14).

    Args:
        policy: the language model; its weights are read at every call.
        max_rows: most responses written at once, but for the samples of one prompt, which start together. As rows
            finish, the next prompts take their places. It bounds the memory of the cache and changes no result beyond
            rounding, because every response has random numbers of its own.
        project: makes the matrix products of our own decoder, see `decoder.OwnDecoder`.
    """

    def __init__(self, policy: LanguageModel, max_rows: int = 256, project: MakeProjection = plain_projection) -> None:
        self.policy = policy
        self.max_rows = max_rows
        self.project = project

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int,
        decoding: Decoding,
        generator: torch.Generator,
    ) -> Samples:
        """See `Sampler`."""
        check_prompts(prompts)
        return self.write(prompts, samples, decoding, self.uniforms(len(prompts) * samples, decoding, generator))

    def sample_with_greedy(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, generator: torch.Generator
    ) -> tuple[Samples, Samples]:
        """One greedy and one drawn response to each prompt, which is read once for both.

        They are those of two calls of `sample`, the first with temperature 0 and each with one sample, up to rounding.
        """
        check_prompts(prompts)
        uniforms = self.uniforms(len(prompts), decoding, generator).repeat_interleave(2, 0)
        greedy = torch.tensor([True, False]).repeat(len(prompts))
        both = self.write(prompts, 2, decoding, uniforms, greedy=greedy)
        first, second = (_every_second(both, start) for start in (0, 1))
        second.drawn += both.drawn - first.drawn - second.drawn
        return first, second

    def uniforms(self, rows: int, decoding: Decoding, generator: torch.Generator) -> Tensor:
        """(rows, max_new_tokens) float64 random numbers in [0, 1): one for every token that may be drawn."""
        return torch.rand((rows, decoding.max_new_tokens), generator=generator, dtype=torch.float64)

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int,
        decoding: Decoding,
        uniforms: Tensor,
        begun: Tensor | None = None,
    ) -> Pending:
        """See `partial.SliceWriter`: what `write` makes, and at once."""
        return Ready(self.write(prompts, samples, decoding, uniforms, begun))

    @torch.no_grad()
    def write(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int,
        decoding: Decoding,
        uniforms: Tensor,
        begun: Tensor | None = None,
        greedy: Tensor | None = None,
    ) -> Samples:
        """The responses that the given random numbers make, as `uniforms` draws them.

        begun: (prompts, B) int64, the first tokens of responses that have been written already, one of each prompt;
            `samples` must be 1 then. The random numbers of these are not used again, and their log-probs are 0.
        greedy: (prompts * samples,) bool, rows that take the most likely token whatever the decoding says.
        """
        if begun is not None:
            if samples != 1:
                raise ValueError("each response that was begun has a prompt of its own")
            prompts = [[*prompt, *row] for prompt, row in zip(prompts, begun.tolist(), strict=True)]
        new = decoding.max_new_tokens - (0 if begun is None else begun.shape[1])
        training = self.policy.model.training
        self.policy.model.eval()
        # Every row attends over as many places as the longest beside it has, so prompts of like length stand together.
        order = sorted(range(len(prompts)), key=lambda prompt: -len(prompts[prompt]))
        rows = [prompt * samples + sample for prompt in order for sample in range(samples)]
        with self.policy.precision():
            decoder = make_decoder(self.policy, prompts, new, self.project)
            in_order = [prompts[prompt] for prompt in order]
            places = torch.tensor(rows)
            uniforms = uniforms[places]
            begun, greedy = (None if part is None else part[places] for part in (begun, greedy))
            result = _Writing(
                self.policy, decoder, in_order, samples, decoding, uniforms, self.max_rows, begun, greedy
            ).run()
        self.policy.model.train(training)
        return _rows_back(result, places.argsort())


def _rows_back(samples: Samples, places: Tensor) -> Samples:
    """The same responses with row i taken from row `places[i]`; group numbers stay where they are."""
    return Samples(
        tokens=samples.tokens[places],
        lengths=samples.lengths[places],
        logprobs=samples.logprobs[places],
        stopped=samples.stopped[places],
        groups=samples.groups,
        texts=[samples.texts[place] for place in places.tolist()],
        drawn=samples.drawn,
        versions=samples.versions[places],
    )


def _every_second(both: Samples, start: int) -> Samples:
    """The responses of one kind where two kinds take turns."""
    lengths = both.lengths[start::2]
    longest = int(lengths.max())
    return Samples(
        tokens=both.tokens[start::2, :longest],
        lengths=lengths,
        logprobs=both.logprobs[start::2, :longest],
        stopped=both.stopped[start::2],
        groups=both.groups[start::2],
        texts=both.texts[start::2],
    )


class _Writing:
    """All responses of one call.

    `rows` maps the slots of the decoder to the rows of the output, `steps` counts the tokens that each slot has drawn.
    A finished row keeps its slot, and goes on being drawn into a column that nobody reads, until `_renew` gives the
    slot away.
    """

    def __init__(
        self,
        policy: LanguageModel,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        samples: int,
        decoding: Decoding,
        uniforms: Tensor,
        max_rows: int,
        begun: Tensor | None,
        greedy: Tensor | None,
    ) -> None:
        self.policy, self.decoder, self.decoding = policy, decoder, decoding
        self.prompts, self.samples, self.max_rows = prompts, samples, max_rows
        self.device = policy.model.device
        self.look_every = LOOK_EVERY.get(self.device.type, 1)
        self.ends = Ends(policy, decoding)
        rows, self.longest = len(prompts) * samples, decoding.max_new_tokens
        self.uniforms = uniforms.to(self.device)
        self.greedy = None if greedy is None else greedy.to(self.device)
        self.tokens = torch.full((rows, self.longest + 1), policy.pad_id, device=self.device)
        self.logprobs = torch.zeros((rows, self.longest + 1), device=self.device)
        self.lengths = torch.full((rows,), self.longest, device=self.device)
        self.stopped = torch.zeros(rows, dtype=torch.bool, device=self.device)
        self.rows, self.steps, self.latest = (torch.zeros(0, dtype=torch.int64, device=self.device) for _ in range(3))
        self.read = 0  # prompts
        self.drawn = 0  # tokens
        self.begun = 0  # tokens of every row that are part of its prompt
        if begun is not None:
            self.begun = begun.shape[1]
            self.tokens[:, : self.begun] = begun.to(self.device)
        self.unseen = 0  # tokens of each row since the last look
        self.due = 1  # how many there may be

    def run(self) -> Samples:
        self._renew([])
        while len(self.rows):
            logits = self.decoder.advance(self.latest)
            self.latest = self._draw(self.rows, self.steps, logits)
            self.steps = self.steps + 1
            self.unseen += 1
            if self.unseen >= self.due:
                self._renew(self._look())
        return self._result()

    def _draw(self, rows: Tensor, steps: Tensor, logits: Tensor) -> Tensor:
        """Draw the next token of the given rows, which have `steps` tokens already."""
        uniforms = self.uniforms[rows, steps.clamp(max=self.longest - 1)]
        greedy = None if self.greedy is None else self.greedy[rows]
        tokens, logprobs = draw(logits, self.decoding.temperature, self.decoding.top_p, uniforms, greedy)
        columns = steps.clamp(max=self.longest)
        self.tokens[rows, columns] = tokens
        self.logprobs[rows, columns] = logprobs
        self._mark(rows, steps, torch.isin(tokens, self.ends.ids))
        self.drawn += len(tokens)
        return tokens

    def _mark(self, rows: Tensor, places: Tensor, ended: Tensor) -> None:
        """Keep where rows have ended: with the token at that place, unless an earlier one did."""
        counts = ended & (places < self.longest)
        lengths = self.lengths[rows]
        self.lengths[rows] = torch.where(counts, torch.minimum(lengths, places + 1), lengths)
        self.stopped[rows] |= counts

    def _look(self) -> list[bool]:
        """Which slots have finished."""
        if self.ends.strings:
            self._find_strings()
        finished = self.stopped[self.rows] | (self.steps >= self.longest)
        most = torch.where(finished, 0, self.steps).max()
        *flags, most_steps = torch.cat([finished.long(), most[None]]).tolist()
        self.unseen = 0
        self.due = max(1, min(self.look_every, self.longest - most_steps))  # some row reaches its full length then
        return [bool(flag) for flag in flags]

    def _find_strings(self) -> None:
        """Mark the rows in which one of the tokens since the last look has completed a stop string."""
        span = self.ends.tail + self.unseen - 1
        columns = self.steps[:, None] - span + torch.arange(span, device=self.device)
        windows = self.tokens[self.rows[:, None], columns.clamp(0, self.longest)].tolist()
        empty = (span - self.steps).clamp(min=0).tolist()  # places of a window before the first token
        for back in range(self.unseen):
            end = span - back
            tails = [row[max(end - self.ends.tail, skip) : end] for row, skip in zip(windows, empty, strict=True)]
            hits = torch.tensor(self.ends.spelled(tails), device=self.device)
            self._mark(self.rows, self.steps - 1 - back, hits)

    def _renew(self, finished: list[bool]) -> None:
        """Give the slots of finished rows to new prompts, or drop them, once enough have gathered."""
        while True:
            writing = [slot for slot, done in enumerate(finished) if not done]
            waiting = self.read < len(self.prompts)
            if writing and (len(writing) == len(finished) or len(writing) > DROP_FINISHED_BELOW * len(finished)):
                return
            if waiting and not writing:
                if finished:
                    self._keep([])
                finished = self._read_prompts([])
            elif waiting and self.decoder.refills and self.max_rows - len(writing) >= self.samples:
                finished = self._read_prompts([slot for slot, done in enumerate(finished) if done])
            else:
                self._keep(writing)
                return

    def _keep(self, slots: list[int]) -> None:
        kept = torch.tensor(slots, dtype=torch.int64, device=self.device)
        self.rows, self.steps, self.latest = self.rows[kept], self.steps[kept], self.latest[kept]
        self.decoder.keep(slots)

    def _read_prompts(self, free: list[int]) -> list[bool]:
        """Start the next groups in free slots and behind the last one; which slots have finished then."""
        held = len(self.rows)
        groups = max(1, (self.max_rows - held + len(free)) // self.samples)
        prompts = self.prompts[self.read : self.read + groups]
        new = len(prompts) * self.samples
        slots = [*free, *range(held, held + new)][:new]
        places = torch.tensor(slots, device=self.device)
        rows = torch.arange(new, device=self.device) + self.read * self.samples
        starts = range(0, new, self.samples)
        logits = self.decoder.read(prompts, [slots[start : start + self.samples] for start in starts])
        spread = torch.arange(len(prompts), device=self.device).repeat_interleave(self.samples)
        steps = torch.full_like(rows, self.begun)
        tokens = self._draw(rows, steps, logits[spread])
        added = torch.zeros(max(0, max(slots) + 1 - held), dtype=torch.int64, device=self.device)
        self.rows, self.steps, self.latest = (
            torch.cat([old, added]).index_copy(0, places, fresh)
            for old, fresh in ((self.rows, rows), (self.steps, steps + 1), (self.latest, tokens))
        )
        self.read += len(prompts)
        self.unseen = 1
        return self._look()

    def _result(self) -> Samples:
        longest = int(self.lengths.max())
        written = torch.arange(longest, device=self.device) < self.lengths[:, None]
        tokens = self.tokens[:, :longest].masked_fill(~written, self.policy.pad_id).cpu()
        logprobs = self.logprobs[:, :longest].masked_fill(~written, 0.0).cpu()
        check_finite(logprobs)
        lengths = self.lengths.cpu()
        rows = [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
        texts = self.policy.tokenizer.batch_decode(rows, skip_special_tokens=True)
        texts = [cut_at_stop(text, self.decoding.stop_strings) for text in texts]
        groups = torch.arange(len(self.prompts)).repeat_interleave(self.samples)
        return Samples(tokens, lengths, logprobs, self.stopped.cpu(), groups, texts, self.drawn)

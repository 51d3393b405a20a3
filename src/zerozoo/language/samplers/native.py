"""The sampler of zerozoo: preallocated cache, one prompt pass a group, log-probs from the sampling logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zerozoo.language.heads import decoder_hidden, head_logits
from zerozoo.language.models import LanguageModel
from zerozoo.language.samplers.cache import RoomyCache
from zerozoo.language.samplers.draw import draw
from zerozoo.language.samplers.interface import (
    Decoding,
    Ends,
    Samples,
    check_finite,
    check_prompts,
    cut_at_stop,
    join_samples,
    pad_rows,
)

DROP_FINISHED_BELOW = 0.75  # rows are compacted when at most this share is still being written


class NativeSampler:
    """Samples with the learner's own weights, so there is nothing to synchronise (traps 13 and 14).

    Args:
        policy: the language model; its weights are read at every call.
        max_rows: most responses written at once; more are done in waves of whole groups. It bounds the memory of
            the cache and changes no result beyond rounding, because every response has random numbers of its own.
    """

    def __init__(self, policy: LanguageModel, max_rows: int = 256) -> None:
        self.policy = policy
        self.max_rows = max_rows

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

    def uniforms(self, rows: int, decoding: Decoding, generator: torch.Generator) -> Tensor:
        """(rows, max_new_tokens) float64 random numbers in [0, 1): one for every token that may be drawn."""
        return torch.rand((rows, decoding.max_new_tokens), generator=generator, dtype=torch.float64)

    @torch.no_grad()
    def write(self, prompts: Sequence[Sequence[int]], samples: int, decoding: Decoding, uniforms: Tensor) -> Samples:
        """The responses that the given random numbers make, as `uniforms` draws them."""
        training = self.policy.model.training
        self.policy.model.eval()
        per_wave = max(1, self.max_rows // samples)
        waves = []
        for start in range(0, len(prompts), per_wave):
            part = prompts[start : start + per_wave]
            rows = slice(start * samples, (start + len(part)) * samples)
            with self.policy.precision():
                waves.append(_Wave(self.policy, part, samples, decoding, uniforms[rows]).run())
        self.policy.model.train(training)
        return join_samples(waves, self.policy.pad_id)


class _Wave:
    """The responses that are written side by side.

    `live` maps the rows of the model's batch to the rows of the output; it shrinks as responses end.
    """

    def __init__(
        self,
        policy: LanguageModel,
        prompts: Sequence[Sequence[int]],
        samples: int,
        decoding: Decoding,
        uniforms: Tensor,
    ) -> None:
        self.policy, self.decoding, self.samples = policy, decoding, samples
        self.device = policy.model.device
        self.prompts = prompts
        rows, longest = len(prompts) * samples, decoding.max_new_tokens
        self.uniforms = uniforms.to(self.device)
        self.tokens = torch.full((rows, longest), policy.pad_id, device=self.device)
        self.logprobs = torch.zeros((rows, longest), device=self.device)
        self.lengths = torch.full((rows,), longest, device=self.device)
        self.stopped = torch.zeros(rows, dtype=torch.bool, device=self.device)
        self.ends = Ends(policy, decoding)
        self.drawn = 0

    def run(self) -> Samples:
        logits = self._read_prompts()
        for step in range(self.decoding.max_new_tokens):
            tokens, logprobs = draw(
                logits, self.decoding.temperature, self.decoding.top_p, self.uniforms[self.live, step]
            )
            self.drawn += len(tokens)
            self.tokens[self.live, step] = tokens
            self.logprobs[self.live, step] = logprobs
            writing = ~self._ended(step)
            tokens = self._drop_finished(tokens, writing)
            if not len(self.live) or step + 1 == self.decoding.max_new_tokens:
                break
            logits = self._advance(tokens)
        return self._result()

    def _read_prompts(self) -> Tensor:
        """Run every prompt once and spread its cache over the group; (rows, V) logits of the first token."""
        ids, mask = pad_rows(self.prompts, self.policy.pad_id, "left")
        capacity = ids.shape[1] + self.decoding.max_new_tokens
        self.cache = RoomyCache(self.policy.model.config.get_text_config().num_hidden_layers, capacity)
        ids, mask = ids.to(self.device), mask.to(self.device)
        self.positions = (mask.sum(1) - 1).repeat_interleave(self.samples)
        hidden = decoder_hidden(self.policy.model, ids, mask, (mask.cumsum(1) - 1).clamp(min=0), self.cache)[:, -1]
        spread = torch.arange(len(self.prompts), device=self.device).repeat_interleave(self.samples)
        self.cache.take_rows(spread)
        self.mask = mask[spread]
        self.live = torch.arange(len(spread), device=self.device)
        return head_logits(self.policy.model, hidden)[spread]

    def _advance(self, tokens: Tensor) -> Tensor:
        """Feed the tokens just drawn; (live rows, V) logits of the next."""
        self.positions = self.positions + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones((len(self.mask), 1))], 1)
        hidden = decoder_hidden(self.policy.model, tokens[:, None], self.mask, self.positions[:, None], self.cache)[
            :, -1
        ]
        return head_logits(self.policy.model, hidden)

    def _ended(self, step: int) -> Tensor:
        """Which live rows have ended with the token just drawn or before, marking the new ones in the output."""
        done = self.ends.reached(self.tokens[self.live, max(0, step + 1 - self.ends.tail) : step + 1])
        before = self.stopped[self.live]
        ended = self.live[done & ~before]
        self.lengths[ended] = step + 1
        self.stopped[ended] = True
        return done | before

    def _drop_finished(self, tokens: Tensor, writing: Tensor) -> Tensor:
        """Leave finished rows out of the batch once enough of them have gathered."""
        left = int(writing.sum())
        if left and left > DROP_FINISHED_BELOW * len(self.live):
            return tokens
        rows = writing.nonzero()[:, 0]
        self.live, self.positions, self.mask = self.live[rows], self.positions[rows], self.mask[rows]
        self.cache.take_rows(rows)
        return tokens[rows]

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

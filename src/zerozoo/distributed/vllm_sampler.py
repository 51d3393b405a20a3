"""Responses written by vLLM, behind the interface of every sampler: ids in, ids out, log-probs of the drawn tokens.

An engine has weights of its own, so three things can go wrong quietly that cannot with `NativeSampler` (traps 13 and
14): the weights are not delivered, or not all of them, or a cached prefix of the old ones is used again. Therefore
every version of the weights is checked when it arrives: the engine writes a few tokens after a probe prompt that is
longer than a block of its prefix cache, and its log-probs must be those of the learner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from zerozoo.distributed.weights import fingerprints
from zerozoo.language.device import Machine
from zerozoo.language.heads import causal_model
from zerozoo.language.logprobs import Sequences, response_scores
from zerozoo.language.models import LanguageModel
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
from zerozoo.language.staleness import written_by
from zerozoo.runs.errors import UserError

PROBE_TEXT = "Question: What is 12 - 4?\nAnswer: 12 - 4 = 8.\n"
PROBE_TOKENS = 8
PROBE_TEMPERATURE = 0.7  # other than 1, so that log-probs without it would be noticed (trap 10)
# Mean difference of the log-probs of the probe, in nats. SmolLM2-135M has 1e-5 where all products are float32, and 0.05
# with bfloat16 on one side, where only gross mistakes are found.
TOLERANCE = {"float32": 3e-4, "bfloat16": 0.25}
LEAST_TEMPERATURE = 0.01  # vLLM raises what is lower, 0 apart


@dataclass(frozen=True)
class Request:
    """A row to write on.

    Attributes:
        tokens: prompt and what has been written of the response.
        seed: of this row's random numbers.
        most: tokens to write.
    """

    tokens: list[int]
    seed: int
    most: int


@dataclass(frozen=True)
class Written:
    """What an engine has written: the ids as drawn, their log-probs at the temperature, and whether it stopped by
    itself, at a stop id or behind a stop string."""

    tokens: list[int]
    logprobs: list[float]
    stopped: bool


class Engine(Protocol):
    """What `VllmSampler` needs of an inference engine.

    Attributes:
        room: longest prompt and response together.
        block: tokens of a block of the prefix cache.
        dtype: of its weights, "float32" or "bfloat16".
    """

    room: int
    block: int
    dtype: str

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take the weights, under the names of transformers, and forget every cached prefix."""

    def write(
        self, requests: Sequence[Request], temperature: float, stop_ids: Sequence[int], stop_strings: Sequence[str]
    ) -> list[Written]:
        """One row a request. Temperature 0 is greedy, with log-probs at 1."""


@dataclass
class _Row:
    """A response while it is written."""

    prompt: list[int]
    seed: int
    most: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False

    @property
    def done(self) -> bool:
        return self.stopped or len(self.tokens) >= self.most

    def request(self) -> Request:
        written = len(self.tokens)
        return Request([*self.prompt, *self.tokens], self.seed + written, self.most - written)

    def add(self, written: Written, ends: Ends) -> None:
        """Take what the engine wrote, up to where our own rule ends the response."""
        before = len(self.tokens)
        self.tokens += written.tokens
        self.logprobs += written.logprobs
        end = first_end(ends, self.tokens, before)
        if end is not None:
            self.tokens, self.logprobs, self.stopped = self.tokens[:end], self.logprobs[:end], True


class VllmSampler:
    """Samples with an engine of its own, which gets the policy's weights.

    The loop publishes every new version of the weights; where nobody does, `sample` sees that they have changed and
    numbers them itself. Every row has a seed of its own, from the learner's generator, so a response does not depend
    on the rows beside it beyond the rounding of the products.

    Args:
        policy: the language model whose weights are sampled from.
        make_engine: called at the first use, when the policy has all its layers.
    """

    def __init__(self, policy: LanguageModel, make_engine: Callable[[], Engine]) -> None:
        self.policy = policy
        self.make_engine = make_engine
        self.version = -1  # of the engine's weights; -1: it has none
        self._engine: Engine | None = None
        self._loaded: dict[str, int] = {}

    def sample(
        self, prompts: Sequence[Sequence[int]], samples: int, decoding: Decoding, generator: torch.Generator
    ) -> Samples:
        """See `Sampler`. Raises UserError for what vLLM cannot do, and when the probe shows other weights."""
        check_prompts(prompts)
        return self.write(prompts, samples, decoding, self.uniforms(len(prompts) * samples, decoding, generator))

    def submit(
        self, prompts: Sequence[Sequence[int]], samples: int, decoding: Decoding, generator: torch.Generator
    ) -> Pending:
        """See `AsyncSampler`. The engine lives in this process, so the responses are written at once."""
        return Ready(self.sample(prompts, samples, decoding, generator))

    def publish(self, version: int) -> None:
        """See `AsyncSampler`: give the engine the weights, and have them checked."""
        engine = self._engine = self._engine or self.make_engine()
        self._loaded = {}  # nothing that may be written with, until it is checked
        engine.load(full_weights(self.policy))
        self.version = version
        self._check(engine)
        self._loaded = fingerprints(self.policy.model)

    def uniforms(self, rows: int, decoding: Decoding, generator: torch.Generator) -> Tensor:
        """(rows, 1) float64 random numbers in [0, 1): one a row, from which its seed is made."""
        return torch.rand((rows, 1), generator=generator, dtype=torch.float64)

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

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int,
        decoding: Decoding,
        uniforms: Tensor,
        begun: Tensor | None = None,
    ) -> Samples:
        """The responses that the given random numbers make, as `uniforms` or that of `NativeSampler` draws them.

        begun: see `NativeSampler.write`.
        """
        _check_decoding(decoding)
        if begun is not None and samples != 1:
            raise ValueError("each response that was begun has a prompt of its own")
        if self._loaded != fingerprints(self.policy.model):
            self.publish(self.version + 1)
        engine = self._engine
        assert engine is not None
        ends = Ends(self.policy, decoding)
        rows = []
        for index, seed in enumerate((uniforms[:, 0] * 2**53).long().tolist()):
            prompt, first = list(prompts[index // samples]), [] if begun is None else begun[index].tolist()
            if len(prompt) + len(first) >= engine.room:
                raise UserError(f"A prompt has {len(prompt)} tokens, but the model has room for {engine.room} in all.")
            most = min(decoding.max_new_tokens, engine.room - len(prompt))
            rows.append(_Row(prompt, seed, most, first, [0.0] * len(first)))
        drawn = 0
        # A row comes round again only where the engine saw a stop string that is none by our rule.
        while waiting := [row for row in rows if not row.done]:
            written = engine.write(
                [row.request() for row in waiting], decoding.temperature, ends.ids.tolist(), _texts_to_stop(ends)
            )
            for row, more in zip(waiting, written, strict=True):
                drawn += len(more.tokens)
                row.add(more, ends)
        return written_by(self._samples(rows, samples, decoding, drawn), self.version)

    def _samples(self, rows: list[_Row], samples: int, decoding: Decoding, drawn: int) -> Samples:
        longest = max(len(row.tokens) for row in rows)
        tokens = torch.full((len(rows), longest), self.policy.pad_id)
        logprobs = torch.zeros((len(rows), longest))
        for index, row in enumerate(rows):
            tokens[index, : len(row.tokens)] = torch.tensor(row.tokens)
            logprobs[index, : len(row.tokens)] = torch.tensor(row.logprobs)
        check_finite(logprobs)
        texts = self.policy.tokenizer.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        return Samples(
            tokens=tokens,
            lengths=torch.tensor([len(row.tokens) for row in rows]),
            logprobs=logprobs,
            stopped=torch.tensor([row.stopped for row in rows]),
            groups=torch.arange(len(rows) // samples).repeat_interleave(samples),
            texts=[cut_at_stop(text, decoding.stop_strings) for text in texts],
            drawn=drawn,
        )

    @torch.no_grad()
    def _check(self, engine: Engine) -> None:
        """UserError unless engine and learner give the probe the same log-probs."""
        prompt = probe_prompt(self.policy, engine)
        (probe,) = engine.write([Request(prompt, self.version, PROBE_TOKENS)], PROBE_TEMPERATURE, (), ())
        training = self.policy.model.training
        self.policy.model.eval()
        with self.policy.precision():
            rows = Sequences([prompt], [probe.tokens])
            learner = response_scores(self.policy.model, rows, PROBE_TEMPERATURE).logprobs.cpu()
        self.policy.model.train(training)
        check_finite(learner)
        difference = float((learner - torch.tensor(probe.logprobs)).abs().mean())
        allowed = tolerance(self.policy, engine)
        if not difference <= allowed:  # NaN is not either
            raise UserError(
                f"vLLM does not have the learner's weights of version {self.version}: the log-probs of a probe differ"
                f" by {difference:.2g} on average, more than the {allowed:g} that rounding explains; use --sampler"
                " native, and please report it."
            )


def full_weights(policy: LanguageModel) -> Iterator[tuple[str, Tensor]]:
    """The policy's weights under the names of the plain model, adapters folded in, tied ones once."""
    model = causal_model(policy.model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        weight = parameter.detach()
        if name.endswith(".base_layer.weight"):
            layer = model.get_submodule(name.removesuffix(".base_layer.weight"))
            for adapter in layer.active_adapters:
                weight = weight + layer.get_delta_weight(adapter).detach()
        yield name.replace(".base_layer.", "."), weight


def first_end(ends: Ends, tokens: list[int], start: int) -> int | None:
    """How many of the tokens a response has that ends by the rule `ends`, looking from `start` on; None if it goes on.

    A text grows with its tokens, so the token that completes a stop string is found by halving.
    """
    stop_ids = set(ends.ids.tolist())
    by_id = next((place + 1 for place in range(start, len(tokens)) if tokens[place] in stop_ids), None)
    if not ends.strings or not ends.spelled([tokens])[0]:
        return by_id
    low, high = start + 1, len(tokens)
    while low < high:
        middle = (low + high) // 2
        if ends.spelled([tokens[:middle]])[0]:
            high = middle
        else:
            low = middle + 1
    return low if by_id is None else min(low, by_id)


def probe_prompt(policy: LanguageModel, engine: Engine) -> list[int]:
    """Longer than a block of the prefix cache, where the model has room for that."""
    text = policy.encode(PROBE_TEXT)
    wanted = max(len(text), engine.block + 1)
    repeated = text * (wanted // len(text) + 1)
    return repeated[: min(wanted, engine.room - PROBE_TOKENS)]


def tolerance(policy: LanguageModel, engine: Engine) -> float:
    """What rounding explains, from the less precise side."""
    narrow = engine.dtype != "float32" or policy.autocast is not None
    return TOLERANCE["bfloat16" if narrow or torch.get_float32_matmul_precision() != "highest" else "float32"]


def make_vllm_sampler(policy: LanguageModel, machine: Machine) -> VllmSampler:
    """A sampler whose engine stands beside the learner.

    Raises UserError where vLLM is not installed, and for weights that are kept in parts.
    """
    from zerozoo.distributed import vllm_engine

    vllm_engine.check_installed()
    if policy.outline is not None:
        raise UserError("--shard and --sampler vllm go together with --backend ray alone, where workers have vLLM.")
    dtype = machine.autocast or "float32"
    device = policy.model.device.type
    return VllmSampler(policy, lambda: vllm_engine.VllmEngine(policy, dtype, machine.rows_at_once, device))


def _texts_to_stop(ends: Ends) -> list[str]:
    """Stop strings but for those that are special tokens, which count as ids."""
    special = {token.content for token in ends.tokenizer.added_tokens_decoder.values() if token.special}
    return [stop for stop in ends.strings if stop not in special]


def _check_decoding(decoding: Decoding) -> None:
    if decoding.top_p < 1:
        raise UserError(f"The vllm sampler draws from the whole distribution: top_p is {decoding.top_p}, take 1.")
    if 0 < decoding.temperature < LEAST_TEMPERATURE:
        raise UserError(
            f"vLLM takes temperatures from {LEAST_TEMPERATURE} on, or 0 for greedy, not {decoding.temperature}."
        )

"""An inference engine of a few lines that stands in for vLLM, and can be told to go wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from zerozoo.distributed.vllm_sampler import Request, Written
from zerozoo.language.models import LanguageModel


class FakeEngine:
    """Writes with a copy of the policy, one token after the other, and calls a stop whatever `stops` says.

    `deaf` loads nothing; `cached` keeps the log-probs of every first token for good, as a stale prefix cache would.
    """

    def __init__(self, policy: LanguageModel, room: int = 200) -> None:
        self.copy = copy.deepcopy(policy)
        self.room, self.block, self.dtype = room, 16, "float32"
        self.loads = 0
        self.asked: list[list[Request]] = []
        self.deaf = self.raw = False
        self.known: dict[tuple[int, ...], Tensor] | None = None
        self.stops: Callable[[list[int]], bool] = lambda tokens: False

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self.loads += 1
        if not self.deaf:
            own = dict(self.copy.model.named_parameters())
            given = dict(weights)
            assert given.keys() == own.keys()
            with torch.no_grad():
                for name, weight in given.items():
                    own[name].copy_(weight)

    def write(
        self, requests: Sequence[Request], temperature: float, stop_ids: Sequence[int], stop_strings: Sequence[str]
    ) -> list[Written]:
        self.asked.append(list(requests))
        return [self._row(request, temperature, stop_ids) for request in requests]

    @torch.no_grad()
    def _row(self, request: Request, temperature: float, stop_ids: Sequence[int]) -> Written:
        tokens, logprobs = [], []
        generator = torch.Generator().manual_seed(request.seed)
        while len(tokens) < request.most:
            ids = (*request.tokens, *tokens)
            logits = self._logits(ids)
            table = (logits / (1.0 if self.raw else temperature or 1.0)).log_softmax(-1)
            token = int(logits.argmax())
            if temperature:
                token = int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
            tokens.append(token)
            logprobs.append(float(table[token]))
            if token in stop_ids or self.stops(tokens):
                return Written(tokens, logprobs, True)
        return Written(tokens, logprobs, False)

    def _logits(self, ids: tuple[int, ...]) -> Tensor:
        if self.known is not None and ids in self.known:
            return self.known[ids]
        logits = self.copy.model(torch.tensor([ids])).logits[0, -1]
        if self.known is not None:
            self.known[ids] = logits
        return logits

"""Log-probs of written responses under a policy: in micro-batches, shared among processes, computed once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from zerozoo.language.batches import prepare
from zerozoo.language.logprobs import Sequences, TokenScores, response_scores, split_by_tokens
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import ALONE, Ranks
from zerozoo.losses.sequence_policy import row_sums
from zerozoo.runs.checkpoints import replace_file
from zerozoo.runs.run import Run


@dataclass(frozen=True)
class Scorer:
    """Scores responses under the policy's current weights.

    Attributes:
        policy: the model.
        tokens_per_microbatch: most padded tokens in a forward pass; changes memory, not the numbers.
        packed: rows of a micro-batch behind one another without padding; they do not see each other either way.
        ranks: the processes that share the work.
    """

    policy: LanguageModel
    tokens_per_microbatch: int = 2048
    packed: bool = False
    ranks: Ranks = ALONE

    def tokens(self, sequences: Sequences) -> TokenScores:
        """Log-prob and entropy of every response token, (M,) row after row, in one forward pass."""
        with self.policy.precision():
            return response_scores(self.policy.model, sequences, packed=self.packed)

    def responses(self, sequences: Sequences) -> Tensor:
        """(N,) log-probs of whole responses, the sums over their tokens, in one forward pass."""
        logprobs = self.tokens(sequences).logprobs
        return row_sums(logprobs, response_lengths(sequences).to(logprobs.device))

    @torch.no_grad()
    def all_responses(self, sequences: Sequences) -> Tensor:
        """(N,) float64 log-probs of any number of responses, on the CPU; no gradient, no dropout (trap 16)."""
        prepare(self.policy.model)
        result = torch.zeros(len(sequences.prompts), dtype=torch.float64)  # whatever the model is in
        mine = list(range(len(result)))[self.ranks.rank :: self.ranks.size]
        lengths = sequences.lengths
        for batch in split_by_tokens([lengths[row] for row in mine], self.tokens_per_microbatch):
            rows = [mine[place] for place in batch]
            result[rows] = self.responses(take(sequences, rows)).cpu().double()
        self.ranks.add([result])
        return result


def take(sequences: Sequences, rows: Sequence[int]) -> Sequences:
    """The given rows, in the order given."""
    return Sequences([sequences.prompts[row] for row in rows], [sequences.responses[row] for row in rows])


def response_lengths(sequences: Sequences) -> Tensor:
    """(N,) int64 tokens of each response."""
    return torch.tensor([len(response) for response in sequences.responses], dtype=torch.int64)


def fingerprint(*parts: object) -> str:
    """Digest of anything that JSON can hold (tuples count as lists): tells whether data is what it was."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def kept_logprobs(run: Run, name: str, scorer: Scorer, sequences: Sequences) -> Tensor:
    """(N,) log-probs of the responses, computed once and kept in the run directory as NAME.safetensors.

    For a frozen reference that is the policy before its first update: no second copy of the weights is needed, and a
    resumed run has the same numbers. Call it before the policy is trained or restored from a checkpoint. Kept numbers
    of other data are computed anew.
    """
    path = run.path(f"{name}.safetensors")
    data = fingerprint(sequences.prompts, sequences.responses)

    def known() -> Tensor | None:
        if not path.exists():
            return None
        with safe_open(path, "pt") as file:
            return file.get_tensor("logprobs") if file.metadata().get("data") == data else None

    kept = scorer.ranks.from_first(known)
    if kept is not None:
        return kept
    logprobs = scorer.all_responses(sequences)
    if run.writes:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, save({"logprobs": logprobs}, metadata={"data": data}))
    return logprobs

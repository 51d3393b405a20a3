"""Learning from preferences without a reward model: objectives for the supervised loop.

The reference is the policy before its first update; its log-probs are computed once and kept (`scoring.kept_logprobs`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zerozoo.language.example_files import sequences_of
from zerozoo.language.logprobs import Sequences
from zerozoo.language.preference_data import Judged, Pair, chosen_first
from zerozoo.language.scoring import Scorer, fingerprint, response_lengths, take
from zerozoo.language.supervised import Share
from zerozoo.losses.preferences import Pairs, dpo, dpo_length_normalised, ipo, kto, kto_reference_point
from zerozoo.runs.errors import UserError

PairLoss = Callable[[Pairs, Tensor, Tensor], Tensor]  # (log-probs, lengths of chosen, of rejected (P,)) -> (P,)


def dpo_loss(beta: float, length_normalised: bool = False) -> PairLoss:
    """DPO, or its form with log-ratios per token as in Tulu 3; see `losses.preferences`."""
    if length_normalised:
        return lambda pairs, chosen, rejected: dpo_length_normalised(pairs, chosen, rejected, beta)
    return lambda pairs, chosen, rejected: dpo(pairs, beta)


def ipo_loss(tau: float) -> PairLoss:
    """IPO; see `losses.preferences`."""
    return lambda pairs, chosen, rejected: ipo(pairs, tau)


class PairPreferences:
    """Mean of a preference loss over the pairs of a batch. Items are pairs.

    Args:
        scorer: of the policy.
        pairs: the data.
        reference: (2P,) log-probs of `chosen_first(pairs)` under the frozen reference.
        loss: what is minimised for each pair.
    """

    def __init__(self, scorer: Scorer, pairs: Sequence[Pair], reference: Tensor, loss: PairLoss) -> None:
        self.scorer, self.pairs, self.loss = scorer, pairs, loss
        self.sequences = chosen_first(pairs)
        self.lengths = response_lengths(self.sequences)
        if reference.shape != self.lengths.shape:
            raise ValueError(f"{len(pairs)} pairs need {2 * len(pairs)} reference log-probs, not {len(reference)}")
        self.reference = reference

    def __len__(self) -> int:
        return len(self.pairs)

    def cost(self, item: int) -> int:
        pair = self.pairs[item]
        return 2 * (len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) - 1)

    def prepare(self, items: Sequence[int]) -> float:
        """The weight of every pair."""
        return 1 / len(items)

    def share(self, items: Sequence[int], whole: Any) -> Share:
        rows = torch.tensor([*items, *(len(self.pairs) + item for item in items)])
        logprobs = self.scorer.responses(take(self.sequences, rows.tolist()))
        reference = self.reference[rows].to(logprobs)
        chosen_lengths, rejected_lengths = self.lengths[rows].to(logprobs.device).chunk(2)
        pairs = Pairs(*logprobs.chunk(2), *reference.chunk(2))
        loss = self.loss(pairs, chosen_lengths, rejected_lengths)
        return Share(whole * loss.sum(), {name: whole * value.sum() for name, value in _pair_metrics(pairs).items()})

    def fingerprint(self) -> str:
        return fingerprint(self.sequences.prompts, self.sequences.responses)


def _pair_metrics(pairs: Pairs) -> dict[str, Tensor]:
    """(P,) per pair. Both log-probs may fall while the margin grows: the changes and `both_fell` show it."""
    chosen, rejected = (ratio.detach() for ratio in pairs.log_ratios())
    return {
        "preference/margin": chosen - rejected,
        "preference/accuracy": (chosen > rejected).float(),
        "preference/chosen_logprob": pairs.chosen.detach(),
        "preference/rejected_logprob": pairs.rejected.detach(),
        "preference/chosen_change": chosen,
        "preference/rejected_change": rejected,
        "preference/both_fell": ((chosen < 0) & (rejected < 0)).float(),
    }


class _KTOBatch(NamedTuple):
    point: Tensor
    up: int
    down: int


class UnpairedPreferences:
    """KTO: mean over the responses of a batch, each with a thumb up or down. Items are responses.

    The reference point of a batch is estimated from responses to other prompts. Each item's partner is drawn once, so
    that the reference log-probs of these mismatched rows can be kept, too; the paper takes a neighbour in the batch.

    Args:
        scorer: of the policy.
        judged: the data.
        rows: (2N) what `with_mismatched` makes of them.
        reference: (2N,) log-probs of these rows under the frozen reference.
        beta: how much the reference holds the policy.
        weights: of desirable and undesirable responses; see `balanced_weights`.
    """

    def __init__(
        self,
        scorer: Scorer,
        judged: Sequence[Judged],
        rows: Sequences,
        reference: Tensor,
        beta: float,
        weights: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self.scorer, self.beta, self.weights, self.sequences = scorer, beta, weights, rows
        self.desirable = torch.tensor([one.desirable for one in judged])
        if not 2 * len(judged) == len(rows.prompts) == len(reference):
            raise ValueError(f"{len(judged)} responses need {2 * len(judged)} rows and as many reference log-probs")
        self.reference = reference

    def __len__(self) -> int:
        return len(self.desirable)

    def cost(self, item: int) -> int:
        return len(self.sequences.prompts[item]) + len(self.sequences.responses[item]) - 1

    def prepare(self, items: Sequence[int]) -> _KTOBatch:
        """The reference point of the batch, and how many items of each kind it has."""
        rows = [len(self) + item for item in items]
        mismatched = self.scorer.all_responses(take(self.sequences, rows))
        point = kto_reference_point(mismatched, self.reference[torch.tensor(rows)])
        up = int(self.desirable[torch.tensor(list(items))].sum())
        return _KTOBatch(point, up, len(items) - up)

    def share(self, items: Sequence[int], whole: Any) -> Share:
        batch: _KTOBatch = whole
        rows = torch.tensor(list(items))
        logprobs = self.scorer.responses(take(self.sequences, items))
        reference, desirable = self.reference[rows].to(logprobs), self.desirable[rows].to(logprobs.device)
        point, weight = batch.point.to(logprobs), 1 / (batch.up + batch.down)
        loss = kto(logprobs, reference, desirable, point, self.beta, *self.weights)
        metrics = {"preference/reference_point": weight * len(items) * point}
        for name, kind, number in (("desirable", desirable, batch.up), ("undesirable", ~desirable, batch.down)):
            if number:
                metrics[f"preference/{name}_logprob"] = logprobs.detach()[kind].sum() / number
                metrics[f"preference/{name}_change"] = (logprobs - reference).detach()[kind].sum() / number
        return Share(weight * loss.sum(), metrics)

    def fingerprint(self) -> str:
        return fingerprint(self.sequences.prompts, self.sequences.responses, self.desirable.tolist())


def with_mismatched(judged: Sequence[Judged], pool: Sequence[Judged], seed: int) -> Sequences:
    """2N rows: the responses with their prompts, then every prompt with a response of the pool to another prompt.

    Raises:
        UserError: the pool answers no other prompt.
    """
    draw = random.Random(f"mismatched/{seed}")
    partners = []
    for one in judged:
        if all(other.prompt == one.prompt for other in pool):
            raise UserError("KTO needs examples of at least two different prompts.")
        partner = draw.choice(pool)
        while partner.prompt == one.prompt:
            partner = draw.choice(pool)
        partners.append(partner.response)
    own = sequences_of(judged)
    return Sequences([*own.prompts, *own.prompts], [*own.responses, *partners])


def balanced_weights(judged: Sequence[Judged], desirable: float, undesirable: float) -> tuple[float, float]:
    """Weights of the two kinds; 0 for `undesirable` lets both kinds weigh the same: w_D n_D = w_U n_U.

    Raises:
        UserError: that is asked for and one kind is missing.
    """
    if undesirable:
        return desirable, undesirable
    up = sum(one.desirable for one in judged)
    if up in (0, len(judged)):
        raise UserError("All examples are of one kind, so they cannot be balanced: give undesirable_weight.")
    return desirable, desirable * up / (len(judged) - up)

"""What reward models learn from: objectives for the supervised loop. Their model is the `RewardModel` itself.

All scores in these losses are raw; the normaliser is fitted afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zerozoo.language.example_files import Example, sequences_of
from zerozoo.language.preference_data import Pair, chosen_first
from zerozoo.language.reward_models import RewardModel
from zerozoo.language.scoring import fingerprint, response_lengths, take
from zerozoo.language.supervised import Share
from zerozoo.losses.preferences import bradley_terry, outcome_loss, token_outcome_loss
from zerozoo.runs.errors import UserError

LabelLoss = Callable[[Tensor, Tensor], Tensor]  # (scores, labels (L,)) -> (L,)


def squared_error(scores: Tensor, labels: Tensor) -> Tensor:
    """l = (s - y)^2 / 2, for scores that are to equal a number: a quality, a value of a partial solution."""
    return (scores - labels).square() / 2


class PairwiseReward:
    """L = mean over pairs of -log sigma(r+ - r-) + regulariser (r+^2 + r-^2) / 2. Items are pairs.

    Args:
        model: the reward model.
        pairs: the data.
        regulariser: weight of the squared scores, which keeps their free constant near 0 (0.001 in rm-ensembles).
    """

    def __init__(self, model: RewardModel, pairs: Sequence[Pair], regulariser: float = 0.0) -> None:
        self.model, self.pairs, self.regulariser = model, pairs, regulariser
        self.sequences = chosen_first(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def cost(self, item: int) -> int:
        return 2 * self.pairs[item].tokens

    def prepare(self, items: Sequence[int]) -> float:
        """The weight of every pair."""
        return 1 / len(items)

    def share(self, items: Sequence[int], whole: Any) -> Share:
        rows = [*items, *(len(self.pairs) + item for item in items)]
        chosen, rejected = self.model(take(self.sequences, rows)).chunk(2)
        loss = bradley_terry(chosen, rejected) + self.regulariser * (chosen.square() + rejected.square()) / 2
        gap = (chosen - rejected).detach()
        metrics = {
            "reward/accuracy": (gap > 0).float(),
            "reward/gap": gap,
            "reward/score": (chosen + rejected).detach() / 2,
        }
        return Share(whole * loss.sum(), {name: whole * value.sum() for name, value in metrics.items()})

    def fingerprint(self) -> str:
        return fingerprint(self.sequences.prompts, self.sequences.responses)


@dataclass(frozen=True)
class Labelled(Example):
    """A response with labels at some of its tokens.

    Attributes:
        places: tokens of the response, counted from 0: the last one for an outcome, the last of each step for a
            process, all of them for labels of tokens.
        labels: one number for each place.

    Raises UserError for places outside of the response, or numbers that do not match.
    """

    places: list[int]
    labels: list[float]

    def __post_init__(self) -> None:
        if len(self.places) != len(self.labels) or not self.places:
            raise UserError(f"A labelled response needs one label for each place: {self.places} and {self.labels}.")
        if min(self.places) < 0 or max(self.places) >= len(self.response):
            raise UserError(f"The places {self.places} are not all tokens of a response of {len(self.response)}.")


def outcome_label(prompt: list[int], response: list[int], label: float) -> Labelled:
    """A label of the whole response, learned at its last token."""
    return Labelled(prompt, response, [len(response) - 1], [label])


class LabelledReward:
    """Mean of a loss over all labels of a batch: pointwise, step-level and token-level. Items are responses.

    Args:
        model: the reward model.
        data: the labelled responses.
        loss: `outcome_loss` for labels between 0 and 1 (the score is a logit), `squared_error` for numbers.
    """

    def __init__(self, model: RewardModel, data: Sequence[Labelled], loss: LabelLoss) -> None:
        self.model, self.data, self.loss = model, data, loss
        self.sequences = sequences_of(data)

    def __len__(self) -> int:
        return len(self.data)

    def cost(self, item: int) -> int:
        return self.data[item].tokens

    def prepare(self, items: Sequence[int]) -> float:
        """The weight of every label."""
        return 1 / sum(len(self.data[item].labels) for item in items)

    def share(self, items: Sequence[int], whole: Any) -> Share:
        sequences = take(self.sequences, items)
        scores = self.model.token_scores(sequences)
        lengths = response_lengths(sequences)
        starts = (lengths.cumsum(0) - lengths).tolist()
        data = [self.data[item] for item in items]
        places = [start + place for start, one in zip(starts, data, strict=True) for place in one.places]
        scores = scores[torch.tensor(places, device=scores.device)]
        labels = torch.tensor([label for one in data for label in one.labels]).to(scores)
        loss = self.loss(scores, labels)
        detached = scores.detach()
        metrics = {"reward/score": detached, "reward/label": labels}
        if self.loss is outcome_loss:
            metrics["reward/accuracy"] = ((detached > 0) == (labels > 0.5)).to(scores)
        return Share(whole * loss.sum(), {name: whole * value.sum() for name, value in metrics.items()})

    def fingerprint(self) -> str:
        labels = [[one.places, one.labels] for one in self.data]
        return fingerprint(self.sequences.prompts, self.sequences.responses, labels)


class TokenOutcomeReward:
    """Rewards of tokens learned from outcomes alone: BCE of the mean score of a response's tokens. Items are responses.

    Source: `losses.preferences.token_outcome_loss` (OREAL).

    Args:
        model: the reward model, with a head of zeros in the paper.
        examples: the responses.
        outcomes: 1 for right, 0 for wrong.
    """

    def __init__(self, model: RewardModel, examples: Sequence[Example], outcomes: Sequence[float]) -> None:
        self.model, self.sequences = model, sequences_of(examples)
        self.outcomes = torch.tensor(outcomes, dtype=torch.float32)
        if len(self.outcomes) != len(examples):
            raise ValueError(f"{len(examples)} responses but {len(self.outcomes)} outcomes")

    def __len__(self) -> int:
        return len(self.outcomes)

    def cost(self, item: int) -> int:
        return len(self.sequences.prompts[item]) + len(self.sequences.responses[item])

    def prepare(self, items: Sequence[int]) -> float:
        """The weight of every response."""
        return 1 / len(items)

    def share(self, items: Sequence[int], whole: Any) -> Share:
        sequences = take(self.sequences, items)
        flat = self.model.token_scores(sequences)
        lengths = response_lengths(sequences).to(flat.device)
        written = torch.arange(int(lengths.max()), device=flat.device) < lengths[:, None]
        scores = flat.new_zeros(written.shape).masked_scatter(written, flat)
        outcomes = self.outcomes[torch.tensor(list(items))].to(flat)
        loss = token_outcome_loss(scores, lengths, outcomes)
        means = (scores.sum(1) / lengths).detach()
        right = ((means > 0) == (outcomes > 0.5)).to(flat)
        return Share(whole * loss.sum(), {"reward/accuracy": whole * right.sum(), "reward/score": whole * means.sum()})

    def fingerprint(self) -> str:
        return fingerprint(self.sequences.prompts, self.sequences.responses, self.outcomes.tolist())

"""Credit for episodes of several turns: every turn answers for its own reward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zerozoo.language.credit import Credit
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.turns import TurnRollouts
from zerozoo.losses.turns import progress_bonus, turn_advantages


@dataclass(frozen=True)
class TurnPhase:
    """What counts in a part of a training.

    Attributes:
        reward_weights: of the rewards of each turn, K of them; 0: the turn is not paid.
        kl_weights: factors on the KL coefficient at the tokens of each turn.
        alpha: weight of the progress bonus, see `losses.turns`.
    """

    reward_weights: tuple[float, ...]
    kl_weights: tuple[float, ...]
    alpha: float = 0.0


class TurnCredit(Credit):
    """Advantages by turn from the rewards of turns, in two phases.

    Args:
        first: holds up to step `first_steps`; what comes after is `second`.
        whiten: each turn's advantages are divided by their deviation over the batch.
    """

    def __init__(self, first: TurnPhase, second: TurnPhase, first_steps: int, whiten: bool = False) -> None:
        self.first, self.second, self.first_steps, self.whiten = first, second, first_steps, whiten

    def phase(self, step: int) -> TurnPhase:
        """The phase of a step, counted from 1."""
        return self.first if step <= self.first_steps else self.second

    def give(self, rollouts: Rollouts, kl: Tensor | None, coefficient: float) -> Tensor:
        """(N, T). Without a baseline from other turns; the KL of a turn lowers the reward of that turn alone."""
        drawn, phase = _turns(rollouts), self.phase(rollouts.step)
        rewards = progress_bonus(drawn.turn_rewards, phase.alpha) * torch.tensor(phase.reward_weights)
        if kl is not None:
            rewards = rewards - coefficient * drawn.turn_sums(kl) * torch.tensor(phase.kl_weights)
        return drawn.spread(turn_advantages(rewards, drawn.groups, self.whiten))

    def kl_weights(self, rollouts: Rollouts) -> Tensor:
        """See `Credit`."""
        drawn = _turns(rollouts)
        return drawn.spread(torch.tensor(self.phase(drawn.step).kl_weights).expand_as(drawn.turn_rewards))


def _turns(rollouts: Rollouts) -> TurnRollouts:
    """Raises ValueError for rollouts without turns."""
    if not isinstance(rollouts, TurnRollouts):
        raise ValueError("credit by turn needs episodes of several turns")
    return rollouts

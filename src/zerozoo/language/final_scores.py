"""The score of a whole response: verdict, learned reward, and what a missing end costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zerozoo.language.rollouts import Rollouts


@dataclass(frozen=True)
class FinalScore:
    """s_i = scale r_i + weight learned_i where the response has ended, `cut` where it has not; r_i is the verdict's.

    `cut` REPLACES the score: a right answer that was cut off may earn less than a wrong one with an end. It is an
    `ExtraReward` of the zero-RL loop: it gives s - r, which the loop adds to r.

    Source: Tulu 3, arXiv 2411.15124, section 6 (scale 10, cut -10, weight 0 in the final runs).

    Attributes:
        cut: score of a response that was cut off at the length limit.
        learned: (rollouts) -> (N,) scores of a reward model; needed with a weight.
    """

    scale: float = 1.0
    cut: float = 0.0
    weight: float = 0.0
    learned: Callable[[Rollouts], Tensor] | None = None

    def __call__(self, rollouts: Rollouts) -> Tensor:
        scores = self.scale * rollouts.rewards
        if self.weight and self.learned is not None:
            scores = scores + self.weight * self.learned(rollouts)
        scores = torch.where(rollouts.samples.stopped, scores, torch.full_like(scores, self.cut))
        return scores - rollouts.rewards

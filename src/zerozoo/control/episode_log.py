"""The on-policy loop of a study: every episode is a point of the metrics, and the value's target can be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from zerozoo.control.on_policy import Minibatch, OnPolicy, OnPolicyLoop
from zerozoo.environments.vector import EnvMaker, Step, VecEnv
from zerozoo.losses.traces import n_step_returns
from zerozoo.runs.errors import UserError

EPISODE = "charts/episodic_return"  # CleanRL's name for it
TARGETS = ("td-lambda", "monte-carlo")


class RecordedVecEnv(VecEnv):
    """Gymnasium environments that keep the steps they made until `steps` is cleared."""

    def __init__(self, makers: Sequence[EnvMaker], generator: np.random.Generator) -> None:
        super().__init__(makers, generator)
        self.steps: list[Step] = []

    def step(self, action: np.ndarray) -> Step:
        self.steps.append(super().step(action))
        return self.steps[-1]


@dataclass(kw_only=True, eq=False)
class EpisodeLogLoop(OnPolicyLoop):
    """See `OnPolicyLoop`. Each episode's return is logged under EPISODE, at the step at which the episode ended.

    Attributes:
        value_target: td-lambda: advantage + value; monte-carlo: the rewards to the end of the episode or of the
            rollout, then the value of the true successor. The advantages are the same. UserError for anything else.
    """

    environment: RecordedVecEnv
    value_target: str = "td-lambda"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value_target not in TARGETS:
            raise UserError(f"value_target must be one of {', '.join(TARGETS)}, not {self.value_target!r}.")

    def advance(self, step: int) -> int:
        self.environment.steps.clear()
        after = super().advance(step)
        for number, made in enumerate(self.environment.steps, start=1):
            for value in made.returns[made.ended]:
                self.run.log(step + number * self.environment.copies, {EPISODE: float(value)})
        return after

    def collect(self) -> Minibatch:
        rows = super().collect()
        return rows if self.value_target == "td-lambda" else replace(rows, target=self._monte_carlo())

    def _monte_carlo(self) -> Tensor:
        """(T N,), in the order of the rollout's rows."""
        steps = self.environment.steps
        columns = [(self.reward(s.reward), s.terminated, s.ended, s.next_obs) for s in steps]
        reward, terminated, ended, next_obs = (torch.from_numpy(np.stack(rows)) for rows in zip(*columns, strict=True))
        next_values = cast(OnPolicy, self.agent).values(next_obs.flatten(0, 1)).view(reward.shape)
        return n_step_returns(reward.float(), next_values, terminated, ended, self.gamma, len(steps)).flatten()

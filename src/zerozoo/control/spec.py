"""Shapes of a decision problem: what an observation and an action look like, for data and environment alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gymnasium import spaces

from zerozoo.runs.errors import UserError

# Order in which the parts of a goal observation are flattened into one vector, for files and for `Spec.of_spaces`. The
# goal asked for comes last: it is obs[..., -goal_size:]. (gymnasium's own flattening is alphabetical.)
GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")


@dataclass(frozen=True)
class Spec:
    """obs_shape: of one observation; action_size: dimensions of a continuous action or number of discrete actions.

    Continuous actions lie in [-1, 1] always. goal_size > 0 says that the observation is a flattened goal observation
    whose last `goal_size` entries are the goal asked for.
    """

    obs_shape: tuple[int, ...]
    action_size: int
    discrete: bool
    goal_size: int = 0

    @classmethod
    def of_spaces(cls, observation_space: spaces.Space, action_space: spaces.Space) -> Spec:
        """The spec of an environment's two spaces: Box or goal Dict observations, Box in [-1, 1] or Discrete actions.

        Raises UserError for spaces that are neither, and for actions with other bounds, which have to be rescaled.
        """
        obs_shape, goal_size = observation_shape(observation_space)
        if isinstance(action_space, spaces.Discrete):
            if action_space.start != 0:
                raise UserError(f"the discrete actions start at {action_space.start}: number them from 0")
            return cls(obs_shape, int(action_space.n), True, goal_size)
        if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
            raise UserError(f"the action space {action_space} is neither Discrete nor a Box of one dimension")
        if not unit_box(action_space):
            raise UserError(f"the action space {action_space} is not [-1, 1]: wrap the environment so that it rescales")
        return cls(obs_shape, int(action_space.shape[0]), False, goal_size)

    def check(self, environment: Spec) -> None:
        """Raises UserError, one sentence, if data of this spec cannot train a policy for `environment`.

        Data may use fewer discrete actions than the environment has: nobody needs to have tried them all. Goal sizes
        are compared where both are known.
        """
        if self.obs_shape != environment.obs_shape:
            raise UserError(
                f"the data does not fit the environment: its observations have shape {self.obs_shape},"
                f" those of the environment {environment.obs_shape}"
            )
        if self.discrete != environment.discrete:
            kinds = {True: "discrete", False: "continuous"}
            raise UserError(
                f"the data does not fit the environment: its actions are {kinds[self.discrete]},"
                f" those of the environment {kinds[environment.discrete]}"
            )
        too_many = self.action_size > environment.action_size
        if too_many if self.discrete else self.action_size != environment.action_size:
            noun = "actions to choose from" if self.discrete else "dimensions per action"
            raise UserError(
                f"the data does not fit the environment: it has {self.action_size} {noun},"
                f" the environment {environment.action_size}"
            )
        if self.goal_size and environment.goal_size and self.goal_size != environment.goal_size:
            raise UserError(
                f"the data does not fit the environment: its goals have size {self.goal_size},"
                f" those of the environment {environment.goal_size}"
            )


def observation_shape(space: spaces.Space) -> tuple[tuple[int, ...], int]:
    """(shape, goal_size) of an observation; a Dict with the GOAL_KEYS is flattened in their order."""
    if isinstance(space, spaces.Box):
        return tuple(int(size) for size in space.shape), 0
    if isinstance(space, spaces.Dict) and set(space.spaces) == set(GOAL_KEYS):
        parts = [space.spaces[key] for key in GOAL_KEYS]
        if all(isinstance(part, spaces.Box) for part in parts):
            sizes = [math.prod(part.shape or ()) for part in parts]
            return (sum(sizes),), sizes[-1]
    raise UserError(f"the observation space {space} is neither a Box nor a Dict of {', '.join(GOAL_KEYS)}")


def unit_box(space: spaces.Box) -> bool:
    """Whether every bound of the box is -1 or 1."""
    return bool((space.low == -1).all() and (space.high == 1).all())

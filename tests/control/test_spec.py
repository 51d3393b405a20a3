"""Spec: shapes read from spaces, and one sentence where data and environment do not fit."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from zerozoo.control.spec import GOAL_KEYS, Spec
from zerozoo.runs.errors import UserError

OBS = spaces.Box(-np.inf, np.inf, (5,))
UNIT = spaces.Box(-1, 1, (2,))


def goal_space(size: int) -> spaces.Dict:
    parts = {"observation": (4,), "achieved_goal": (size,), "desired_goal": (size,)}
    return spaces.Dict({name: spaces.Box(-9, 9, shape) for name, shape in parts.items()})


def test_of_spaces():
    assert Spec.of_spaces(OBS, UNIT) == Spec((5,), 2, False)
    assert Spec.of_spaces(OBS, spaces.Discrete(3)) == Spec((5,), 3, True)
    assert Spec.of_spaces(spaces.Box(0, 255, (7, 7, 3), np.uint8), spaces.Discrete(3)) == Spec((7, 7, 3), 3, True)
    assert Spec.of_spaces(goal_space(2), UNIT) == Spec((8,), 2, False, goal_size=2)


def test_the_goal_asked_for_is_flattened_last():
    """gymnasium's own flattening is alphabetical and ends with the observation."""
    assert GOAL_KEYS[-1] == "desired_goal"
    assert list(goal_space(2).spaces)[-1] == "observation"


@pytest.mark.parametrize(
    ("observation", "action", "sentence"),
    [
        (OBS, spaces.Box(-2, 2, (1,)), r"not \[-1, 1\]"),
        (OBS, spaces.Box(-1, 1, (2, 2)), "neither Discrete nor a Box of one dimension"),
        (OBS, spaces.MultiDiscrete([2, 3]), "neither Discrete nor a Box"),
        (OBS, spaces.Discrete(3, start=1), "start at 1"),
        (spaces.Discrete(4), UNIT, "neither a Box nor a Dict"),
        (spaces.Dict({"image": OBS}), UNIT, "neither a Box nor a Dict"),
        (spaces.Dict({**goal_space(2).spaces, "observation": spaces.Discrete(3)}), UNIT, "neither a Box nor a Dict"),
    ],
)
def test_spaces_that_are_no_decision_problem_of_ours(observation, action, sentence):
    with pytest.raises(UserError, match=sentence):
        Spec.of_spaces(observation, action)


def test_a_real_environment():
    environment = gymnasium.make("CartPole-v1")
    assert Spec.of_spaces(environment.observation_space, environment.action_space) == Spec((4,), 2, True)
    pendulum = gymnasium.make("Pendulum-v1")  # its actions are torques up to 2
    with pytest.raises(UserError, match="rescales"):
        Spec.of_spaces(pendulum.observation_space, pendulum.action_space)


@pytest.mark.parametrize(
    ("data", "environment"),
    [
        (Spec((5,), 2, False), Spec((5,), 2, False)),
        (Spec((5,), 2, True), Spec((5,), 4, True)),  # two actions of the four were never tried
        (Spec((8,), 2, False), Spec((8,), 2, False, goal_size=2)),  # the file does not say where the goal is
    ],
)
def test_data_that_fits(data, environment):
    data.check(environment)


@pytest.mark.parametrize(
    ("data", "environment", "sentence"),
    [
        (Spec((5,), 2, True), Spec((6,), 2, True), r"observations have shape \(5,\), those of the environment \(6,\)"),
        (Spec((5,), 2, False), Spec((5,), 2, True), "actions are continuous, those of the environment discrete"),
        (Spec((5,), 2, False), Spec((5,), 3, False), "2 dimensions per action, the environment 3"),
        (Spec((5,), 3, False), Spec((5,), 2, False), "3 dimensions per action, the environment 2"),
        (Spec((5,), 5, True), Spec((5,), 4, True), "5 actions to choose from, the environment 4"),
        (Spec((8,), 2, False, 2), Spec((8,), 2, False, 3), "goals have size 2, those of the environment 3"),
    ],
)
def test_data_that_does_not_fit(data, environment, sentence):
    with pytest.raises(UserError, match=f"^the data does not fit the environment: .*{sentence}$"):
        data.check(environment)

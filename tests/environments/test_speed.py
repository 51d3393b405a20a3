"""Running at a wanted speed: reward and gaits by hand, data of the gaits nearest to the two speeds."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from zerozoo.environments.speed import TargetSpeed, gait, gait_data, speed_reward, tolerance
from zerozoo.runs.errors import UserError


def test_tolerance() -> None:
    """1 in [0.65, 0.85], linear to 0 at a distance of 0.75: the target speed of the card."""
    speeds = np.array([0.65, 0.75, 0.85, 0.65 - 0.3, 0.85 + 0.6, -0.1, -2.0, 1.6])
    np.testing.assert_allclose(tolerance(speeds, 0.65, 0.85, 0.75), [1, 1, 1, 0.6, 0.2, 0, 0, 0], atol=1e-12)


def test_a_gait_is_a_sine_for_each_joint() -> None:
    parameters = np.concatenate([np.arange(6) / 10, np.full(6, np.pi / 2), [1.0]])
    actions = gait(parameters, steps=11)
    assert actions.shape == (11, 6)
    np.testing.assert_allclose(actions[0], np.arange(6) / 10, atol=1e-12)  # sin(pi / 2)
    np.testing.assert_allclose(actions[5], 0, atol=1e-12)  # a quarter of a second later at 1 Hz
    np.testing.assert_allclose(actions[10], -np.arange(6) / 10, atol=1e-12)


def test_the_reward_is_the_tolerance_without_the_effort() -> None:
    obs = np.zeros((2, 17))
    obs[:, 8] = [0.35, 0.8]
    action = np.array([[1.0, -1.0, 0, 0, 0, 0], [0.5, 0, 0, 0, 0, 0]])
    np.testing.assert_allclose(speed_reward(obs, action, 0.75), [0.6 - 0.2, 1 - 0.025])


def test_data_are_of_the_gaits_nearest_to_the_two_speeds() -> None:
    """Of few gaits the same ones serve both speeds; of more, the five nearest to each are taken in turn."""
    pytest.importorskip("mujoco")
    rng = np.random.Generator(np.random.PCG64(0))
    made = gait_data(rng, 2_000, target=0.75, gaits=20)
    speeds = np.array([episode["extras"]["speed"][0] for episode in made])
    assert len(made) == 10
    near_slow, near_fast = np.abs(speeds[:5] - 0.5), np.abs(speeds[5:] - 1.0)
    assert (np.diff(near_slow) >= 0).all()
    assert (np.diff(near_fast) >= 0).all()
    for episode in made:
        assert episode["obs"].shape == (201, 17)
        assert episode["truncated"].tolist() == [False] * 199 + [True]
        assert not episode["terminated"].any()
        np.testing.assert_allclose(
            episode["reward"], speed_reward(episode["obs"][1:], episode["action"], 0.75), atol=1e-5
        )


def test_a_simulator_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise gymnasium.error.DependencyNotInstalled("no mujoco")

    monkeypatch.setattr(gymnasium, "make", fail)
    with pytest.raises(UserError, match="The task needs HalfCheetah-v5, which cannot be made: no mujoco"):
        TargetSpeed(1.0)

"""Strips of pictures: which frames, from which environments, and that a world that cannot draw ends no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from matplotlib.image import imread

from zerozoo.control.pictures import FRAMES, GAP, STRIP, draw_episode, film, strip_of
from zerozoo.control.sources import World
from zerozoo.runs.run import Run


class Counting(gymnasium.Env[Any, Any]):
    """Draws the number of the step; ends after `length` steps."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length: int = 40, render_mode: str | None = None, broken: bool = False) -> None:
        self.length, self.render_mode, self.broken = length, render_mode, broken
        self.drawn = self.seed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        self.number, self.seed = 0, seed or self.seed
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray):
        self.number += 1
        return np.zeros(2, np.float32), 0.0, self.number >= self.length, False, {}

    def render(self) -> np.ndarray:
        if self.broken:
            raise RuntimeError("no display\nand a second line")
        self.drawn += 1
        return np.full((6, 500, 3), self.number, dtype=np.uint8)


gymnasium.register("Counting-v0", Counting)


class Idle:
    def act(self, obs: torch.Tensor, explore: bool) -> torch.Tensor:
        assert not explore
        return torch.zeros(len(obs), 1)


@pytest.mark.parametrize(
    ("length", "numbers"),
    [
        (1, [0]),
        (5, [0, 1, 2, 3, 4]),
        (17, [*range(0, 17, 2)]),  # 17 frames are too many: every second one stays
        (40, [*range(0, 40, 4)]),
        (200, [*range(0, 200, 16)]),
    ],
)
def test_frames_stand_at_equal_distances(length: int, numbers: list[int]):
    env = Counting(length)
    assert [int(frame[0, 0, 0]) for frame in film(Idle(), env)] == numbers
    assert env.drawn <= 2 * FRAMES + 1 + FRAMES * max(0, int(np.log2(length / FRAMES)))


def test_a_strip_is_small_and_holds_first_and_last():
    frames = [np.full((6, 500, 3), number, dtype=np.uint8) for number in range(15)]
    strip = strip_of(frames)
    width = 167  # every third of 500 pixels
    assert strip.shape == (2, FRAMES * width + (FRAMES - 1) * GAP, 3)
    starts = [place * (width + GAP) for place in range(FRAMES)]
    assert [int(strip[0, start, 0]) for start in starts] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert (strip[:, width : width + GAP] == 255).all()
    assert strip_of(frames[:2]).shape == (2, 2 * width + GAP, 3)


def test_the_picture_lies_in_the_run_directory(tmp_path: Path):
    run = Run(tmp_path)
    path = draw_episode(Idle(), World("Counting-v0", {"length": 3}), run)
    assert path == tmp_path / STRIP
    assert np.allclose(imread(path)[0, 167 + GAP, :3], 1 / 255, atol=1e-3)
    assert draw_episode(Idle(), World("pendulum"), run) is None  # a world of ours has no pictures


def test_what_cannot_draw_is_said_and_ends_nothing(tmp_path: Path):
    run, said = Run(tmp_path), list[str]()
    run.say = said.append
    assert draw_episode(Idle(), World("Counting-v0", {"broken": True}), run) is None
    assert said == ["Counting-v0 could not be drawn here: no display"]
    assert not (tmp_path / STRIP).exists()

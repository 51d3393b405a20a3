"""A strip of pictures of one evaluation episode, for environments that draw themselves."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from zerozoo.control.evaluation import EVALUATION_SEED, LONGEST, Greedy, Player
from zerozoo.control.sources import World
from zerozoo.environments.make import make
from zerozoo.environments.vector import VecEnv
from zerozoo.runs.run import Run

STRIP = "pictures/episode.png"
FRAMES = 8
WIDTH = 240  # most pixels of a frame
GAP = 4  # white pixels between two
MODE = "rgb_array"


def draw_episode(agent: Any, world: World, run: Run) -> Path | None:
    """The first evaluation episode as the agent plays it now: `FRAMES` frames at equal distances, a PNG.

    None where the world is one of ours, has no pictures, or cannot draw on this machine, which is said. Nothing of the
    run is drawn from; the numbers of evaluation come from other environments.
    """
    if world.batched or not run.writes:
        return None
    try:
        env = make(world.name, world.observation_keys or None, **{**world.options, "render_mode": MODE})
        if MODE not in env.unwrapped.metadata.get("render_modes", ()):
            return None
        strip = strip_of(film(agent, env))
    except Exception as error:  # no display, no graphics library, an environment without pictures
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        run.say(f"{world.name} could not be drawn here: {reason}")
        return None
    from matplotlib.image import imsave

    path = run.path(STRIP)
    path.parent.mkdir(exist_ok=True)
    imsave(path, strip)
    return path


def film(agent: Any, env: gymnasium.Env[Any, Any]) -> list[np.ndarray]:
    """Frames (H, W, 3) uint8 of one episode at equal distances: all of a short one, at most 2 FRAMES of a long one.

    Whenever there are too many, every second one is dropped and from then on half as many are drawn, so an episode of
    any length costs few pictures.
    """
    # The reset behind the episode is seen by nobody; its seed is drawn apart from those of the evaluator.
    copy = VecEnv([partial(_given, env)], np.random.Generator(np.random.PCG64(1)))
    player: Player = agent.player(1) if hasattr(agent, "player") else Greedy(agent)
    obs = copy.reset([EVALUATION_SEED])
    frames, every = [_frame(env)], 1
    for number in range(1, LONGEST):
        step = copy.step(player.act(torch.from_numpy(obs)).numpy())
        player.observe(step.reward)
        if step.ended[0]:
            break
        obs = step.obs
        if number % every == 0:
            frames.append(_frame(env))
        if len(frames) > 2 * FRAMES:
            frames, every = frames[::2], 2 * every
    copy.close()
    return frames


def strip_of(frames: list[np.ndarray]) -> np.ndarray:
    """(H, W, 3) uint8: `FRAMES` of the frames, or all if there are fewer, side by side and small."""
    places = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
    shrink = -(-frames[0].shape[1] // WIDTH)
    chosen = [frames[place][::shrink, ::shrink] for place in places]
    gap = np.full((chosen[0].shape[0], GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([part for frame in chosen for part in (frame, gap)][:-1], axis=1)


def _given(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    return env


def _frame(env: gymnasium.Env[Any, Any]) -> np.ndarray:
    return np.asarray(env.render(), dtype=np.uint8)

"""From a recipe's config to its loop: what all recipes do in the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from zerozoo.control.agent import Agent
from zerozoo.control.episodes import Episodes
from zerozoo.control.evaluation import Evaluator
from zerozoo.control.normaliser import Normaliser
from zerozoo.control.offline import OfflineLoop
from zerozoo.control.online import OnlineLoop
from zerozoo.control.replay import Replay
from zerozoo.control.sources import Data, RewardTransform, World
from zerozoo.control.views import Sampler, transitions
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

View = Callable[[Any], Sampler]


def loop_fields(config: Any, run: Run, world: World | None) -> dict[str, Any]:
    """What every loop wants beside its agent."""
    return {
        "run": run,
        "steps": config.steps,
        "evaluator": Evaluator(world, config.evaluation_episodes) if world is not None else None,
        "evaluate_every": config.evaluate_every,
        "log_every": config.log_every,
        "checkpoint_every": config.checkpoint_every,
    }


def make_world(config: Any) -> World:
    """The environment of a config."""
    return World(config.environment, observation_keys=config.observation_keys)


def make_reward(config: Any, episodes: Episodes | None = None) -> RewardTransform:
    """The reward that is learned from; a reward_scale of 0 takes 1000 / (range of the returns of the episodes)."""
    if config.reward_scale == 0 and episodes is not None:
        return RewardTransform(RewardTransform.by_return_range(episodes).scale, config.reward_shift)
    return RewardTransform(config.reward_scale, config.reward_shift)


def make_replay(world: World, config: Any) -> Replay:
    """An empty buffer of `config.capacity` steps; images stay bytes."""
    spec, space = world.spec(), world.make().observation_space
    return Replay(spec, config.capacity, obs_dtype=torch.uint8 if space.dtype == np.uint8 else torch.float32)


def learn_offline(
    agent: Agent, data: Data, view: View, config: Any, run: Run, reward: RewardTransform | None = None
) -> dict[str, float]:
    """Updates on the view of the data, with `reward` in place of its own; the numbers of the last evaluation."""
    fit_normaliser(agent, data, config)
    episodes = data.episodes if reward is None else reward.episodes(data.episodes)
    fields = loop_fields(config, run, data.world)
    return OfflineLoop(agent=agent, data=view(episodes), batch_size=config.batch_size, **fields).train()


def fine_tune(agent: Agent, data: Data, view: View, config: Any, run: Run, reward: RewardTransform) -> dict[str, float]:
    """`config.offline_steps` updates on the data, then steps in its environment with one update each."""
    if data.world is None:
        raise UserError("Learning on in the environment (offline_steps above 0) needs one: give --environment.")
    fit_normaliser(agent, data, config)
    # Extra fields of the recording are left out: fresh steps have none, and a batch mixes both.
    recorded = view(reward.episodes(data.episodes.replace(extras={})))
    return OnlineLoop(
        agent=agent,
        environment=data.world.vector(1, run.streams.numpy("environment")),
        replay=make_replay(data.world, config),
        view=view,
        batch_size=config.batch_size,
        reward=reward,
        data=recorded,
        offline_share=config.offline_share,
        offline_steps=config.offline_steps,
        **loop_fields(config, run, data.world),
    ).train()


def learn_online(agent: Agent, world: World, config: Any, run: Run, data: Data | None = None) -> dict[str, float]:
    """Steps in the world and updates on what they gave; with data, half of each batch (`offline_share`) is recorded."""
    view, reward = transitions(config.gamma), make_reward(config)
    recorded: dict[str, Any] = {}
    if data is not None:
        recorded["data"] = view(reward.episodes(data.episodes.replace(extras={})))
        recorded["offline_share"] = config.offline_share
    return OnlineLoop(
        agent=agent,
        environment=world.vector(config.copies, run.streams.numpy("environment")),
        replay=make_replay(world, config),
        view=view,
        batch_size=config.batch_size,
        warmup=config.warmup,
        updates_per_step=config.updates_per_step,
        reward=reward,
        **recorded,
        **loop_fields(config, run, world),
    ).train()


def fit_normaliser(agent: Agent, data: Data, config: Any) -> None:
    """Gives the agent the scale of the data's observations, if the config asks for it."""
    if config.normalise:
        agent.normaliser = Normaliser(data.spec.obs_shape).fit(data.episodes.obs)

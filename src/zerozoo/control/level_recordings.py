"""Recordings of levels: of a shortest way, or of PPO that was trained on the same levels before.

the run's directory/
    expert/        PPO's own run: metrics, evaluations, checkpoints
    recording/     what it played, as one checkpoint, so that a resumed run learns from the very same steps
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from zerozoo.control.agents import PPO
from zerozoo.control.episodes import ARRAYS, Episodes
from zerozoo.control.evaluation import Evaluator
from zerozoo.control.loop import crosses, with_prefix
from zerozoo.control.manifest import keep_manifest
from zerozoo.control.on_policy import OnPolicyLoop
from zerozoo.control.spec import Spec
from zerozoo.environments.controllers import Actor, expert
from zerozoo.environments.data import epsilon_expert
from zerozoo.environments.make import make_levels
from zerozoo.environments.vector import VecEnv
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.runs.streams import derived_seed

COPIES = 100  # of the levels, recorded side by side
# PPO as in Procgen's own paper (Cobbe et al. 2019, arXiv 1912.01588, appendix D), rewards as the game gives them.
ROLLOUT, EPOCHS, MINIBATCHES = 256, 3, 8
GAMMA, LAM = 0.999, 0.95
PPO_SETTINGS: dict[str, Any] = {
    "hidden": (),
    "learning_rate": 5e-4,
    "falls_until": 0,
    "max_gradient_norm": 0.5,
    "clip": 0.2,
    "entropy_coefficient": 0.01,
    "normalise_advantage": True,
    "normalise": False,
}


def record_levels(config: Any, run: Run, evaluator: Evaluator | None = None, maker: str = "levels") -> Episodes:
    """At least `config.transitions` steps in levels of training, drawn anew for each episode; with a manifest.

    Config: kind, levels, transitions, epsilon (share of random actions), expert_steps (of PPO, whose drawn actions are
    recorded; 0: the world's shortest way), expert_copies, log_every and checkpoint_every (of PPO's steps). `evaluator`:
    of PPO, see `expert_numbers`; `maker`: who the manifest says made the data. A killed run goes on in PPO's training,
    or records anew from its end, to the same steps. UserError where the levels have no expert of their own and PPO
    takes no steps.
    """
    if config.expert_steps < 0:
        raise UserError(f"expert_steps must be 0 or more, not {config.expert_steps}.")
    names = ["kind", "levels", "transitions", "epsilon"]
    if config.expert_steps:
        names += ["expert_steps", "expert_copies"]
        episodes = _kept(run)
        if episodes is None:
            episodes = _record(config, run, _trained_actor(config, run, evaluator))
            _keep(run, episodes)
    else:
        episodes = _record(config, run)
    keep_manifest(run, episodes, maker, {name: getattr(config, name) for name in names})
    return episodes


def expert_numbers(run: Run) -> dict[str, float]:
    """What the evaluator measured of the PPO that was recorded, as expert/...; nothing where there was none."""
    rows = [row for row in Run(run.path("expert")).history() if "gap" in row]
    kept = rows[-1] if rows else {}
    return {f"expert/{name}": kept[name] for name in kept if name.startswith(("success/", "return/", "gap"))}


def _record(config: Any, run: Run, actor: Actor | None = None) -> Episodes:
    world = make_levels(COPIES, config.kind, range(config.levels))
    if actor is None:
        try:
            actor = expert(world)
        except ValueError:
            raise UserError(f"{config.kind} has no scripted expert: give expert_steps above 0, of PPO.") from None
    rng = run.streams.numpy("data")
    made = epsilon_expert(rng, config.transitions, world=world, epsilon=config.epsilon, actor=actor)
    return Episodes.from_list(made, Spec.of_spaces(world.observation_space, world.action_space))


def _trained_actor(config: Any, run: Run, evaluator: Evaluator | None) -> Actor:
    """PPO after `expert_steps` steps on the levels of training; it resumes in the folder "expert" of the run."""
    inside = Run(run.path("expert"), derived_seed(run.seed, "stage", "expert"))
    inside.say, inside.writes = run.say, run.writes
    inside.sinks.append(_Progress(config.expert_steps, run.say))
    world = make_levels(config.expert_copies, config.kind, range(config.levels))
    spec = Spec.of_spaces(world.observation_space, world.action_space)
    agent = PPO(spec, SimpleNamespace(**PPO_SETTINGS), inside.stream("agent"))
    run.say(f"PPO learns the levels of training for {config.expert_steps:,} steps first: see {inside.directory}.")
    with inside:
        OnPolicyLoop(
            agent=agent,
            run=inside,
            steps=config.expert_steps,
            evaluator=evaluator,
            evaluate_every=config.expert_steps,  # before and after
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            environment=VecEnv(world, inside.streams.numpy("environment")),
            rollout=ROLLOUT,
            epochs=EPOCHS,
            batch_size=ROLLOUT * config.expert_copies // MINIBATCHES,
            gamma=GAMMA,
            lam=LAM,
        ).train()
    drawn = run.stream("recorded actions")

    def act(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return agent.act(torch.from_numpy(obs), explore=True, generator=drawn).numpy()

    return act


class _Progress:
    """A sink that says twenty times in a training where it is: PPO's rows are not those that the run shows."""

    def __init__(self, steps: int, say: Callable[[str], None]) -> None:
        self.steps, self.say, self.last = steps, say, 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if crosses(max(self.steps // 20, 1), self.last, step):
            earned = f", return {metrics['episode/return']:.3g}" if "episode/return" in metrics else ""
            self.say(f"PPO: step {step:,} of {self.steps:,}{earned}.")
        self.last = step

    def close(self) -> None:
        """Nothing is open."""


def _keep(run: Run, episodes: Episodes) -> None:
    arrays = {name: getattr(episodes, name) for name in ARRAYS}
    arrays |= {f"extras/{name}": values for name, values in episodes.extras.items()}
    with Run(run.path("recording")) as kept:
        kept.writes = run.writes
        actions = episodes.spec.action_size
        kept.save(
            len(episodes), {name: torch.from_numpy(value) for name, value in arrays.items()}, {"actions": actions}
        )


def _kept(run: Run) -> Episodes | None:
    checkpoint = Run(run.path("recording")).load()
    if checkpoint is None:
        return None
    arrays = {name: tensor.numpy() for name, tensor in checkpoint.tensors.items()}
    extras = with_prefix(arrays, "extras/")
    spec = Spec(arrays["obs"].shape[1:], checkpoint.state["actions"], discrete=True)
    return Episodes(**{name: arrays[name] for name in ARRAYS}, extras=extras, spec=spec)

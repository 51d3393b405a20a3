"""SS-ORL: offline RL when most recordings lack their actions, by an inverse dynamics model that fills them in.

Zheng et al. 2022, ICML 2023. Few trajectories carry actions, the others only states and rewards. A model of the action
between two states, which also sees what came before (`history`), is fitted to the labelled ones; its mean is the proxy
action of the others. Any offline method then learns from the union, here TD3+BC.

Two stages: the inverse dynamics model, by likelihood, with the parameters that were best on held-out trajectories;
then the updates of TD3+BC. A resumed run makes data and model again, from the same streams to the same numbers.

What differs from the paper and its code, and why:

* Mean and log-deviation of the model share a network, as in the tanh-Gaussian of all agents here, and all hidden layers
  have dropout. The code has a network for each of the two, with dropout before the last layer.
* Windows are cut from true successors, the last step's too, and padded after standardising. The code has no successor
  for the last step and standardises the padding.
* The best parameters are put back; the code keeps the last ones. The default number of model updates is the paper's;
  that of the released config is 100.
* Proxy actions are the model's mean; a tanh keeps them inside the range, so there is nothing to clip.

Not reproduced: D4RL, the back-ends CQL and DT, ensembles of models (their spread would only be logged), the settings in
which labels come from one tercile of returns and the rest from another, and the other inverse models of the ablation.
The simulator here is deterministic and fully observed, so that s and s' nearly give the action away; contact-rich or
partly observed problems do not.

The file is longer than 200 lines because the model of the actions and the agent have settings of their own, and two
claims.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from zerozoo.control.agents import TD3BC
from zerozoo.control.build import loop_fields
from zerozoo.control.episodes import Episodes
from zerozoo.control.inverse import fit_inverse_dynamics, windows
from zerozoo.control.normaliser import Normaliser
from zerozoo.control.offline import OfflineLoop
from zerozoo.control.settings import SMOKE, Watching
from zerozoo.control.sources import World
from zerozoo.control.views import transitions
from zerozoo.environments.data import choose_labelled, hide_actions, mixed_quality
from zerozoo.runs.claims import Claim, all_of, difference_claim
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

PAPER = "Semi-Supervised Offline Reinforcement Learning with Action-Free Trajectories (2022), arXiv 2210.06518"


@dataclass(frozen=True)
class Config(Watching):
    """Fields carry the paper's defaults; the data are made here, from a pendulum."""

    steps: int = 200_000  # updates of TD3+BC
    evaluation_episodes: int = 30  # of each evaluation, always the same

    # Data: episodes of a controller that mixes the expert with uniform noise, of a quality drawn for each episode

    episodes: int = 300  # of 200 steps
    sticky: float = 0.3  # chance of a step to repeat the action before: behaviour that s alone does not tell
    label_share: float = 0.1  # of all episodes: those with actions
    label_pool: float = 0.5  # they are drawn from this share of the episodes, that of the lowest returns
    actions: str = "proxy"  # of the unlabelled: proxy, true (the oracle), or none (labelled episodes only)

    # Inverse dynamics model

    history: int = 1  # k: states before s that it sees, beside s and s'
    inverse_hidden: tuple[int, ...] = (1024, 1024)  # hidden layers
    inverse_dropout: float = 0.1  # share of each hidden layer that is dropped in training
    inverse_steps: int = 100_000  # updates
    inverse_batch_size: int = 1024  # rows of each
    inverse_learning_rate: float = 1e-4  # of Adam
    inverse_evaluate_every: int = 10  # updates between looks at the held-out episodes; the best parameters are kept
    inverse_heldout: float = 0.1  # of the labelled episodes

    # TD3+BC

    hidden: tuple[int, ...] = (256, 256)  # hidden layers of every network
    gamma: float = 0.99  # discount
    tau: float = 0.005  # how far the targets move in an update
    alpha: float = 2.5  # weight of the critic against cloning
    target_noise: float = 0.2  # deviation of the noise on the target action
    noise_clip: float = 0.5  # largest noise on the target action
    batch_size: int = 256  # rows of a batch
    learning_rate: float = 3e-4  # of Adam


_SMALL = {
    "hidden": (128, 128),
    "steps": 12_000,
    "evaluate_every": 3_000,
    "evaluation_episodes": 20,
    "inverse_hidden": (256, 256),
    "inverse_steps": 4_000,
    "inverse_batch_size": 256,
    "inverse_learning_rate": 1e-3,
    "inverse_evaluate_every": 50,
}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": _SMALL,
    "paper": {},
    "smoke": {
        **_SMALL,
        **SMOKE,
        "episodes": 60,
        "hidden": (16, 16),
        "inverse_hidden": (32, 32),
        "inverse_steps": 60,
        "inverse_batch_size": 64,
        "inverse_evaluate_every": 20,
    },
}


@dataclass(frozen=True)
class Recordings:
    """truth: all actions, for the oracle and for measuring only. hidden: those of unlabelled episodes are 0, with
    extras["is_labelled"] (N,): where an action is a true one."""

    truth: Episodes
    hidden: Episodes
    labelled: np.ndarray  # (E,) bool


def make_recordings(config: Config, rng: np.random.Generator) -> Recordings:
    """Pendulum episodes, and the same with the actions of all but `label_share` of them hidden."""
    made = mixed_quality(rng, config.episodes, sticky=config.sticky)
    labelled = choose_labelled(made, rng, config.label_share, (0.0, config.label_pool))
    return Recordings(Episodes.from_list(made), Episodes.from_list(hide_actions(made, labelled)), labelled)


def with_proxies(recordings: Recordings, proxy: np.ndarray) -> Episodes:
    """The union: true actions where extras["is_labelled"], elsewhere the proxies (N, m)."""
    hidden = recordings.hidden
    return hidden.replace(action=np.where(hidden.extras["is_labelled"][:, None], hidden.action, proxy))


def proxy_errors(recordings: Recordings, proxy: np.ndarray) -> dict[str, float]:
    """Mean squared errors on unlabelled episodes: all, the better half of them by return, and over the variance."""
    truth, unlabelled = recordings.truth, ~recordings.labelled
    returns = truth.returns()
    high = unlabelled & (returns > np.median(returns[unlabelled]))
    errors = np.square(proxy - truth.action).mean(axis=-1)  # (N,)
    all_errors, high_errors = (float(errors[chosen[truth.episode_of]].mean()) for chosen in (unlabelled, high))
    variance = float(truth.action[unlabelled[truth.episode_of]].var(axis=0).mean())
    return {
        "proxy/error": all_errors,
        "proxy/error_high": high_errors,
        "proxy/log_error_high": math.log(high_errors),
        "proxy/error_of_variance": all_errors / variance,
    }


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the last evaluation and the proxies' errors."""
    if config.actions not in ("proxy", "true", "none"):
        raise UserError(f"actions must be proxy, true or none, not {config.actions!r}.")
    recordings, errors = make_recordings(config, run.streams.numpy("data")), {}
    normaliser = Normaliser(recordings.truth.spec.obs_shape).fit(recordings.truth.obs)  # of all states, in every arm
    if config.actions == "proxy":
        model = fit_inverse_dynamics(recordings.hidden.select(recordings.labelled), normaliser, config, run)
        with torch.no_grad():
            proxy = model.policy.mode(windows(recordings.hidden, config.history, normaliser)).numpy()
        data, errors = with_proxies(recordings, proxy), proxy_errors(recordings, proxy)
    else:
        data = recordings.truth if config.actions == "true" else recordings.hidden.select(recordings.labelled)
    agent = TD3BC(data.spec, config, run.stream("agent"))
    agent.normaliser = normaliser
    view, fields = transitions(config.gamma)(data), loop_fields(config, run, World("pendulum"))
    return OfflineLoop(agent=agent, data=view, batch_size=config.batch_size, **fields).train() | errors


CLAIM = (
    Claim(
        statement="Proxy actions for recordings without actions bring offline RL from few low-return labels close to"
        " what it reaches with all true actions.",
        arms={
            "proxy": {},
            "labelled-only": {"actions": "none"},
            "oracle": {"actions": "true"},
            # Not judged: labels drawn from all episodes, so that labelled-only is not weak on purpose.
            "proxy-uniform": {"label_pool": 1.0},
            "labelled-only-uniform": {"label_pool": 1.0, "actions": "none"},
        },
        metric="evaluation/score",
        holds=all_of(
            difference_claim("proxy", "labelled-only", threshold=15.0),
            difference_claim("proxy", "oracle", threshold=-10.0),
        ),
        seeds=(0, 1, 2),
        budget="15 trainings of 12,000 updates on one core, about 11 minutes in all",
        base=_SMALL,
        smoke=PRESETS["smoke"],
        curve="evaluation/score",
    ),
    Claim(
        statement="An inverse model that sees one state more has at most 0.8 times the error on high-return recordings"
        " of a behaviour that repeats its actions.",
        arms={"one-before": {"history": 1}, "none-before": {"history": 0}},
        metric="proxy/log_error_high",
        holds=difference_claim("none-before", "one-before", threshold=-math.log(0.8)),
        seeds=(0, 1, 2),
        budget="6 fits of the inverse model on one core, about 2 minutes in all",
        base={**_SMALL, "steps": 0},
        smoke={**PRESETS["smoke"], "steps": 0},
        name="history",
    ),
)

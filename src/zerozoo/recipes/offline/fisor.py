"""FISOR: safe offline RL without a single violation, by a feasible region and a diffusion policy weighted by it.

Zheng et al. 2024, ICLR. One pair of critics, independent of the reward, learns from which states the data can still
avoid every violation: V_h <= 0, the feasible region. Another pair, that of IQL, learns the reward. A diffusion policy
clones the data's actions, weighted inside the region by their reward advantage if they stay inside, and outside of it
by the violation that they avoid; of some candidates it plays the one with the least future violation.

An update (`control/agents/fisor.py`): two policy steps on the halves of a batch, then V, Q, V_h and Q_h on its first
`critic_rows` rows, then the targets. This is the order of the released code: the weights come from the critics of the
update before.

What differs from the paper and its code, and why:

* A truncated episode bootstraps from its last state; the released code treats time limits as ends.
* The weight outside of the region is min(exp(-alpha_h A_h), cap), as in the paper; the code also raises it to 1.
* The losses of a pair of critics are summed (the code averages), which Adam hardly sees.
* The averaged policy moves once an update by as much as in two moves.
* All arms of the claim have 6,000 updates and not the 8,000 that were planned, so that it takes less than 20 minutes on
  one core. That was decided by its time, before anything was trained.
* Every arm of the claim trains its own critics, since each cell is a process. Neither the critics nor their batches
  depend on the arm, so that all arms of a seed have the same critics, bit for bit, as if they had been trained once.
* The claim asks for the agreement of the feasible region twice: plainly, and as the mean of those over avoidable and
  over unavoidable states: most of the arena is avoidable, and a critic that calls all of it feasible agrees plainly.

Not reproduced: the DSRL benchmark with its baselines (its data need a download), and the ablation with cumulative cost
critics, which has a cost budget in place of the hard constraint.

The file is longer than 200 lines because safety has an evaluator of its own.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator

from zerozoo.control.agents import FISOR
from zerozoo.control.build import loop_fields
from zerozoo.control.episodes import Episodes
from zerozoo.control.evaluation import EVALUATION_SEED, Evaluator
from zerozoo.control.offline import OfflineLoop
from zerozoo.control.settings import Watching
from zerozoo.control.sources import RewardTransform
from zerozoo.control.views import transitions
from zerozoo.environments.batched.hazards import EDGE, Hazards, SafeStarts, avoidable, constraint
from zerozoo.environments.data import hazard_mixture
from zerozoo.environments.vector import VecEnv
from zerozoo.runs.claims import Claim, all_of, at_least, at_most, require_mean
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

PAPER = "Safe Offline Reinforcement Learning with Feasibility-Guided Diffusion Model (2024), arXiv 2401.10700"


@dataclass(frozen=True)
class Config(Watching):
    """The paper's numbers for PointRobot; in comments those for DSRL where they differ."""

    steps: int = 100_000  # updates; DSRL 1,000,000
    evaluation_episodes: int = 50  # fixed starts from which every violation can be avoided

    # Data

    transitions: int = 100_000  # steps of PointRobot data: 40 % reckless, 30 % careful, 30 % random
    constraint: str = "distance"  # h(s): hazard radius - distance, or binary: +cost_scale inside a hazard, else -1
    cost_scale: float = 25.0  # of the binary constraint

    # Critics

    hidden: tuple[int, ...] = (256, 256)  # hidden layers of every critic
    gamma: float = 0.99  # discount of both
    tau: float = 0.005  # how far their targets move in an update
    expectile: float = 0.9  # of the reward: V leans to the best of the data's actions
    safe_expectile: float = 0.9  # of the constraint: V_h leans to the safest
    critic_rows: int = 256  # of each batch

    # Policy

    weights: str = "feasibility"  # reward: exp(alpha_r A_r) for all; clone: 1
    choose: str = "least-violation"  # of the candidates; or highest-value, or first: a random one
    candidates: int = 8  # actions drawn to choose from; DSRL 16
    reward_temperature: float = 5.0  # alpha_r; DSRL 3
    safety_temperature: float = 2.0  # alpha_h; DSRL 5
    reward_cap: float = 100.0  # largest weight inside of the region
    safety_cap: float = 150.0  # and outside
    diffusion_steps: int = 5  # T
    width: int = 256  # of the residual blocks
    blocks: int = 3  # how many
    dropout: float = 0.1  # in them
    average: float = 0.001  # how far the policy that acts moves in a policy step

    # Optimisation

    batch_size: int = 1024  # rows of an update, half of them for each policy step; DSRL 2048
    learning_rate: float = 3e-4  # of Adam; the policy's falls along a cosine that would end at 3 x `steps` of its steps


_SMALL = {
    "hidden": (128, 128),
    "width": 128,
    "blocks": 1,
    "batch_size": 256,
    "steps": 6_000,
    "evaluate_every": 3_000,
    "checkpoint_every": 3_000,
}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": _SMALL,
    "paper": {},
    "smoke": {
        "hidden": (16, 16),
        "width": 16,
        "blocks": 1,
        "batch_size": 64,
        "critic_rows": 32,
        "transitions": 3_000,
        "steps": 20,
        "evaluation_episodes": 4,
    },
}


def make_data(config: Config, rng: np.random.Generator) -> Episodes:
    """PointRobot data with extras["h"] of the state acted on, rewards scaled as the paper does: 300 / return range."""
    data = Episodes.from_list(hazard_mixture(rng, config.transitions))
    data = RewardTransform.by_return_range(data, span=Hazards(1).time_limit).episodes(data)
    h = constraint(data.obs[data.obs_index])
    if config.constraint == "binary":
        h = np.where(h > 0, config.cost_scale, -1.0)
    return data.replace(extras={"h": h})


class SafetyEvaluator(Evaluator):
    """Plays fixed episodes and counts their violating steps; compares V_h <= 0 with what is avoidable on a grid.

    The episodes and the candidates' noise are the same at every call and draw from no stream of the run.
    """

    def __init__(self, episodes: int) -> None:
        if episodes < 1:
            raise UserError(f"evaluation_episodes must be at least 1, not {episodes}.")
        self.episodes = episodes
        axis = np.linspace(-EDGE, EDGE, 20)
        x, y = (part.ravel() for part in np.meshgrid(axis, axis))
        # Speed and heading are those in the middle of the starts.
        state = {"x": x, "y": y, "speed": np.full(400, 1.25), "heading": np.full(400, np.pi / 2)}
        self.avoidable = torch.from_numpy(avoidable(state))
        self.grid = torch.from_numpy(Hazards(400).load_state({**state, "elapsed": np.zeros(400, dtype=np.int64)}))

    def __call__(self, agent: FISOR, run: Run, step: int) -> dict[str, float]:
        played = self.play(agent)
        for number in range(self.episodes):
            row = {name: float(values[number]) for name, values in played.items()}
            place = {"step": step, "phase": "evaluation", "episode": number, "seed": EVALUATION_SEED + number}
            run.sample([{**place, **row}])
        return {f"evaluation/{name}": float(values.mean()) for name, values in played.items()} | self.region(agent)

    def play(self, agent: FISOR) -> dict[str, np.ndarray]:
        """For each episode (E,): return, length, violations (steps inside a hazard), success (arrived)."""
        seeds = range(EVALUATION_SEED, EVALUATION_SEED + self.episodes)
        environment = VecEnv(SafeStarts(self.episodes), np.random.Generator(np.random.PCG64(0)), ("cost", "success"))
        noise, obs = Generator().manual_seed(0), environment.reset(seeds)
        playing = np.ones(self.episodes, dtype=bool)
        played = {name: np.zeros(self.episodes) for name in ("return", "length", "violations", "success")}
        action = np.zeros((self.episodes, 2), dtype=np.float32)
        while playing.any():
            action[playing] = agent.act(torch.from_numpy(obs[playing]), explore=True, generator=noise).numpy()
            taken = environment.step(action)
            values = taken.returns, taken.lengths, played["violations"] + taken.info["cost"], taken.info["success"]
            for name, value_now in zip(played, values, strict=True):
                played[name][playing] = value_now[playing]
            playing &= ~taken.ended
            obs = taken.obs
        return played

    @torch.no_grad()
    def region(self, agent: FISOR) -> dict[str, float]:
        """How often V_h <= 0 agrees with `avoidable`: plainly, and as the mean over both kinds of states."""
        right = ((agent.v_h(self.grid) <= 0) == self.avoidable).double()
        kinds = [float(right[self.avoidable].mean()), float(right[~self.avoidable].mean())]
        return {"region/agreement": float(right.mean()), "region/balanced_agreement": sum(kinds) / 2}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the numbers of the last evaluation."""
    choices = {
        "weights": ("feasibility", "reward", "clone"),
        "choose": ("least-violation", "highest-value", "first"),
        "constraint": ("distance", "binary"),
    }
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise UserError(f"{name} must be one of {', '.join(known)}, not {getattr(config, name)!r}.")
    data = make_data(config, run.streams.numpy("data"))
    agent = FISOR(data.spec, config, run.stream("agent"))
    fields = loop_fields(config, run, None) | {"evaluator": SafetyEvaluator(config.evaluation_episodes)}
    view = transitions(config.gamma)(data)
    return OfflineLoop(agent=agent, data=view, batch_size=config.batch_size, **fields).train()


CLAIM = Claim(
    statement="From starts where violations can be avoided, feasibility weights violate far less than reward weights or"
    " cloning, and give up little return.",
    arms={
        "fisor": {},
        "reward-only": {"weights": "reward", "choose": "highest-value"},
        "cloning": {"weights": "clone", "choose": "first"},
    },
    metric="evaluation/violations",
    holds=all_of(
        # Nobody can violate much less than an arm that hardly does.
        at_most("fisor", 0.3, of="reward-only", precondition=require_mean("reward-only", low=1.0)),
        at_most("fisor", 0.5, of="cloning"),
        at_least("fisor", 0.75, of="reward-only", metric="evaluation/return"),
        at_least("fisor", 0.8, metric="region/agreement"),
        at_least("fisor", 0.8, metric="region/balanced_agreement"),
    ),
    seeds=(0, 1, 2),
    budget="9 trainings of 6,000 updates on one core, about 16 minutes in all",
    base=_SMALL,
    smoke=PRESETS["smoke"],
    curve="evaluation/violations",
)

"""RLPD: online learning that draws half of every batch from recorded data.

No pre-training and no constraint: SAC learns from the first step on batches that are half recorded and half fresh.
LayerNorm keeps the critics from extrapolating beyond the data, a large ensemble bounds their values, and many updates
for each step make the recorded half count.

What differs from the paper and its code: every update draws its own batch (there one large batch is cut in pieces); the
critics' losses are summed and not averaged, which Adam hardly notices.

Order of an update: critics; in the last of the updates of a step then policy and temperature. The target moves in every
update.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.control.agents import RLPD
from zerozoo.control.build import learn_online
from zerozoo.control.settings import LAPTOP, SMOKE, OffPolicyConfig
from zerozoo.control.sources import open_data
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

PAPER = "Efficient Online Reinforcement Learning with Offline Data (2023), arXiv 2302.02948"


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """Fields carry the paper's defaults (its table 1 and code); the antmaze settings are a preset."""

    environment: str = ""  # a world or a gymnasium id; "": that of the data maker
    data: str = "pendulum-mixed"  # a data maker, an .npz file, or the folder or id of a Minari data set
    data_seed: int = 0  # of a data maker; the data is the same for every `seed`
    offline_share: float = 0.5  # of the recorded data in each batch
    steps: int = 250_000  # in the environment
    warmup: int = 5_000  # steps of random actions before the first update
    updates_per_step: int = 20  # of the critics for each step; policy and temperature move once
    critics: int = 10  # in the ensemble
    critics_in_target: int = 2  # drawn anew in each update; the target takes their smallest value
    layer_norm: bool = True  # in the critics
    temperature: float = 1.0  # weight of the entropy at the beginning
    learn_temperature: bool = True  # so that the entropy keeps its target
    entropy_per_dimension: float = -0.5  # target of the entropy, for each dimension of an action


EXTENDABLE = ("steps", "checkpoint_every")
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        **LAPTOP,
        "steps": 5_000,
        "evaluate_every": 1_000,
        "checkpoint_every": 2_500,
        "hidden": (64, 64),
        "learning_rate": 1e-3,
        "critics": 5,
        "updates_per_step": 4,
        "warmup": 500,
    },
    "antmaze": {
        "hidden": (256, 256, 256),
        "critics_in_target": 1,
        "reward_shift": -1.0,
        "steps": 300_000,
        "evaluation_episodes": 100,
    },
    "smoke": {**SMOKE, "hidden": (16, 16), "warmup": 20, "updates_per_step": 2, "critics": 3},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the numbers of the last evaluation."""
    data = open_data(config, run)
    if data.world is None:
        raise UserError("RLPD learns in an environment beside the data: give --environment.")
    agent = RLPD(data.spec, config, run.stream("agent"))
    return learn_online(agent, data.world, config, run, data)

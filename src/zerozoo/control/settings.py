"""Fields that many recipes share, with the comments that `zerozoo show` prints. A recipe's Config derives from one of
these and gives the paper's defaults where they differ."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Watching:
    """How a run is watched and kept."""

    seed: int = 0  # of weights, batches, exploration and everything else that is random
    steps: int = 1_000_000  # updates where recorded data is learned from, steps in the environment elsewhere
    evaluate_every: int = 10_000  # steps between evaluations; before the first and after the last step there is one
    evaluation_episodes: int = 10  # of each evaluation, always the same, never trained on
    log_every: int = 1_000  # steps between rows of metrics
    checkpoint_every: int = 50_000  # steps between checkpoints
    observation_keys: tuple[str, ...] = ()  # parts of dictionary observations that are seen; (): no dictionary


@dataclass(frozen=True)
class OfflineConfig(Watching):
    """Learning from recorded data."""

    data: str = "pendulum-mixed"  # a data maker, an .npz file, or the folder or id of a Minari data set
    data_seed: int = 0  # of a data maker; the data is the same for every `seed`
    environment: str = ""  # to evaluate in, a world or a gymnasium id; "": that of the data maker
    normalise: bool = False  # see observations with mean 0 and deviation 1 over the data
    batch_size: int = 256  # rows of a batch
    learning_rate: float = 3e-4  # of Adam


@dataclass(frozen=True)
class OfflineValueConfig(OfflineConfig):
    """Learning values from recorded data."""

    hidden: tuple[int, ...] = (256, 256)  # hidden layers of every network
    gamma: float = 0.99  # discount
    tau: float = 0.005  # how far the target networks move in an update
    reward_scale: float = 1.0  # what is learned from is reward_scale * reward + reward_shift
    reward_shift: float = 0.0  # returns are reported without either


@dataclass(frozen=True)
class FineTuneConfig(OfflineValueConfig):
    """Learning values from recorded data, then in the environment."""

    offline_steps: int = 0  # the steps after these are taken in the environment, one update each; 0: none are
    offline_share: float = 0.5  # of the recorded data in each batch of that second phase
    capacity: int = 1_000_000  # steps of the second phase that are kept


@dataclass(frozen=True)
class OnlineConfig(Watching):
    """Learning in an environment."""

    environment: str = "pendulum"  # a world or a gymnasium id
    copies: int = 1  # of the environment, stepped together
    hidden: tuple[int, ...] = (256, 256)  # hidden layers of every network
    learning_rate: float = 3e-4  # of Adam
    gamma: float = 0.99  # discount
    batch_size: int = 256  # rows of a batch
    reward_scale: float = 1.0  # what is learned from is reward_scale * reward + reward_shift
    reward_shift: float = 0.0  # returns are reported without either


@dataclass(frozen=True)
class OffPolicyConfig(OnlineConfig):
    """Learning in an environment from a replay buffer."""

    tau: float = 0.005  # how far the target networks move in an update
    capacity: int = 1_000_000  # steps that are kept
    warmup: int = 10_000  # steps of random actions before the first update
    updates_per_step: float = 1.0  # updates for each step in the environment


# What most presets of the same name begin with: a training for one core, and one that only shows that all parts run.
LAPTOP = {
    "steps": 20_000,
    "evaluate_every": 5_000,
    "evaluation_episodes": 50,
    "log_every": 500,
    "checkpoint_every": 10_000,
}
SMOKE = {
    "steps": 40,
    "batch_size": 32,
    "evaluate_every": 20,
    "evaluation_episodes": 3,
    "log_every": 10,
    "checkpoint_every": 20,
}

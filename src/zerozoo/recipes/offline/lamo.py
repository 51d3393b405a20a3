"""LaMo: a decision transformer that begins with the weights of a language model.

Shi et al. 2023, ICLR 2024. With few recordings a transformer has too little to learn from. So its blocks are those of a
language model, frozen but for low-rank adapters on queries, keys and values; states, actions and returns enter through
small networks instead of single layers; and the blocks go on to predict text, so that they do not forget it.

What differs from the paper and its code, and why:

* Without a model hub the language model of the laptop preset is a GPT-2 over bytes, pretrained here on the reference
  that ships with Python; `real` takes six blocks of SmolLM2-135M. The text of the language loss is the same reference.
* One learning rate for all that is trained. The code has a lower one for the language model, but sorts weights by a
  name that its own model class does not have.
* Text is drawn and read only if the language loss has a weight; the code does it always.
* Windows end at the drawn step, as the context does when it acts; padding is not in the loss.
* The few episodes are drawn anew for each seed, because their choice matters more than the rest of what is random.
  Mean and deviation of the observations are theirs.
* Positions of GPT-2 are used for text only, as in the code; those of Llama's form are rotations, which stay.

Not reproduced: GPT-2 on D4RL, Kitchen, Reacher and Atari, other sizes of data, the quality of the corpus, and the
methods that learn values.

The file is longer than 200 lines because data, language model and adapters have settings of their own.
"""

from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from zerozoo.control.agents.lamo import LaMo
from zerozoo.control.backbones import ADAPTERS
from zerozoo.control.build import learn_offline
from zerozoo.control.episodes import Episodes
from zerozoo.control.settings import SMOKE, OfflineConfig
from zerozoo.control.sources import Data, open_data
from zerozoo.control.views import sequences
from zerozoo.language.text_models import Pretraining, text_model
from zerozoo.runs.claims import Claim, all_of, difference_claim
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

PAPER = (
    "Unleashing the Power of Pre-trained Language Models for Offline Reinforcement Learning (2023), arXiv 2310.20587"
)


@dataclass(frozen=True)
class Config(OfflineConfig):
    """Fields carry the paper's settings for MuJoCo with the language loss."""

    data: str = "mujoco/hopper/medium-v0"  # a data maker, an .npz file, or the folder or id of a Minari data set
    environment: str = "Hopper-v5"  # to evaluate in, a world or a gymnasium id; "": that of the data maker
    normalise: bool = True  # see observations with mean 0 and deviation 1 over the episodes that are kept
    ratio: float = 0.1  # share of the episodes that is kept, drawn anew for each seed
    delayed: bool = False  # give all of an episode's reward in its last step
    steps: int = 100_000  # updates
    evaluate_every: int = 2_500  # updates between evaluations
    evaluation_episodes: int = 20  # of each evaluation, always the same, never trained on
    late: int = 8  # evaluations, the last ones, whose mean is the score
    target_quantile: float = 0.9  # the return asked for is this quantile of those of the kept episodes

    # Language model

    backbone: str = "gpt2"  # tiny (made here), smollm2-135m, a folder or an id of the Hugging Face hub
    blocks: int = 0  # how many of its first blocks are kept; 0: all
    corpus: str = "text"  # of tiny: text, shuffled (its bytes in random order) or none (weights as drawn)
    tiny_width: int = 128  # of tiny
    tiny_blocks: int = 3  # of tiny
    tiny_steps: int = 1_500  # of tiny: updates of the pretraining
    adapter: str = "lora"  # what of it is trained: lora, full or frozen
    rank: int = 16  # of the adapters on queries, keys and values
    lora_alpha: float = 32.0  # their output is multiplied by lora_alpha / rank
    lora_dropout: float = 0.1  # on their input
    embedding: str = "mlp"  # of returns, states and actions, and the head: mlp or linear
    language_weight: float = 0.1  # of the loss of the next token; 0: no text is read
    text_length: int = 128  # tokens in a row of text
    text_batch_size: int = 16  # rows of text in an update

    # Decision transformer

    length: int = 20  # steps of a window, and of the memory when it acts
    longest: int = 1_000  # numbers of steps that have embeddings of their own
    return_scale: float = 1_000.0  # returns are divided by this
    batch_size: int = 64  # windows of a batch
    learning_rate: float = 1e-4  # of Adam with decoupled weight decay
    weight_decay: float = 1e-5  # of all that is trained
    warmup_updates: int = 2_500  # over which the learning rate rises from 0
    max_gradient_norm: float = 0.25  # longer gradients are scaled down to it


EXTENDABLE = ("checkpoint_every",)

_LAPTOP = {
    "data": "pendulum-mixed",
    "environment": "",
    "ratio": 1 / 30,  # 10 of 300 episodes
    "backbone": "tiny",
    "tiny_width": 64,
    "tiny_steps": 1_000,
    "text_length": 64,
    "text_batch_size": 4,
    "length": 10,
    "longest": 200,
    "return_scale": 500.0,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "warmup_updates": 100,
    "steps": 600,
    "evaluate_every": 150,
    "late": 2,
    "log_every": 50,
    "checkpoint_every": 600,
}
_SMOKE = {
    **SMOKE,
    "tiny_width": 16,
    "tiny_blocks": 1,
    "tiny_steps": 2,
    "text_length": 8,
    "text_batch_size": 2,
    "batch_size": 4,
    "length": 3,
    "steps": 2,
    "evaluate_every": 2,
    "evaluation_episodes": 2,
    "log_every": 1,
    "checkpoint_every": 1,
    "late": 1,
}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": _LAPTOP,
    "real": {
        **_LAPTOP,
        "backbone": "smollm2-135m",
        "blocks": 6,
        "length": 5,
        "batch_size": 8,
        "learning_rate": 1e-4,
        "text_batch_size": 2,
    },
    "paper": {},
    "smoke": {**_LAPTOP, **_SMOKE},
}


def few(episodes: Episodes, ratio: float, rng: np.random.Generator) -> Episodes:
    """int(ratio E) of the E episodes, at least one, without replacement."""
    number = max(1, int(ratio * episodes.episodes + 1e-9))
    return episodes.select(np.sort(rng.choice(episodes.episodes, number, replace=False)))


def with_delayed_rewards(episodes: Episodes) -> Episodes:
    """The same returns, all in the last step."""
    reward = np.zeros(len(episodes), dtype=np.float32)
    reward[episodes.last] = episodes.returns()
    return episodes.replace(reward=reward)


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; score is the mean of the late evaluations."""
    if config.adapter not in ADAPTERS or not 0 < config.ratio <= 1 or config.late < 1:
        raise UserError(f"adapter must be one of {', '.join(ADAPTERS)}, ratio in (0, 1] and late at least 1.")
    data = open_data(config, run)
    episodes = few(data.episodes, config.ratio, run.streams.numpy("subset"))
    if config.delayed:
        episodes = with_delayed_rewards(episodes)
    pretraining = Pretraining(config.corpus, config.tiny_blocks, config.tiny_width, steps=config.tiny_steps)
    model, text = text_model(config.backbone, pretraining)
    agent = LaMo(data.spec, SimpleNamespace(**asdict(config), model=model, text=text), run.stream("agent"))
    agent.aim(float(np.quantile(episodes.returns(), config.target_quantile)))
    trained = sum(parameter.numel() for parameter in agent.policy.parameters() if parameter.requires_grad)
    last = learn_offline(agent, Data(episodes, data.spec, data.world), sequences(config.length), config, run)
    facts = {"data/episodes": float(episodes.episodes), "parameters/trained": float(trained)}
    rows = [row for row in run.history() if "evaluation/score" in row][-config.late :]
    if not rows:  # a world without a reference, or none at all
        return {**last, **facts}
    return {**last, **facts, "score": float(np.mean([row["evaluation/score"] for row in rows]))}


CLAIM = Claim(
    statement="With ten recorded episodes, a decision transformer on a pretrained language model (adapters, deep"
    " embeddings, language loss) scores 5 points more than one that is trained from scratch, and than the same on"
    " weights that have read nothing.",
    arms={
        "lamo": {},
        "random-weights": {"corpus": "none"},
        "no-language-loss": {"language_weight": 0.0},  # not judged
        "decision-transformer": {
            "corpus": "none",
            "adapter": "full",
            "embedding": "linear",
            "language_weight": 0.0,
        },
    },
    metric="score",
    holds=all_of(
        difference_claim("lamo", "decision-transformer", threshold=5.0),
        difference_claim("lamo", "random-weights", threshold=5.0),
    ),
    seeds=(0, 1, 2),
    budget="one pretraining of the language model, then 12 trainings of 600 updates, on one core",
    base=_LAPTOP,
    smoke=_SMOKE,
    curve="evaluation/score",
)

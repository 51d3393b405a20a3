"""Meta-DT: offline meta reinforcement learning as the continuation of sequences that know their task.

Wang et al. 2024, NeurIPS 2024. From recordings of many tasks, a world model learns to predict rewards (or dynamics)
with the help of a code that it reads from the last few steps, so that the code tells the task and not who acted. A
decision transformer gets that code with every observation and, in a task that it has not seen, a prompt: the part of
its own earlier episodes which the world model predicted worst, since there is what the code does not know.

Two stages: the world model, with the parameters that were best on held-out tasks of training; then the transformer. A
resumed run makes data and world model again, from the same streams to the same numbers.

What differs from the paper and its code, and why:

* Tasks are those of a batched point robot: hidden goals (the paper's Point-Robot), or hidden turns of the actions,
  where dynamics differ. The recordings are of a scripted controller of middling skill, not of SAC.
* The world model is chosen on held-out tasks of training; the code chooses it on the test tasks.
* The code of an empty history is read from zeros in training and when acting; the released code acts with zeros for it.
* A segment's score is the sum over its own steps everywhere; the released code sums to the end of the episode when it
  acts. The start is drawn with a probability proportional to the score, as in that code; "largest" is the text.
* Every agent is scored with two rules for the return asked for: the best recorded one of the test task, which is the
  paper's rule and tells a little of the task, and one number for all tasks (`score/constant`).
* Every evaluation plays the same number of episodes, the first without a prompt; the others are what counts.

Not reproduced: MuJoCo and Meta-World, expert and mixed data, the baselines from other papers.

The file is longer than 200 lines because two models are trained one after the other, each with settings of its own.
"""

from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from zerozoo.control.agents.meta_dt import MetaDT
from zerozoo.control.contexts import WorldModel, context_metrics, fit_world_model
from zerozoo.control.episodes import Episodes
from zerozoo.control.few_shot import FewShotEvaluator
from zerozoo.control.manifest import keep_manifest
from zerozoo.control.normaliser import Normaliser
from zerozoo.control.offline import OfflineLoop
from zerozoo.control.prompts import SELECTIONS, PromptedSequences, PromptPool, best_of_tasks
from zerozoo.control.views import sequences
from zerozoo.environments.batched.point_tasks import PointTasks, draw_tasks
from zerozoo.environments.controllers import random_actor
from zerozoo.environments.data import record
from zerozoo.runs.claims import Claim, all_of, difference_claim, require_mean
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

PAPER = (
    "Meta-DT: Offline Meta-RL as Conditional Sequence Modeling with World Model Disentanglement (2024), "
    "arXiv 2410.11448"
)


@dataclass(frozen=True)
class Config:
    """Fields carry the paper's settings for Point-Robot."""

    seed: int = 0  # of everything random, tasks and data included

    # Tasks and recordings

    family: str = "goals"  # of tasks: goals, where rewards differ, or turns, where dynamics differ
    tasks: int = 45  # of training
    test_tasks: int = 20  # never trained on; 5 in the paper
    trajectories: int = 100  # of 20 steps, for each task

    # World model

    context: bool = True  # tell the transformer the code of the task; else it gets zeros
    horizon: int = 4  # steps that the code is read from
    context_size: int = 16  # numbers of the code
    context_hidden: int = 128  # of the recurrent layer and of the decoder's two
    model_steps: int = 200_000  # updates; 301 epochs in the code
    model_batch_size: int = 128  # steps of each
    model_learning_rate: float = 1e-3  # of Adam
    model_gradient_norm: float = 1.0  # longer gradients are scaled down to it
    model_evaluate_every: int = 500  # updates between looks at the held-out tasks; the best parameters are kept
    heldout_tasks: int = 5  # of those of training

    # Prompts

    prompt: str = "sampled"  # start of a prompt: sampled by the model's error, largest error, uniform; or none
    prompt_length: int = 5  # steps
    prompt_best: int = 3  # prompts are taken from this many best trajectories of a task
    prompt_after: int = 20_000  # updates before the first prompt

    # Decision transformer

    length: int = 20  # steps of a window, and of the memory when it acts
    longest: int = 20  # numbers of steps that have embeddings of their own
    width: int = 128  # of tokens
    blocks: int = 3  # of the transformer
    heads: int = 1  # of attention
    dropout: float = 0.1  # in the residual branches
    return_scale: float = 10.0  # returns are divided by this
    batch_size: int = 128  # windows
    learning_rate: float = 1e-4  # of Adam with decoupled weight decay
    weight_decay: float = 1e-4  # of all parameters
    warmup_updates: int = 10_000  # over which the learning rate rises from 0
    max_gradient_norm: float = 0.25  # longer gradients are scaled down to it
    steps: int = 100_000  # updates
    rounds: int = 4  # episodes of an evaluation in each test task; the first is without a prompt and does not count
    evaluate_every: int = 5_000  # updates between evaluations
    log_every: int = 1_000  # updates between rows of metrics
    checkpoint_every: int = 50_000  # updates between checkpoints


EXTENDABLE = ("steps", "checkpoint_every")

_LAPTOP = {
    "model_steps": 1_000,
    "model_evaluate_every": 100,
    "prompt_after": 400,
    "length": 10,
    "width": 64,
    "blocks": 2,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "warmup_updates": 200,
    "steps": 2_000,
    "evaluate_every": 500,
    "log_every": 250,
    "checkpoint_every": 2_000,
}
_SMOKE = {
    "tasks": 6,
    "test_tasks": 3,
    "trajectories": 5,
    "heldout_tasks": 2,
    "model_steps": 10,
    "model_evaluate_every": 5,
    "prompt_after": 2,
    "width": 16,
    "blocks": 1,
    "batch_size": 8,
    "steps": 6,
    "evaluate_every": 3,
    "log_every": 3,
    "checkpoint_every": 3,
}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": _LAPTOP,
    "turns": {**_LAPTOP, "family": "turns"},
    "paper": {},
    "smoke": {**_LAPTOP, **_SMOKE},
}
PREDICTED = {"goals": "reward", "turns": "next_obs"}  # what differs between the tasks of a family


def record_tasks(config: Config, tasks: np.ndarray, rng: np.random.Generator) -> Episodes:
    """`trajectories` episodes of the scripted controller in each task, extras["task"] their number."""
    world = PointTasks(len(tasks) * config.trajectories, config.family, tasks)
    return Episodes.from_list(record(world, world.medium(), rng, world.time_limit))


def score_reference(config: Config, tasks: np.ndarray) -> tuple[float, float]:
    """Mean returns over the tasks that score 0 and 1: of random actions, 200 episodes a task, and the straight way."""
    rng = np.random.Generator(np.random.PCG64(0))
    many, straight = (PointTasks(copies * len(tasks), config.family, tasks) for copies in (200, 1))
    played = [
        record(world, actor, rng, world.time_limit)
        for world, actor in ((many, random_actor(many)), (straight, straight.oracle))
    ]
    low, high = (float(Episodes.from_list(episodes).returns().mean()) for episodes in played)
    return low, high


def best_returns(data: Episodes) -> np.ndarray:
    """(K,) the highest return in each task."""
    return data.returns()[best_of_tasks(data, 1)[:, 0].numpy()]


def make_model(data: Episodes, tasks: np.ndarray, normaliser: Normaliser, config: Config, run: Run) -> Any:
    """The world model, trained on all tasks but the last `heldout_tasks`, and what its code knows of these."""
    heldout = data.extras["task"][data.starts] >= config.tasks - config.heldout_tasks  # (E,)
    parts = data.select(~heldout), data.select(heldout)
    fields = SimpleNamespace(**asdict(config), predicts=PREDICTED[config.family])
    model = fit_world_model(*parts, normaliser, fields, run)
    return model, context_metrics(model, *parts, tasks, config.horizon)


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the last scores and what the code knows."""
    check(config)
    tasks = draw_tasks(config.family, config.tasks + config.test_tasks, run.streams.numpy("tasks"))
    known, unseen, rng = tasks[: config.tasks], tasks[config.tasks :], run.streams.numpy("data")
    data, test_data = record_tasks(config, known, rng), record_tasks(config, unseen, rng)
    settings = {"family": config.family, "tasks": known.tolist(), "trajectories": config.trajectories}
    keep_manifest(run, data, "meta-dt", settings)
    agent = MetaDT(data.spec, config, run.stream("agent"))
    normaliser = agent.normaliser = Normaliser(data.spec.obs_shape).fit(data.obs)
    model: WorldModel | None = None
    metrics: dict[str, float] = {}
    if config.context or config.prompt in ("sampled", "largest"):
        model, metrics = make_model(data, known, normaliser, config, run)
    context = torch.zeros(len(data), config.context_size)
    if config.context and model is not None:
        context, agent.context_model = model.read(data, config.horizon)[0], model.model

    def pool(episodes: Episodes) -> PromptPool:
        errors = None if model is None else model.read(episodes, config.horizon)[1]
        return PromptPool(episodes, config.prompt_length, config.prompt, errors, normaliser, config.return_scale)

    prompted = config.prompt != "none"
    coded = data.replace(extras={"task": data.extras["task"], "context": context.numpy()})
    best = torch.from_numpy(best_returns(test_data))
    targets = {"task": best, "constant": torch.full_like(best, float(best_returns(data).mean()))}
    world = PointTasks(len(unseen), config.family, unseen)
    reference, makes_prompts = score_reference(config, unseen), pool if prompted else None
    OfflineLoop(
        agent=agent,
        run=run,
        steps=config.steps,
        evaluator=FewShotEvaluator(world, targets, reference, config.rounds, makes_prompts, config.prompt_best),
        evaluate_every=config.evaluate_every,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        data=PromptedSequences(coded, sequences(config.length), pool(data) if prompted else None, config.prompt_best),
        batch_size=config.batch_size,
    ).train()
    last = run.history()[-1]
    return {name: last[name] for name in ("score", "score/first", "score/constant", "policy_loss")} | metrics


def check(config: Config) -> None:
    """UserError for settings that cannot be."""
    if config.prompt not in ("none", *SELECTIONS):
        raise UserError(f"prompt must be none, {', '.join(SELECTIONS)}, not {config.prompt!r}.")
    if not 0 < config.heldout_tasks < config.tasks or config.test_tasks < 1:
        raise UserError("There must be more tasks than heldout_tasks, and at least one of these and of test_tasks.")


CLAIM = Claim(
    statement="In tasks that no recording shows, a decision transformer that is told the code of the task scores 0.08"
    " more than one that is not; with prompts from its own episodes it loses nothing of that, and scores 0.03 more than"
    " with prompts alone.",
    arms={
        "dt": {"context": False, "prompt": "none"},
        "zero-shot": {"prompt": "none"},
        "prompt-dt": {"context": False, "prompt": "uniform"},  # prompts of any segment, no world model at all
        "few-shot": {},
        "few-shot-uniform": {"prompt": "uniform"},  # not judged: does the choice of the segment matter?
    },
    metric="score",
    holds=all_of(
        difference_claim(
            "zero-shot", "dt", threshold=0.08, precondition=require_mean("zero-shot", 0.5, metric="context/probe")
        ),
        difference_claim("few-shot", "zero-shot", threshold=-0.02),
        difference_claim("few-shot", "prompt-dt", threshold=0.03),
    ),
    seeds=(0, 1, 2),
    budget="15 trainings of 2,000 updates of a small transformer on one core",
    base=_LAPTOP,
    smoke=_SMOKE,
    curve="score",
)

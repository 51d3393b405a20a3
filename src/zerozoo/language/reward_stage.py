"""A stage that trains a reward model on pairs of responses of a policy, and what is drawn for it.

`config` is the config of a zero-RL training; the functions read its problems, lengths and machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from zerozoo.language.build import make_sampler, open_policy, open_verifier, prompt_maker
from zerozoo.language.demonstrations import Lessons
from zerozoo.language.device import Machine, set_up_machine
from zerozoo.language.evaluation import evaluate_tasks
from zerozoo.language.example_files import Row, kept_rows, split_off
from zerozoo.language.parallel import Ranks, join_ranks
from zerozoo.language.preference_data import PAIR_COLUMNS, chosen_first, read_pairs
from zerozoo.language.reward_models import RewardModel, RewardScorer, fit_normaliser, save_reward_model
from zerozoo.language.reward_training import PairwiseReward
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import Decoding
from zerozoo.language.scored_pairs import reliability_by_filter
from zerozoo.language.stages import Outputs, Stage
from zerozoo.language.supervised import Objective, SupervisedLoop, measure
from zerozoo.language.task_choice import load_tasks_for
from zerozoo.runs.run import Run
from zerozoo.runs.streams import Streams
from zerozoo.tasks.task import Task, TaskSet

REWARD_MODEL = "reward model"
MEASURED = 10  # one prompt of so many is held out of the pairs: for the accuracy, and for mean and deviation of scores


def draw_responses(config: Any, run: Run, choose: Callable[[TaskSet], Sequence[Task]], stream: str) -> Rollouts:
    """`config.samples_per_prompt` judged responses of `config.model` to each of the chosen problems.

    The random numbers depend on the seed of the run and the name of the stream alone.
    """
    machine = set_up_machine(config)
    ranks, policy = join_ranks(machine.device), open_policy(config, machine)
    tasks = load_tasks_for(config)
    chosen, prompt = choose(tasks), prompt_maker(policy, tasks.template)
    with open_verifier(tasks, ranks) as verifier:
        return evaluate_tasks(
            make_sampler(config.sampler, policy, machine, ranks),
            chosen,
            [prompt(task) for task in chosen],
            verifier,
            Decoding(config.max_new_tokens, config.temperature, stop_strings=tasks.stop),
            Streams(run.seed).torch(stream),
            samples=config.samples_per_prompt,
        ).rollouts


def probe_reliability(config: Any, run: Run, scorer: RewardScorer, when: str, problems: int) -> dict[str, float]:
    """R^2 of reward and true score by rank filter, on fresh responses to held-out problems, and their mean score.

    Returns "reliability/WHEN/FILTER" and "score/WHEN"; see `scored_pairs.reliability_by_filter`.
    """
    drawn = draw_responses(config, run, lambda tasks: tasks.heldout[:problems], f"probe/{when}")
    scores = torch.tensor([one.score for one in drawn.verifications])
    generator = Streams(run.seed).torch(f"reliability/{when}")
    found = reliability_by_filter(scorer.rollouts(drawn), scores, drawn.groups, generator)
    return {f"reliability/{when}/{name}": value for name, value in found.items()} | {
        f"score/{when}": float(scores.mean())
    }


def fit_reward_model(
    model: RewardModel, objective: Objective, lessons: Lessons, config: Any, machine: Machine, run: Run, ranks: Ranks
) -> dict[str, float]:
    """Train a reward model, whatever it learns from, with AdamW and a warmup over a tenth of the steps; its metrics."""
    return SupervisedLoop(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=lessons.learning_rate, weight_decay=config.weight_decay),
        objective=objective,
        settings=lessons.settings(config, machine),
        run=run,
        ranks=ranks,
    ).train()


def reward_model_output(model: RewardModel, run: Run, metrics: Mapping[str, float]) -> Outputs:
    """What a stage gives that has trained a reward model: the saved model as the file "reward model"."""
    if run.writes:
        save_reward_model(model, run.path("reward-model"))
    return Outputs({REWARD_MODEL: run.path("reward-model")}, metrics)


def reward_model_stage(
    lessons: Lessons, config_of: Callable[[Mapping[str, Outputs]], Any], make: Callable[[Any, Run], Sequence[Row]]
) -> Stage:
    """A stage that trains a Bradley-Terry reward model and gives it as the file "reward model".

    Args:
        lessons: how much is learned.
        config_of: (outputs of the stages before) -> the config whose `model` the reward model begins with.
        make: (that config, the stage's run) -> rows {"prompt", "chosen", "rejected"}; called once, they are kept.

    Its metrics: "reward/heldout_accuracy", the share of held-out pairs that it orders as they are labelled.
    """

    def work(run: Run, outputs: Mapping[str, Outputs]) -> Outputs:
        config = config_of(outputs)
        machine = set_up_machine(config)
        ranks = join_ranks(machine.device)
        rows = kept_rows(run, lambda: make(config, run), PAIR_COLUMNS, ranks)
        model = RewardModel(open_policy(config, machine))
        every = read_pairs(model.language_model, rows)
        learned, measured = split_off(every, max(1, len(every) // MEASURED), lambda pair: pair.prompt)
        metrics = fit_reward_model(model, PairwiseReward(model, learned), lessons, config, machine, run, ranks)
        scorer = RewardScorer(model, machine.tokens_per_microbatch, ranks)
        fit_normaliser(scorer, chosen_first(measured))
        accuracy = measure(PairwiseReward(model, measured), machine.tokens_per_microbatch, ranks)["reward/accuracy"]
        return reward_model_output(model, run, {**metrics, "reward/heldout_accuracy": accuracy})

    return Stage("reward-model", work)

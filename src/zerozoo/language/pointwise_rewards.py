"""A stage that trains a reward model to say a number of a response, and several such models as one reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zerozoo.language.build import open_policy
from zerozoo.language.demonstrations import Lessons
from zerozoo.language.device import set_up_machine
from zerozoo.language.example_files import Row, sequences_of, split_off, tokenise
from zerozoo.language.parallel import join_ranks
from zerozoo.language.reward_models import RewardModel, RewardScorer, load_reward_model
from zerozoo.language.reward_stage import fit_reward_model, reward_model_output
from zerozoo.language.reward_training import LabelledReward, outcome_label, squared_error
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.stages import Outputs, Stage
from zerozoo.runs.run import Run

MEASURED = 10  # one prompt of so many is held out


def pointwise_reward_stage(
    name: str,
    lessons: Lessons,
    config_of: Callable[[Mapping[str, Outputs]], Any],
    rows: Callable[[Mapping[str, Outputs]], Sequence[Row]],
) -> Stage:
    """A stage that regresses a label on responses, at their last token, and gives the file "reward model".

    Args:
        lessons: how much is learned.
        config_of: (outputs of the stages before) -> the config whose `model` the reward model begins with.
        rows: (outputs of the stages before) -> {"prompt", "response", "label"}, always the same ones.

    Its metrics: "reward/r2", 1 - squared error / variance of the labels on held-out prompts, 0 where they do not vary.
    """

    def work(run: Run, outputs: Mapping[str, Outputs]) -> Outputs:
        config = config_of(outputs)
        machine = set_up_machine(config)
        ranks, model = join_ranks(machine.device), RewardModel(open_policy(config, machine))
        policy = model.language_model
        data = [outcome_label(*tokenise(policy, row["prompt"], row["response"]), row["label"]) for row in rows(outputs)]
        learned, measured = split_off(data, max(1, len(data) // MEASURED), lambda one: one.prompt)
        metrics = fit_reward_model(
            model, LabelledReward(model, learned, squared_error), lessons, config, machine, run, ranks
        )
        scores = RewardScorer(model, machine.tokens_per_microbatch, ranks).responses(sequences_of(measured))
        agreement = explained(scores, torch.tensor([one.labels[0] for one in measured]))
        return reward_model_output(model, run, {**metrics, "reward/r2": agreement})

    return Stage(name, work)


def explained(scores: Tensor, labels: Tensor) -> float:
    """R^2 = 1 - sum (y - s)^2 / sum (y - mean y)^2, for scores (N,) and labels (N,); 0 where all labels are equal."""
    spread = (labels - labels.mean()).square().sum()
    return 1 - float((labels - scores).square().sum() / spread) if spread > 0 else 0.0


def weighted_reward(
    folders: Mapping[str, str | Path], weights: Mapping[str, float], device: str, tokens_per_microbatch: int
) -> Callable[[Rollouts], Tensor]:
    """(rollouts) -> (N,) sum_k w_k s_k / sum_k w_k over the reward models in the named folders, raw scores.

    An `ExtraReward` of the zero-RL loop.
    """
    scorers = {
        name: RewardScorer(load_reward_model(folder, device=device), tokens_per_microbatch, normalised=False)
        for name, folder in folders.items()
    }
    total = sum(weights[name] for name in folders)

    def reward(rollouts: Rollouts) -> Tensor:
        scores = [weights[name] * scorer.rollouts(rollouts) for name, scorer in scorers.items()]
        return torch.stack(scores).sum(0) / total

    return reward

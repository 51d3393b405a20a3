"""Learned rewards of steps and outcomes: labels by completion, the stage that learns them, and their place in RL.

A process reward model says after each step how likely the right answer still is; an outcome reward model says it after
the last one. Both are a `RewardModel` whose score is a logit. Nobody labels steps by hand: the policy completes every
prefix, and its luck is the label (Math-Shepherd, arXiv 2312.08935; arXiv 2410.15115).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zerozoo.language.build import open_policy
from zerozoo.language.demonstrations import Lessons
from zerozoo.language.device import set_up_machine
from zerozoo.language.example_files import Row, kept_rows, split_off
from zerozoo.language.parallel import join_ranks
from zerozoo.language.reward_models import RewardModel, RewardScorer
from zerozoo.language.reward_stage import fit_reward_model, reward_model_output
from zerozoo.language.reward_training import Labelled, LabelledReward, LabelLoss
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.stages import Outputs, Stage
from zerozoo.language.step_values import StepSplitter, StepValues, Trace
from zerozoo.language.supervised import measure
from zerozoo.losses.preferences import outcome_loss
from zerozoo.rewards.shaping import place_on_tokens, shape_steps
from zerozoo.runs.run import Run

LABEL_COLUMNS = ("prompt", "response", "places", "labels")
MEASURED = 10  # one prompt of so many is held out of the labelled responses


def process_labels(traces: Sequence[Trace], values: StepValues, hard: bool = False) -> list[Row]:
    """Rows {"prompt", "response", "places", "labels"}: the Q of every step of the traces, at the token that ends it.

    Args:
        hard: whether any completion was right, in place of how many.
    """
    prefixes = [trace.prefix(step + 1) for trace in traces for step in range(len(trace.spans))]
    found = iter(values.values(prefixes))
    rows: list[Row] = []
    for trace in traces:
        labels = [next(found) for _ in trace.spans]
        rows.append(
            {
                "task": trace.task.id,
                "prompt": list(trace.prompt),
                "response": list(trace.ids),
                "places": [span.end - 1 for span in trace.spans],
                "labels": [float(label > 0) for label in labels] if hard else labels,
            }
        )
    return rows


def outcome_labels(traces: Sequence[Trace]) -> list[Row]:
    """Rows as `process_labels`, with the verdict at the last token alone."""
    return [
        {
            "task": trace.task.id,
            "prompt": list(trace.prompt),
            "response": list(trace.ids),
            "places": [len(trace.ids) - 1],
            "labels": [float(trace.right)],
        }
        for trace in traces
    ]


def read_labelled(rows: Sequence[Row]) -> list[Labelled]:
    """What `LabelledReward` learns from."""
    return [Labelled(row["prompt"], row["response"], row["places"], row["labels"]) for row in rows]


def area_under_curve(scores: Sequence[float], labels: Sequence[float]) -> float:
    """P(a step with a label above 1/2 has the higher score than one without), equal scores counting half; NaN without
    both kinds."""
    values, good = torch.tensor(scores, dtype=torch.float64), torch.tensor(labels) > 0.5
    gaps = values[good][:, None] - values[~good][None, :]
    return float(((gaps > 0).double() + (gaps == 0).double() / 2).mean())


def labelled_reward_stage(
    lessons: Lessons,
    config_of: Callable[[Mapping[str, Outputs]], Any],
    make: Callable[[Any, Run], Sequence[Row]],
    loss: LabelLoss = outcome_loss,
) -> Stage:
    """A stage that trains a reward model on labelled responses and gives it as the file "reward model".

    Args:
        config_of: (outputs of the stages before) -> the config whose `model` the reward model begins with.
        make: (that config, the stage's run) -> rows with `LABEL_COLUMNS`; called once, they are kept.
        loss: `outcome_loss` for labels between 0 and 1 and scores that are logits, `squared_error` for numbers.

    Its metrics, on held-out responses: "reward/heldout_loss", "reward/heldout_auc" (labels above 1/2 against the
    others), and "reward/median_good", the median score of places whose label is above 1/2.
    """

    def work(run: Run, outputs: Mapping[str, Outputs]) -> Outputs:
        config = config_of(outputs)
        machine = set_up_machine(config)
        ranks = join_ranks(machine.device)
        every = read_labelled(kept_rows(run, lambda: make(config, run), LABEL_COLUMNS, ranks))
        model = RewardModel(open_policy(config, machine))
        learned, measured = split_off(every, max(1, len(every) // MEASURED), lambda one: one.prompt)
        metrics = fit_reward_model(model, LabelledReward(model, learned, loss), lessons, config, machine, run, ranks)
        objective = LabelledReward(model, measured, loss)
        scorer = RewardScorer(model, machine.tokens_per_microbatch, ranks, normalised=False)
        scores = scorer.tokens(objective.sequences)
        read = [float(scores[row, place]) for row, one in enumerate(measured) for place in one.places]
        labels = [label for one in measured for label in one.labels]
        good = [score for score, label in zip(read, labels, strict=True) if label > 0.5]
        metrics |= {
            "reward/heldout_loss": measure(objective, machine.tokens_per_microbatch, ranks)["loss"],
            "reward/heldout_auc": area_under_curve(read, labels),
            "reward/median_good": float(torch.tensor(good).median()) if good else float("nan"),
            "reward/labels": float(sum(len(one.labels) for one in every)),
            "reward/mean_label": sum(labels) / len(labels),
        }
        return reward_model_output(model, run, metrics)

    return Stage("reward-model", work)


@dataclass
class OutcomeReward:
    """An `ExtraReward`: alpha sigma(score) at the last token of each response.

    Attributes:
        scorer: of raw scores, which are logits.
        alpha: weight.
    """

    scorer: RewardScorer
    alpha: float

    def __call__(self, rollouts: Rollouts) -> Tensor:
        return self.alpha * self.scorer.rollouts(rollouts).sigmoid()


@dataclass
class ProcessReward:
    """An `ExtraReward`: alpha r_k on the token that ends step k, r a shaping of the steps' scores sigma(logit).

    The score of a prefix is read at the token that ends it, of the ids that were drawn.

    Attributes:
        scorer: of raw scores.
        splitter: says where steps end.
        shaping: one of `rewards.shaping.SHAPINGS`.
        alpha: weight.
        eta, penalty: constants of the shapings.
    """

    scorer: RewardScorer
    splitter: StepSplitter
    shaping: str
    alpha: float
    eta: float = 0.5
    penalty: float = 0.5
    seen: dict[str, float] = field(default_factory=dict)

    def __call__(self, rollouts: Rollouts) -> Tensor:
        scores, steps, ends = self.step_scores(rollouts)
        rewards = shape_steps(self.shaping, scores, steps, self.eta, self.penalty)
        valid = torch.arange(scores.shape[1]) < steps[:, None]
        self.seen = {
            "process/score": float(scores[valid].mean()),
            "process/below_eta": float((scores[valid] < self.eta).float().mean()),
            "process/steps": float(steps.float().mean()),
            "process/reward": self.alpha * float(rewards.sum()) / len(steps),
        }
        return self.alpha * place_on_tokens(rewards, steps, ends, rollouts.samples.tokens.shape[1])

    def step_scores(self, rollouts: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
        """(N, K) scores of the prefixes in [0, 1], (N,) number of steps, (N, K) tokens that end them; 0 if padded."""
        sequences = rollouts.sequences(range(len(rollouts)))
        spans = [self.splitter.spans(response) for response in sequences.responses]
        steps = torch.tensor([len(one) for one in spans])
        ends = torch.zeros((len(spans), int(steps.max())), dtype=torch.int64)
        for row, one in enumerate(spans):
            ends[row, : len(one)] = torch.tensor([span.end - 1 for span in one])
        scores = self.scorer.tokens(sequences).gather(1, ends).sigmoid()
        return scores.masked_fill(torch.arange(ends.shape[1]) >= steps[:, None], 0.0), steps, ends

    def metrics(self) -> dict[str, float]:
        """Of the rollouts that were seen last: mean score, share of steps below eta, steps, and reward a response."""
        return self.seen

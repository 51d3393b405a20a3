"""Learned rewards of steps: labels by completion, scores at the tokens that end steps, and what is paid for them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from zerozoo.language.demonstrations import Lessons
from zerozoo.language.families import tiny_model
from zerozoo.language.models import save_model
from zerozoo.language.process_rewards import (
    OutcomeReward,
    ProcessReward,
    area_under_curve,
    labelled_reward_stage,
    outcome_labels,
    process_labels,
    read_labelled,
)
from zerozoo.language.reward_models import RewardModel, RewardScorer, load_reward_model, random_head
from zerozoo.language.reward_stage import REWARD_MODEL
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import Samples, pad_rows
from zerozoo.language.settings import ZeroRLConfig
from zerozoo.language.stages import run_stages
from zerozoo.language.step_values import Prefix, Span, StepSplitter, Trace
from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.runs.run import Run
from zerozoo.tasks.task import Task

TASK = Task("t", "q", "6", "test")


class Table:
    """Values by the length of the prefix."""

    def __init__(self, values: dict[int, float]) -> None:
        self.table, self.asked = values, 0

    def values(self, prefixes: list[Prefix]) -> list[float]:
        self.asked += 1
        return [self.table[len(one.ids)] for one in prefixes]


def traces() -> list[Trace]:
    spans = (Span("a\n", 2), Span("b\n", 4), Span("c", 6))
    return [Trace(TASK, (1,), (5, 6, 7, 8, 9, 0), spans, False), Trace(TASK, (1,), (5, 6), (Span("a\n", 2),), True)]


def test_labels_stand_at_the_tokens_that_end_steps():
    values = Table({2: 0.5, 4: 0.25, 6: 0.0})
    first, second = process_labels(traces(), values)  # type: ignore[arg-type]
    assert (first["places"], first["labels"]) == ([1, 3, 5], [0.5, 0.25, 0.0])
    assert (second["places"], second["labels"]) == ([1], [0.5])
    assert values.asked == 1  # all of them together
    hard = process_labels(traces(), values, hard=True)  # type: ignore[arg-type]
    assert [row["labels"] for row in hard] == [[1.0, 1.0, 0.0], [1.0]]
    assert [(row["places"], row["labels"]) for row in outcome_labels(traces())] == [([5], [0.0]), ([1], [1.0])]
    assert read_labelled([first])[0].response == [5, 6, 7, 8, 9, 0]


def test_area_under_curve_by_hand():
    """Of the 2 x 2 pairs one is ordered rightly, one wrongly, one equal, one rightly."""
    assert area_under_curve([0.9, 0.5, 0.5, 0.1], [1.0, 0.6, 0.0, 0.2]) == pytest.approx(3.5 / 4)
    assert area_under_curve([0.1, 0.9], [1.0, 0.0]) == 0.0
    assert math.isnan(area_under_curve([0.1, 0.9], [1.0, 1.0]))


# --- what is paid

LINES = ["0\n1\n2", "3", "1\n\n0\n"]


@pytest.fixture(scope="module")
def scorer() -> RewardScorer:
    language_model = tiny_model("llama", vocabulary="0123\n", hidden=16, heads=2, kv_heads=1)
    return RewardScorer(RewardModel(language_model, random_head(language_model, 3)), normalised=False)


def rollouts(scorer: RewardScorer) -> Rollouts:
    policy = scorer.model.language_model
    rows = [[*policy.tokenizer.encode(text, add_special_tokens=False), policy.eos_ids[0]] for text in LINES]
    tokens, mask = pad_rows(rows, policy.pad_id, "right")
    lengths = mask.sum(1)
    samples = Samples(
        tokens, lengths, torch.zeros(tokens.shape), torch.ones(3, dtype=torch.bool), torch.arange(3), list(LINES)
    )
    verdicts = [Verification(Verdict.WRONG, "", 0.0, False, 0.0)] * 3
    return Rollouts([TASK] * 3, [policy.encode("2")] * 3, samples, verdicts, torch.zeros(3))


def process(scorer: RewardScorer, shaping: str, **changes: Any) -> ProcessReward:
    return ProcessReward(scorer, StepSplitter(scorer.model.language_model), shaping, **{"alpha": 0.5, **changes})


def test_scores_are_read_where_steps_end(scorer):
    """Against the model run on each prefix alone."""
    drawn = rollouts(scorer)
    scores, steps, ends = process(scorer, "raw").step_scores(drawn)
    assert steps.tolist() == [3, 1, 2]
    assert [ends[row, : int(steps[row])].tolist() for row in range(3)] == [[1, 3, 5], [1], [2, 5]]
    sequences = drawn.sequences(range(3))
    for row in range(3):
        for step in range(int(steps[row])):
            prefix = sequences.responses[row][: int(ends[row, step]) + 1]
            alone = scorer.tokens(type(sequences)([sequences.prompts[row]], [prefix]))[0, -1].sigmoid()
            assert float(scores[row, step]) == pytest.approx(float(alone), abs=1e-6)
    assert scores[1, 1:].eq(0).all()


def test_rewards_stand_where_steps_end_and_telescope(scorer):
    """Delta: from the first step on p_1 in all, whatever comes; nothing for a single step; raw pays every step."""
    drawn = rollouts(scorer)
    scores, _, _ = process(scorer, "raw").step_scores(drawn)
    raw, delta = process(scorer, "raw")(drawn), process(scorer, "delta")(drawn)
    assert raw.shape == delta.shape == drawn.samples.tokens.shape
    assert raw[0].nonzero()[:, 0].tolist() == [1, 3, 5]
    assert raw[0, [1, 3, 5]].tolist() == pytest.approx((0.5 * scores[0]).tolist())
    assert delta.sum(1).tolist() == pytest.approx([0.5 * float(scores[0, 0]), 0.0, 0.5 * float(scores[2, 0])])
    assert float(delta[0, 3]) == pytest.approx(0.5 * float(scores[0, 1]))
    assert float(delta[0, 5]) == 0.0


def test_the_clip_never_pays_and_metrics_tell_what_was_seen(scorer):
    drawn, clip = rollouts(scorer), process(scorer, "clip", eta=0.5)
    paid = clip(drawn)
    assert float(paid.max()) == 0.0
    scores, steps, _ = clip.step_scores(drawn)
    valid = torch.cat([scores[row, : int(steps[row])] for row in range(3)])
    metrics = clip.metrics()
    assert metrics["process/score"] == pytest.approx(float(valid.mean()))
    assert metrics["process/below_eta"] == pytest.approx(float((valid < 0.5).float().mean()))
    assert metrics["process/steps"] == 2.0
    assert metrics["process/reward"] == pytest.approx(float(paid.sum()) / 3)


def test_an_outcome_is_read_after_the_last_token(scorer):
    drawn = rollouts(scorer)
    paid = OutcomeReward(scorer, 0.5)(drawn)
    scores, steps, _ = process(scorer, "raw").step_scores(drawn)
    last = scores.gather(1, steps[:, None] - 1)[:, 0]
    assert paid.tolist() == pytest.approx((0.5 * last).tolist())


# --- learning it


def test_a_stage_learns_which_responses_are_good(tmp_path: Path):
    """Responses that begin with 1 are good; one prompt in ten is held out, and told apart."""
    language_model = tiny_model("llama", vocabulary="0123\n", hidden=16, heads=2, kv_heads=1)
    save_model(language_model, tmp_path / "model")
    ids = {one: language_model.encode(one)[-1] for one in "0123"}
    prompts = [language_model.encode(a + b) for a in "0123" for b in "0123"]
    rows = [
        {"prompt": prompt, "response": [ids[one], ids["2"]], "places": [0, 1], "labels": [float(one == "1")] * 2}
        for prompt in prompts
        for one in "013"
    ]
    config = ZeroRLConfig(model=str(tmp_path / "model"), device="cpu")
    calls: list[int] = []

    def make(given: Any, run: Run) -> list[dict[str, Any]]:
        calls.append(1)
        return rows

    stage = labelled_reward_stage(Lessons(60, 16, 0.01), lambda before: config, make)
    outputs = run_stages(Run(tmp_path / "run"), [stage])["reward-model"]
    metrics = outputs.metrics
    assert metrics["reward/heldout_auc"] == 1.0
    assert metrics["reward/heldout_loss"] < 0.2
    assert metrics["reward/median_good"] > 0
    assert metrics["reward/labels"] == 96
    assert metrics["reward/mean_label"] == pytest.approx(1 / 3)
    load_reward_model(outputs.files[REWARD_MODEL])
    assert run_stages(Run(tmp_path / "run"), [stage])["reward-model"].metrics == metrics
    assert len(calls) == 1

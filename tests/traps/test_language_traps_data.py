"""Traps 35 and 36: a resume goes on with the next unseen task, and nothing is dropped on the quiet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zerozoo.language.algorithm import Algorithm
from zerozoo.language.build import check_numbers
from zerozoo.language.deck import Deck
from zerozoo.language.evaluation import evaluate_tasks
from zerozoo.language.families import tiny_model
from zerozoo.language.logprobs import split_by_tokens
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.task_choice import fit_tasks
from zerozoo.language.zero_rl import ZeroRL
from zerozoo.recipes.reasoning.simplerl_zoo import Config
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.task import Task, TaskSet

Make = Callable[..., Any]
TASKS = [Task(str(index), f"question {index}", "0", "test") for index in range(11)]


def dealt(deck: Deck, times: int, count: int = 3) -> list[str]:
    return [task.id for _ in range(times) for task in deck.deal(count)]


def make_deck(seed: int = 0, tasks: list[Task] = TASKS) -> Deck:
    return Deck(tasks, 3, torch.Generator().manual_seed(seed))


def trained_on(loop: ZeroRL) -> list[tuple[int, str]]:
    """(step, task) of every training response in samples.jsonl."""
    return [(row["step"], row["task"]) for row in loop.run.samples() if row["phase"] == "train"]


# --- 35


@pytest.mark.parametrize("before", [1, 2, 3, 4, 7])
def test_trap_35_the_next_deal_after_a_resume_is_the_next_unseen_task(before: int) -> None:
    """Mistake: the skip count is off by one and a batch is replayed. Rule: what was dealt is saved and stays dealt."""
    whole = dealt(make_deck(), 10)
    first = make_deck()
    tasks = dealt(first, before)
    state = json.loads(json.dumps(first.state()))
    second = make_deck(seed=99)
    second.generator.set_state(first.generator.get_state())
    second.load_state(state)
    rest = dealt(second, 10 - before)
    assert tasks + rest == whole
    in_pass = (before - 1) % 3 + 1  # deals made in the pass of the resume; a pass is three deals of eleven tasks
    if in_pass < 3:
        assert not set(tasks[-3 * in_pass :]) & set(rest[: 9 - 3 * in_pass])


def test_trap_35_a_resume_in_a_later_pass_has_that_passs_order() -> None:
    """Mistake: every resume starts with the order of the first pass. Rule: the order of the running pass is saved."""
    deck = make_deck()
    first = dealt(deck, 3)
    deck.deal(3)
    assert deck.passes == 2
    second = make_deck(seed=99)
    second.load_state(deck.state())
    assert second.order == deck.order
    assert second.order[:9] != [int(index) for index in first]
    assert second.passes == 2


def test_trap_35_a_checkpoint_of_other_data_is_refused() -> None:
    """Mistake: an index into data that has changed since. Rule: other tasks are refused in a sentence."""
    for others in (TASKS[:9], [*TASKS[1:], TASKS[0]]):
        with pytest.raises(UserError, match="not those of the checkpoint"):
            make_deck(tasks=others).load_state(make_deck().state())


def test_trap_35_a_stopped_run_goes_on_as_if_it_had_never_stopped(
    make_loop: Make, tmp_path: Path, weights: Make
) -> None:
    """Mistake: data, streams or optimiser start anew after a resume. Rule: exactly the same tasks, weights and rows."""
    logged = {"samples_logged": 12}
    whole = make_loop(tmp_path / "whole", steps=6, settings=logged)
    whole.train()
    make_loop(tmp_path / "parts", steps=2, settings=logged).train()
    parts = make_loop(tmp_path / "parts", steps=6, settings=logged)
    parts.train()
    assert trained_on(parts) == trained_on(whole)
    assert [step for step, _ in trained_on(parts)] == [step for step in range(1, 7) for _ in range(12)]
    tasks = [task for step, task in trained_on(whole) if step <= 3]
    assert len(set(tasks)) == 9  # three steps of three, all different
    assert torch.equal(weights(parts.policy), weights(whole.policy))
    assert [row["step"] for row in parts.run.history()] == list(range(7))


def test_trap_35_a_crash_between_checkpoints_repeats_what_was_lost(
    make_loop: Make, tmp_path: Path, weights: Make
) -> None:
    """Mistake: the loader's cursor is saved, tasks of lost steps are never trained. Rule: lost steps are done again."""
    whole = make_loop(tmp_path / "whole", steps=6)
    whole.train()
    crashing = make_loop(tmp_path / "parts", steps=6)
    step = crashing.step

    def crash_in_step_four(number: int) -> Any:
        if number == 4:
            raise RuntimeError("power cut")
        return step(number)

    crashing.step = crash_in_step_four
    with pytest.raises(RuntimeError, match="power cut"):
        crashing.train()
    assert crashing.run.saved == 2
    resumed = make_loop(tmp_path / "parts", steps=6)
    resumed.train()
    assert trained_on(resumed) == trained_on(whole)
    assert torch.equal(weights(resumed.policy), weights(whole.policy))


def test_trap_35_replaced_groups_count_as_dealt(make_loop: Make, tmp_path: Path, weights: Make) -> None:
    """Mistake: extra draws of dynamic sampling are not in the saved position. Rule: refills move it as well."""
    results = []
    for parts in ((4,), (2, 4)):
        for steps in parts:
            loop = make_loop(tmp_path / str(parts), steps=steps, algorithm=Algorithm(refill_rounds=2))
            loop.train()
        results.append((loop.deck.state(), weights(loop.policy)))
    rounds = [row["groups/rounds"] for row in loop.run.history() if row["step"]]
    assert max(rounds) > 1
    assert (loop.deck.passes - 1) * 9 + loop.deck.dealt == 3 * sum(rounds)  # three deals of three make a pass
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("lost_in", [2, 4, 5])
def test_trap_35_asynchronous_staleness_budget(make_loop: Make, tmp_path: Path, lost_in: int) -> None:
    """Mistake: after a recovery more is drawn ahead than is allowed. Rule: nothing is under way; lag grows from 0."""
    settings = {"max_lag": 2, "samples_logged": 12}
    whole = make_loop(tmp_path / "whole", steps=6, settings=settings)
    whole.train()
    crashing = make_loop(tmp_path / "parts", steps=6, settings=settings)
    step = crashing.step

    def crash(number: int) -> Any:
        if number == lost_in:
            crashing.collector.collect(number)  # others are on their way by then
            raise RuntimeError("power cut")
        return step(number)

    crashing.step = crash
    with pytest.raises(RuntimeError, match="power cut"):
        crashing.train()
    assert len(crashing.collector.under_way) == min(2, 6 - lost_in)
    resumed = make_loop(tmp_path / "parts", steps=6, settings=settings)
    ahead = []
    deal = resumed.deck.deal

    def count(number: int) -> list[Task]:
        ahead.append(len(resumed.collector.under_way))
        return deal(number)

    resumed.deck.deal = count
    resumed.train()
    kept = (lost_in - 1) // 2 * 2
    assert ahead == [0, 1, 2, *[2] * (6 - kept)][: 6 - kept]  # each step is dealt once, at most two beside it
    ages = [row["staleness/highest"] for row in resumed.run.history() if row["step"] > kept]
    assert ages == [0, 1, 2, 2, 2, 2][: 6 - kept]
    assert trained_on(resumed) == trained_on(whole)


# --- 36


@pytest.mark.parametrize(("groups", "updates"), [(5, 2), (5, 3), (7, 4), (3, 3), (4, 1)])
def test_trap_36_every_row_is_in_exactly_one_minibatch(
    groups: int, updates: int, hand_made: Make, make_updater: Make
) -> None:
    """Mistake: samples that do not divide into mini-batches are dropped. Rule: mini-batches differ in size instead."""
    policy = tiny_model("llama", hidden=16, heads=2, kv_heads=1, layers=1, dtype="float64")
    responses = [[5 + index % 3] * (1 + index % 4) for index in range(groups * 2)]
    rollouts = hand_made([[4]] * groups, responses, [1.0, -1.0] * groups)
    updater = make_updater(policy, Algorithm(), updates_per_step=updates, tokens_per_microbatch=7)
    batches = updater._minibatches(rollouts)
    assert len(batches) == updates
    assert sorted(row for batch in batches for row in batch) == list(range(groups * 2))
    metrics = updater.update(rollouts)
    assert metrics["update/rows"] == groups * 2
    assert metrics["update/row_share"] == 1.0


def test_trap_36_microbatches_hold_every_row_also_the_longest() -> None:
    """Mistake: a row over the token budget is left out. Rule: it makes a micro-batch of its own."""
    lengths = [5, 50, 3, 8, 2, 8, 13]
    for budget in (1, 10, 16, 1000):
        batches = split_by_tokens(lengths, budget)
        assert sorted(row for batch in batches for row in batch) == list(range(7))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


def test_trap_36_the_rest_of_a_pass_is_another_rest_in_the_next() -> None:
    """Mistake: the same last tasks are never trained on. Rule: the rest is dropped, as in the paper, but reshuffled."""
    deck = make_deck()
    rests = []
    for _ in range(4):
        ids = dealt(deck, 3)
        assert len(set(ids)) == 9
        rests.append({task.id for task in TASKS} - set(ids))
    assert len({tuple(sorted(rest)) for rest in rests}) > 1
    assert set.intersection(*rests) == set()


def test_trap_36_an_evaluation_answers_every_task(make_loop: Make, tmp_path: Path) -> None:
    """Mistake: the last incomplete batch of an evaluation is dropped. Rule: every task, however many fit at once."""
    loop = make_loop(tmp_path)
    sampler = NativeSampler(loop.policy, max_rows=6)  # waves of two prompts, and one that is left over
    prompts = [loop.prompt(task) for task in TASKS]
    generator = torch.Generator().manual_seed(0)
    result = evaluate_tasks(sampler, TASKS, prompts, loop.verifier, loop.decoding, generator, samples=3)
    assert result.correct.shape == (11, 3)
    assert loop.verifier.seen[-1] == [task.id for task in TASKS for _ in range(3)]


def test_trap_36_tasks_that_are_left_out_are_counted_aloud(tmp_path: Path) -> None:
    """Mistake: long prompts vanish. Rule: the number of dropped problems is said, and an empty rest is an error."""
    policy, said = tiny_model("llama", hidden=16, heads=2, kv_heads=1), []
    tasks = (*TASKS, Task("long", "x" * 60, "0", "test"), Task("longer", "y" * 70, "0", "test"))
    heldout = (Task("other", "another question", "0", "test"),)
    task_set = TaskSet("traps", tasks, heldout, "math", "first-number", "{question}", (), 5)
    run = Run(tmp_path)
    run.say = said.append
    config = Config(max_new_tokens=5, max_prompt_tokens=30)
    kept = fit_tasks(config, task_set, policy, NativeSampler(policy), run)
    assert [task.id for task in kept.train] == [task.id for task in TASKS]
    assert said == ["2 training problems were left out: their prompts are too long."]
    with pytest.raises(UserError, match="Every training prompt is too long"):
        fit_tasks(Config(max_new_tokens=5, max_prompt_tokens=5), task_set, policy, NativeSampler(policy), run)


def test_trap_36_more_updates_than_prompts(hand_made: Make, make_updater: Make) -> None:
    """Mistake: an empty mini-batch crashes or counts. Rule: a config is refused, an updater makes no empty ones."""
    with pytest.raises(UserError, match="updates_per_step is 5, but a step has only 4 prompts"):
        check_numbers(Config(max_new_tokens=5, prompts_per_step=4, updates_per_step=5))
    policy = tiny_model("llama", hidden=16, heads=2, kv_heads=1, layers=1, dtype="float64")
    rollouts = hand_made([[4], [5]], [[5, 6], [7]] * 2, [1.0, -1.0] * 2)
    metrics = make_updater(policy, Algorithm(), updates_per_step=3).update(rollouts)
    assert metrics["update/rows"] == 4
    assert metrics["update/skipped_steps"] == 0

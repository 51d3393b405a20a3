"""Two task sets for character-level tiny models: problems, their answers, and what is written about them."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from zerozoo.rewards.expressions import evaluate_expression
from zerozoo.rewards.postfix import run_postfix
from zerozoo.rewards.verifier import Verdict
from zerozoo.runs.errors import UserError
from zerozoo.tasks.load import load_task_set
from zerozoo.tasks.postfix import postfix, written_program
from zerozoo.tasks.prompts import render
from zerozoo.tasks.small_countdown import expressions, small_countdown, written_search
from zerozoo.tasks.task import make_verifier
from zerozoo.tasks.word_sums import ALPHABET

# --- postfix


def test_programs_have_tests_that_the_last_step_decides() -> None:
    tasks = postfix(train_size=100, heldout_size=20)
    for task in tasks.train:
        inputs, expected = task.metadata["inputs"], task.metadata["expected"]
        assert [run_postfix(task.answer, x) for x in inputs] == expected
        without = " ".join(task.answer.split()[:-2])
        passed = sum(run_postfix(without, x) == y for x, y in zip(inputs, expected, strict=True))
        assert 2 <= passed <= 6  # of 8


def test_scores_of_slips_lie_at_the_ends_and_between() -> None:
    tasks, rng = postfix(train_size=400, heldout_size=20), random.Random(0)
    with make_verifier(tasks) as verifier:
        right = verifier.verify(tasks.train, [written_program(task, rng) for task in tasks.train])
        slips = verifier.verify(tasks.train, [written_program(task, rng, 1.0) for task in tasks.train])
    assert {one.verdict for one in right} == {Verdict.RIGHT}
    kinds = Counter("low" if one.score == 0 else "high" if one.score == 1 else "middle" for one in slips)
    assert kinds["middle"] > 150
    assert kinds["low"] > 20
    assert kinds["high"] < 60  # a slip that no test notices


def test_postfix_texts_fit_the_tiny_model() -> None:
    tasks = postfix(train_size=200, heldout_size=50)
    rng = random.Random(0)
    for task in (*tasks.train, *tasks.heldout):
        text = render(tasks.template, task.question) + written_program(task, rng, 0.5)
        assert set(text) <= set(ALPHABET)
        assert len(written_program(task, rng, 1.0)) < tasks.max_new_tokens
        assert len(text) < 128


# --- small countdown


def test_every_instance_can_be_solved_and_none_is_in_both_parts() -> None:
    tasks = small_countdown()
    keys = [(tuple(sorted(one.metadata["numbers"])), one.metadata["target"]) for one in (*tasks.train, *tasks.heldout)]
    assert len(set(keys)) == len(keys) == 1200
    with make_verifier(tasks) as verifier:
        found = verifier.verify(tasks.train, [f" {task.answer}={task.metadata['target']}" for task in tasks.train])
    assert {one.verdict for one in found} == {Verdict.RIGHT}


def test_expressions_use_each_number_once_and_know_their_value() -> None:
    every = expressions((3, 5, 9))
    assert every["3*5+9"] == 24
    assert "3-5-9" not in every  # negative
    for text, value in every.items():
        assert sorted(map(int, re.findall(r"\d", text))) == [3, 5, 9]
        assert evaluate_expression(text) == value
        assert 1 <= value < 100


def test_searches_stop_at_the_target_and_some_do_not_try_again() -> None:
    tasks, rng = small_countdown(), random.Random(0)
    for searching in (0.0, 1.0):
        lines = [written_search(task, rng, searching).strip().split("\n") for task in tasks.train]
        assert max(map(len, lines)) == (5 if searching else 1)
        for task, tries in zip(tasks.train, lines, strict=True):
            values = [int(line.partition("=")[2]) for line in tries]
            assert all(evaluate_expression(line.partition("=")[0]) == v for line, v in zip(tries, values, strict=True))
            assert task.metadata["target"] not in values[:-1]
            assert len(set(tries)) == len(tries)
            if searching:
                possible = len(expressions(tuple(sorted(task.metadata["numbers"]))))
                assert values[-1] == task.metadata["target"] or len(tries) == min(5, possible)
    with make_verifier(tasks) as verifier:
        texts = [written_search(task, rng, 1.0) for task in tasks.train]
        for task, text, one in zip(tasks.train, texts, verifier.verify(tasks.train, texts), strict=True):
            assert (one.verdict is Verdict.RIGHT) == text.endswith(f"={task.metadata['target']}")
    assert all(len(text) < 48 and set(text) <= set(ALPHABET) for text in texts)


# --- both


@pytest.mark.parametrize("name", ["postfix", "small-countdown"])
def test_both_are_found_by_name_and_depend_on_their_seed(name: str) -> None:
    tasks = load_task_set(name, train_size=50, heldout_size=10)
    assert (len(tasks.train), len(tasks.heldout)) == (50, 10)
    assert tasks == load_task_set(name, train_size=50, heldout_size=10)
    assert tasks.heldout != load_task_set(name, train_size=50, heldout_size=10, seed=1).heldout
    assert load_task_set(name, train_size=5, heldout_size=10).heldout == tasks.heldout
    for options in ({"split": "easy"}, {"level": "easy"}):
        with pytest.raises(UserError, match="has no use"):
            load_task_set(name, **options)
    with pytest.raises(UserError, match="heldout_size"):
        load_task_set(name, heldout_size=0)


def test_more_instances_than_there_are() -> None:
    with pytest.raises(UserError, match="ask for fewer"):
        small_countdown(train_size=10_000)

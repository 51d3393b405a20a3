"""Mixtures of tasks with a verifier for each problem, the copying tasks, and repetition by difficulty."""

from __future__ import annotations

import pytest

from zerozoo.rewards.by_problem import ByProblemVerifier
from zerozoo.rewards.verifier import Verdict
from zerozoo.runs.errors import UserError
from zerozoo.tasks.copying import WORDS, copying, is_heldout
from zerozoo.tasks.load import load_task_set
from zerozoo.tasks.mixture import mixture
from zerozoo.tasks.splits import repeat_by_difficulty
from zerozoo.tasks.task import Task, make_verifier
from zerozoo.tasks.word_sums import ALPHABET

NAMES = "word-sums:easy+constraints:short+copying"


def test_every_problem_of_a_mixture_is_judged_by_its_own_verifier() -> None:
    tasks = load_task_set(NAMES, train_size=40, heldout_size=20)
    assert tasks.name == NAMES
    assert (len(tasks.train), len(tasks.heldout)) == (120, 60)
    assert {task.source for task in tasks.train} == {"word-sums", "constraints", "copying"}
    assert tasks.max_new_tokens == 64
    with make_verifier(tasks) as verifier:
        answers = [f" {task.answer}question: and on" for task in tasks.heldout]
        assert {one.verdict for one in verifier.verify(tasks.heldout, answers)} == {Verdict.RIGHT}
        # Each alone, in reverse order, is judged as in company; none takes the answer of another kind.
        moved = [*answers[20:], *answers[:20]]
        verdicts = [one.verdict for one in verifier.verify(tasks.heldout, moved)]
        assert verdicts[:20] == [Verdict.WRONG] * 20
        assert [one.verdict for one in verifier.verify(tasks.heldout[::-1], moved[::-1])] == verdicts[::-1]


def test_parts_of_a_mixture_share_their_prompt() -> None:
    with pytest.raises(UserError, match="asked with one prompt.*word-sums:easy with word-sums, arithmetic.*template"):
        load_task_set("word-sums+arithmetic")
    asked = load_task_set("word-sums+arithmetic", template="plain-qa")
    assert asked.template == "plain-qa"
    with pytest.raises(UserError, match="level has no use"):
        load_task_set(NAMES, level="short")
    with pytest.raises(UserError, match="has an empty place in it"):
        load_task_set("word-sums+")


def test_a_problem_without_a_verifier_is_an_error_and_no_silent_zero() -> None:
    verifier = ByProblemVerifier(lambda name, extractor: make_verifier(name, extractor))
    with pytest.raises(UserError, match="which verifier"):
        verifier.verify([Task("t", "?", "1", "s")], ["1"])
    with pytest.raises(UserError, match="Unknown verifier 'nobody'"):
        verifier.verify([Task("t", "?", "1", "s", metadata={"verifier": "nobody"})], ["1"])
    with pytest.raises(ValueError, match="1 problems but 0 responses"):
        verifier.verify([Task("t", "?", "1", "s")], [])


def test_closing_reaches_every_verifier() -> None:
    closed: list[str] = []

    class Closing(ByProblemVerifier):
        def close(self) -> None:
            closed.append("one")

    verifier = ByProblemVerifier(lambda name, extractor: Closing(lambda *_: make_verifier("math")))
    inner = {"verifier": "math", "extractor": "lenient"}
    with verifier:
        assert verifier.verify([Task("t", "?", "1", "s", metadata=inner)], ["1"])[0].verdict is Verdict.RIGHT
    assert closed == ["one"]


def test_a_mixture_keeps_training_and_held_out_questions_apart() -> None:
    first, second = (copying(seed, train_size=30, heldout_size=10) for seed in (0, 1))
    whole = mixture([first, second])
    assert len(whole.train) == 60
    with pytest.raises(UserError, match="held-out questions that are also trained on"):
        mixture([first, mixture_of_swapped(first)])


def mixture_of_swapped(tasks):
    from dataclasses import replace

    return replace(tasks, train=tasks.heldout, heldout=tasks.train)


# --- copying


def test_copying_wants_the_words_and_nothing_else() -> None:
    tasks = copying(train_size=200, heldout_size=100)
    assert tasks == copying(train_size=200, heldout_size=100) != copying(1, 200, 100)
    assert all(is_heldout(task.answer) for task in tasks.heldout)
    assert not any(is_heldout(task.answer) for task in tasks.train)
    assert {len(task.answer.split()) for task in tasks.train} == {1, 2, 3}
    assert all(set(task.question + task.answer) <= set(ALPHABET) for task in tasks.train)
    task = next(task for task in tasks.train if len(set(task.answer.split())) == 3)
    first, second, third = task.answer.split()
    wrong = [
        f"{first} {second}",
        f"{second} {first} {third}",
        f"{first} {second} {third}s",
        f"{first} {second} {second} {third}",
        "",
    ]
    with make_verifier(tasks) as verifier:
        assert verifier.verify([task], [f" {task.answer}"])[0].verdict is Verdict.RIGHT
        assert {one.verdict for one in verifier.verify([task] * 5, wrong)} == {Verdict.WRONG}
    with pytest.raises(UserError, match="fewer than 5000"):
        copying(train_size=5000)
    assert len(WORDS) == 16


# --- difficulty


def test_problems_are_repeated_by_their_pass_rate() -> None:
    """Six times below 0.2, four times below 0.6, twice below 0.8, never above; the borders belong to the next band."""
    rates = {"a": 0.0, "b": 0.19, "c": 0.2, "d": 0.59, "e": 0.6, "f": 0.79, "g": 0.8, "h": 1.0}
    tasks = [Task(name, f"{name}?", "1", "s") for name in (*rates, "unmeasured")]
    chosen = repeat_by_difficulty(tasks, rates, ((0.2, 6), (0.6, 4), (0.8, 2)))
    counts = {task.id: sum(one.id == task.id for one in chosen) for task in tasks}
    assert counts == {"a": 6, "b": 6, "c": 4, "d": 4, "e": 2, "f": 2, "g": 0, "h": 0, "unmeasured": 0}
    with pytest.raises(UserError, match="too easy"):
        repeat_by_difficulty(tasks[6:], rates, ((0.2, 6), (0.8, 2)))

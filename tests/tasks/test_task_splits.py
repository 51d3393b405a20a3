from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerozoo.runs.errors import UserError
from zerozoo.tasks.splits import (
    difficulty_split,
    exclude,
    hash_order,
    informative,
    parse_level,
    select_informative,
    split_heldout,
)
from zerozoo.tasks.task import Task, TaskSet, make_verifier, question_key, unique_tasks


def task(question: str, level: str = "", source: str = "math") -> Task:
    return Task(id=question, question=question, answer="1", source=source, level=level)


def task_set(train: list[Task], heldout: list[Task], verifier: str = "math") -> TaskSet:
    return TaskSet("t", tuple(train), tuple(heldout), verifier, "lenient", "simple", (), 8)


# Specification M9, to its three digits.
@pytest.mark.parametrize(("pass_rate", "expected"), [(0.02, 0.149), (0.1, 0.570), (0.5, 0.992), (0.9, 0.570)])
def test_informative_numbers(pass_rate: float, expected: float) -> None:
    assert round(informative(pass_rate, 8), 3) == expected


def test_informative_edges() -> None:
    assert informative(0.0, 8) == 0.0
    assert informative(1.0, 8) == 0.0
    assert informative(0.3, 1) == 0.0
    assert informative(0.5, 2) == 0.5
    for pass_rate, size in ((-0.1, 8), (1.1, 8), (0.5, 0), (float("nan"), 8)):
        with pytest.raises(ValueError):
            informative(pass_rate, size)


@given(st.floats(0, 1), st.integers(1, 64))
def test_informative_is_a_symmetric_probability(pass_rate: float, size: int) -> None:
    value = informative(pass_rate, size)
    assert 0.0 <= value <= 1.0
    assert value == pytest.approx(informative(1.0 - pass_rate, size), abs=1e-9)


def test_select_informative() -> None:
    tasks = [task("never"), task("seldom"), task("often"), task("always"), task("not measured")]
    rates = {"never": 0.0, "seldom": 0.02, "often": 0.5, "always": 1.0}
    assert [chosen.id for chosen in select_informative(tasks, rates, 8, 0.5)] == ["often"]
    assert [chosen.id for chosen in select_informative(tasks, rates, 8, 0.1)] == ["seldom", "often"]
    with pytest.raises(UserError, match="None of the 5 problems"):
        select_informative(tasks, rates, 8, 0.999)


def test_difficulty_splits() -> None:
    pool = [task(f"m{level}", level=str(level)) for level in range(1, 6)]
    pool += [task("g", source="openai/GSM8K"), task("none")]
    names = {split: [t.id for t in difficulty_split(pool, split)] for split in ("easy", "medium", "hard")}
    assert names == {"easy": ["m1", "g"], "medium": ["m1", "m2", "m3", "m4"], "hard": ["m3", "m4", "m5"]}
    with pytest.raises(UserError, match="easy, medium, hard"):
        difficulty_split(pool, "harder")
    with pytest.raises(UserError, match="found: GSM8K, no level"):
        difficulty_split(pool[5:], "hard")


@pytest.mark.parametrize(
    ("level", "expected"),
    [(5, "5"), ("Level 3", "3"), (2.0, "2"), ("4", "4"), ("Level ?", ""), (None, ""), (True, ""), ("high", "high")],
)
def test_parse_level(level: object, expected: str) -> None:
    assert parse_level(level) == expected


def test_exclude_keeps_an_evaluation_set_out() -> None:
    pool = [task("What is  $x$?"), task("Other"), task("other ")]
    assert [t.question for t in exclude(pool, [task("what is $X$?")])] == ["Other"]


def test_unique_tasks_keeps_the_first() -> None:
    first, repeat = task("What is 1 + 1?"), task("what is\n1 + 1?")
    assert unique_tasks([first, repeat]) == (first,)
    assert question_key("A  b\tC") == "a b c"
    # Blanks are folded, not removed: these are different sums.
    assert question_key("1 1 + 2") != question_key("11 + 2")


def test_heldout_by_hash() -> None:
    tasks = [task(f"q{number}") for number in range(50)]
    train, heldout = split_heldout(tasks, 10, seed=0)
    assert (len(train), len(heldout)) == (40, 10)
    assert set(train) | set(heldout) == set(tasks)
    # The place in the file does not matter, and a removed training problem moves no other.
    assert set(split_heldout(tasks[::-1], 10, seed=0)[1]) == set(heldout)
    assert split_heldout([t for t in tasks if t != train[0]], 10, seed=0)[1] == heldout
    assert split_heldout(tasks, 10, seed=1)[1] != heldout
    assert sorted(hash_order(tasks, 3), key=lambda t: t.id) == sorted(tasks, key=lambda t: t.id)
    with pytest.raises(UserError, match="only 50 problems"):
        split_heldout(tasks, 50)
    with pytest.raises(UserError, match="at least 1"):
        split_heldout(tasks, 0)


def test_task_set_refuses_leaks_and_empty_parts() -> None:
    with pytest.raises(UserError, match="1 held-out questions that are also trained on"):
        task_set([task("What is 1?"), task("b")], [task("what  is 1?")])
    with pytest.raises(UserError, match="no training problems"):
        task_set([], [task("a")])
    with pytest.raises(UserError, match="no held-out problems"):
        task_set([task("a")], [])
    with pytest.raises(UserError, match="math, countdown, countdown-steps, reasoning-gym"):
        task_set([task("a")], [task("b")], verifier="judge")
    with pytest.raises(UserError, match="math, countdown, countdown-steps, reasoning-gym"):
        make_verifier("judge")

from __future__ import annotations

import json

import pytest

from zerozoo.rewards.constraints import CONSTRAINTS, satisfied
from zerozoo.runs.errors import UserError
from zerozoo.tasks.constraints import LEVELS, constraints, is_heldout
from zerozoo.tasks.task import make_verifier
from zerozoo.tasks.word_sums import ALPHABET

SIZES = {"train_size": 300, "heldout_size": 120}


@pytest.fixture(scope="module", params=list(LEVELS))
def sets(request):
    """(level, measured on the trained kinds, measured on the unseen kinds)"""
    return request.param, constraints(request.param, **SIZES), constraints(request.param, suite="unseen", **SIZES)


def instances(tasks):
    return {json.dumps(one, sort_keys=True) for task in tasks for one in task.metadata["constraints"]}


def kinds(tasks):
    return {one["kind"] for task in tasks for one in task.metadata["constraints"]}


def test_sizes_and_names(sets):
    level, seen, unseen = sets
    assert (seen.name, unseen.name) == (f"constraints:{level}", f"constraints:{level}:unseen")
    for tasks in (seen, unseen):
        assert (len(tasks.train), len(tasks.heldout), tasks.verifier) == (300, 120, "constraints")
        assert len({task.id for task in (*tasks.train, *tasks.heldout)}) == 420
    assert unseen.train == seen.train


def test_heldout_instances_are_never_trained_on(sets):
    _, seen, _ = sets
    assert not instances(seen.train) & instances(seen.heldout)
    assert all(is_heldout(one) for task in seen.heldout for one in task.metadata["constraints"])
    assert not any(is_heldout(one) for task in seen.train for one in task.metadata["constraints"])


def test_both_parts_have_every_trained_kind_and_the_unseen_suite_has_others(sets):
    level, seen, unseen = sets
    assert kinds(seen.train) == kinds(seen.heldout) == set(LEVELS[level].trained)
    assert kinds(unseen.heldout) == set(LEVELS[level].unseen)
    assert not kinds(unseen.heldout) & kinds(unseen.train)
    assert kinds(unseen.heldout) | kinds(unseen.train) <= set(CONSTRAINTS)


def test_the_split_does_not_depend_on_the_seed(sets):
    level, seen, _ = sets
    other = constraints(level, seed=5, **SIZES)
    assert other.train != seen.train
    assert not instances(seen.heldout) & instances(other.train)
    assert constraints(level, **SIZES) == seen


def test_every_answer_meets_every_constraint(sets):
    for tasks in sets[1:]:
        everything = (*tasks.train, *tasks.heldout)
        assert all(satisfied(task.answer, one) for task in everything for one in task.metadata["constraints"])
        with make_verifier(tasks) as verifier:
            results = verifier.verify(everything, [task.answer for task in everything])
            swapped = verifier.verify(everything, [task.answer for task in (*everything[1:], everything[0])])
        assert {result.verdict.value for result in results} == {"right"}
        right = sum(result.verdict.value == "right" for result in swapped)
        assert right < 0.7 * len(everything)  # an answer to another problem is mostly wrong


def test_the_question_says_the_parameters(sets):
    for tasks in sets[1:]:
        for task in (*tasks.train, *tasks.heldout):
            parameters = [one.items() for one in task.metadata["constraints"]]
            for value in (value for items in parameters for name, value in items if name != "kind"):
                for part in value if isinstance(value, list) else [value]:
                    assert str(part) in task.question


def test_numbers_of_constraints(sets):
    level, seen, _ = sets
    assert {len(task.metadata["constraints"]) for task in seen.train} == set(range(1, LEVELS[level].most + 1))


def test_the_short_level_fits_the_tiny_base_model():
    for suite in ("heldout", "unseen"):
        tasks = constraints("short", suite=suite, **SIZES)
        for task in (*tasks.train, *tasks.heldout):
            assert set(task.question + task.answer) <= set(ALPHABET)
            assert len(task.question) <= 80
            assert len(task.answer) <= 64
        assert (tasks.template, tasks.max_new_tokens) == ("word-sums", 64)


def test_errors(monkeypatch):
    with pytest.raises(UserError, match="short, plain"):
        constraints("long")
    with pytest.raises(UserError, match="heldout, unseen"):
        constraints(suite="dev")
    with pytest.raises(UserError, match="train_size must be at least 1"):
        constraints(train_size=0)
    monkeypatch.setattr("zerozoo.tasks.constraints.MISSES", 2)
    with pytest.raises(UserError, match="fewer than 100000 problems in the part 'unseen'"):
        constraints("short", train_size=1, heldout_size=100_000, suite="unseen")

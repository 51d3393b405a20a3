"""Functions to test and their careless developers: what is held out, and what each habit does to a test."""

from __future__ import annotations

import ast
import re

import pytest

from zerozoo.rewards.unit_tests import analyse, combined_reward, first_unit_test, has_constant_assertion, is_sound
from zerozoo.rewards.unit_tests import parse_unit_test as parse
from zerozoo.runs.errors import UserError
from zerozoo.tasks.load import load_task_set
from zerozoo.tasks.prompts import render
from zerozoo.tasks.unit_tests import (
    HABITS,
    SEEN,
    START,
    STOP,
    TEMPLATE,
    UNSEEN,
    Habits,
    corpus,
    unit_tests,
    vocabulary,
    written_tests,
)

PERFECT = Habits(**dict.fromkeys(vars(HABITS), 0.0))
SMALL = unit_tests(train_size=300, heldout_size=50)


def qualities(**chances):
    """What the analyser finds in 150 tests of developers who have only these habits."""
    habits = Habits(**{**vars(PERFECT), **chances})
    return [analyse(START + response, focal.name) for focal, response in written_tests(1, 150, habits)]


def share(name, found):
    return sum(one[name] for one in found) / len(found)


def test_the_set_has_its_sizes_and_a_fifth_of_unseen_families():
    assert (len(SMALL.train), len(SMALL.heldout)) == (300, 50)
    families = {family.name for family in UNSEEN}
    assert sum(not task.metadata["seen"] for task in SMALL.heldout) == 10
    for task in (*SMALL.train, *SMALL.heldout):
        assert task.metadata["seen"] == (task.metadata["family"] not in families)
        assert all(task.metadata["seen"] for task in SMALL.train)
        assert ast.parse(task.metadata["source"]).body[0].name == task.metadata["focal"]
    assert len({family.name for family in (*SEEN, *UNSEEN)}) == len(SEEN) + len(UNSEEN) > 30


def test_the_prompt_ends_where_the_test_begins():
    task = SMALL.train[0]
    assert render(SMALL.template, task.question) == task.metadata["source"] + "\n\n\ndef test_"
    assert task.metadata["start"] == START == "def test_"


def test_the_answers_are_the_best_that_there_is_and_pass():
    for task in SMALL.heldout:
        assert combined_reward(task.answer, task.metadata["focal"]) == 1.0
        namespace = {}
        exec(f"{task.metadata['source']}\n{task.answer}", namespace)  # both of our own making
        namespace[parse(task.answer, "").function.name]()


def test_no_heldout_function_is_in_a_corpus():
    heldout = {task.question for task in unit_tests(heldout_size=200).heldout}
    texts = list(corpus(0, 3000))
    sources = {text.split("\n\n\n")[0] for text in texts}
    assert len(sources) > 1500
    assert not heldout & sources
    assert not heldout & {task.question for task in unit_tests(heldout_size=200).train}


def test_the_corpus_is_a_function_of_its_seed():
    assert list(corpus(3, 20)) == list(corpus(3, 60))[:20]
    assert list(corpus(3, 20)) != list(corpus(4, 20))
    assert unit_tests(train_size=300, heldout_size=50) == SMALL
    assert load_task_set("unit-tests", train_size=300, heldout_size=50) == SMALL
    assert unit_tests(1, 300, 50).heldout != SMALL.heldout


def test_careful_developers_write_sound_tests_that_pass():
    for focal, response in written_tests(0, 150, PERFECT):
        assert is_sound(analyse(START + response, focal.name))
        namespace = {}
        exec(f"{focal.source}\n{START}{response}", namespace)  # of our own making
        namespace[parse(START + response, "").function.name]()


@pytest.mark.parametrize(
    ("habit", "quality"),
    [
        ("no_assertion", "assertion"),
        ("no_focal_call", "focal-call"),
        ("duplicate", "no-duplicate-assertion"),
        ("conditional", "no-conditional"),
        ("syntax", "syntax"),
    ],
)
def test_every_smell_takes_away_its_quality_and_no_other(habit, quality):
    found = qualities(**{habit: 1.0})
    assert share(quality, found) == 0.0
    if habit != "syntax":
        others = {"syntax", "assertion", "focal-call", "no-duplicate-assertion", "no-conditional"} - {quality}
        assert all(share(other, found) == 1.0 for other in others)


def test_habits_that_are_no_smells():
    assert share("descriptive-name", qualities(descriptive=1.0)) == 1.0
    assert share("descriptive-name", qualities()) == 0.0
    assert share("comment", qualities(comment=1.0)) == 1.0
    assert share("comment", qualities()) == 0.0
    for focal, response in written_tests(0, 50, Habits(**{**vars(PERFECT), "weak": 1.0})):
        assert re.search(r"is not None|isinstance\(", response)
        assert not has_constant_assertion(parse(START + response, focal.name))


def test_a_second_test_follows_a_blank_line_and_is_not_judged():
    for focal, response in written_tests(0, 20, Habits(**{**vars(PERFECT), "run_on": 1.0})):
        first, _, second = response.partition("\n\n\n")
        assert second.startswith(START)
        assert response.split(STOP[0])[0] == first
        assert first_unit_test(START + response).rstrip() == START + first
        assert is_sound(analyse(START + first, focal.name))


def test_the_rates_of_the_corpus():
    """Chances are independent: sound are 0.69 x 0.63 x 0.83 x 0.85, and without a repeated assertion."""
    found = [analyse(START + text.split(STOP[0])[0], focal.name) for focal, text in written_tests(5, 3000)]
    assert share("syntax", found) == pytest.approx(0.83, abs=0.025)
    parsed = [one for one in found if one["syntax"]]
    assert share("focal-call", parsed) == pytest.approx(0.63, abs=0.03)
    assert share("assertion", parsed) == pytest.approx(0.69, abs=0.03)
    assert share("no-conditional", parsed) == pytest.approx(0.85, abs=0.025)
    sound = sum(map(is_sound, found)) / len(found)
    assert sound == pytest.approx(0.69 * 0.63 * 0.83 * 0.85 * 0.85, abs=0.03)


def test_the_vocabulary_names_pieces_once():
    pieces = vocabulary()
    assert len(pieces) == len(set(pieces))
    assert all(len(piece) > 1 for piece in pieces)
    assert {"assert ", START, "get", "startswith", "isinstance("} <= set(pieces)


def test_what_cannot_be(monkeypatch):
    monkeypatch.setattr("zerozoo.tasks.unit_tests._MISSES", 20)
    with pytest.raises(ValueError, match="syntax is a chance"):
        Habits(syntax=1.5)
    with pytest.raises(UserError, match="fewer than"):
        unit_tests(train_size=10, heldout_size=30_000)
    with pytest.raises(UserError, match="has no use"):
        load_task_set("unit-tests", level="hard")
    assert TEMPLATE.endswith(START)

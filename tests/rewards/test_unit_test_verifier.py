"""The verifier of unit tests: what is judged, and how."""

from __future__ import annotations

import pytest

from zerozoo.rewards.terms import load_reward
from zerozoo.rewards.unit_test_verifier import UnitTestVerifier, read_unit_test
from zerozoo.rewards.verifier import Verdict
from zerozoo.tasks.task import Task, make_verifier
from zerozoo.tasks.unit_tests import unit_tests


def problem(**metadata):
    return Task("t", "def add_one(x): ...", "", "unit-tests", metadata={"focal": "add_one", **metadata})


def judge(response, **metadata):
    return UnitTestVerifier(stop=("\n\n",)).verify([problem(start="def test_", **metadata)], [response])[0]


SOUND = "add_one():\n    assert add_one(1) == 2"
BARE = "add_one():\n    add_one(1)"
CUT = "add_one():\n    assert add_one(1"


def test_right_is_sound_and_the_score_is_the_weighted_mean():
    """Weights are 1 for four needed qualities and 1/2 for name and comment: 4 of 5 and 3 of 5."""
    sound, bare, cut = judge(SOUND), judge(BARE), judge(CUT)
    assert [one.verdict for one in (sound, bare, cut)] == [Verdict.RIGHT, Verdict.WRONG, Verdict.WRONG]
    assert [one.score for one in (sound, bare, cut)] == pytest.approx([0.8, 0.6, -1.0])
    assert [load_reward("score")(one) for one in (sound, bare, cut)] == pytest.approx([0.8, 0.6, -1.0])


def test_weights_of_the_problem():
    assert judge(SOUND, weights={"assertion": 1.0}).score == 1.0
    assert judge(BARE, weights={"assertion": 1.0}).score == 0.0
    assert judge(BARE, weights={"assertion": 1.0, "focal-call": 3.0}).score == 0.75
    assert judge(CUT, weights={"assertion": 1.0}).score == -1.0
    assert judge(BARE, weights={"syntax": 1.0}).score == 1.0
    assert judge(SOUND, weights={}).score == 0.0
    assert judge(SOUND, weights={}).verdict is Verdict.RIGHT


def test_what_is_judged_is_the_first_test():
    second = "\n\n\ndef test_two():\n    add_one("
    assert judge(SOUND + second).verdict is Verdict.RIGHT
    assert judge(SOUND + second).extracted == "def test_" + SOUND
    assert read_unit_test({"start": "def test_"}, SOUND + "\ndef test_b():\n    pass") == f"def test_{SOUND}\n"
    assert read_unit_test({}, SOUND) == SOUND


def test_problems_without_a_function_are_unscorable():
    broken = [Task("t", "q", "", "s"), problem(weights="all")]
    found = UnitTestVerifier().verify(broken, [SOUND, SOUND])
    assert [(one.verdict, one.score) for one in found] == [(Verdict.UNSCORABLE, 0.0)] * 2
    with pytest.raises(ValueError, match="1 problems but 2"):
        UnitTestVerifier().verify([problem()], ["", ""])


def test_task_sets_have_it_and_their_answers_are_right():
    tasks = unit_tests(train_size=5, heldout_size=20)
    with make_verifier(tasks) as verifier:
        found = verifier.verify(tasks.heldout, [task.answer.removeprefix("def test_") for task in tasks.heldout])
    assert {(one.verdict, one.score) for one in found} == {(Verdict.RIGHT, 1.0)}

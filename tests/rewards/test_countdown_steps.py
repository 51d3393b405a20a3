"""Countdown worked off line by line."""

from __future__ import annotations

import pytest

from zerozoo.rewards.countdown_steps import CountdownStepsVerifier, work_off
from zerozoo.rewards.verifier import Verdict
from zerozoo.tasks.countdown import countdown
from zerozoo.tasks.load import load_task_set
from zerozoo.tasks.task import Task, make_verifier

TASK = Task("t", "3 5 8 2, make 21?", "", "test", metadata={"numbers": [3, 5, 8, 2], "target": 21})


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ([], [3, 5, 8, 2]),
        (["3*5=15"], [8, 2, 15]),
        (["3*5=15", "15+8=23", "23-2=21"], [21]),
        ([" 5 - 3 = 2 ", "2+2=4"], [8, 4]),
        (["3*5=16"], None),
        (["3+4=7"], None),  # 4 is not there
        (["8+8=16"], None),  # only one 8 is
        (["3*5=15", "3+8=11"], None),  # 3 is used up
        (["so 3*5=15"], None),
        (["3-5=-2"], None),
        (["3/3=1"], None),
    ],
)
def test_what_is_left(lines, left):
    assert work_off(lines, [3, 5, 8, 2]) == left


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        (" 3*5=15\n15+8=23\n23-2=21", Verdict.RIGHT),
        ("3*5=15\n15+8=23\n23-2=21\n\n", Verdict.RIGHT),
        ("8-2=6\n3*5=15\n6+15=21", Verdict.RIGHT),  # another tree
        ("3*5=15\n15+8=23\n23-2=21\nquestion: 1 2", Verdict.RIGHT),
        ("3*5=15\n15+8=23", Verdict.WRONG),
        ("3*5=15\n15+8=23\n23-2=21\n21", Verdict.WRONG),
        ("21", Verdict.WRONG),
        ("", Verdict.WRONG),
    ],
)
def test_verdicts(response, verdict):
    (found,) = CountdownStepsVerifier(stop=("question",)).verify([TASK], [response])
    assert found.verdict is verdict
    assert found.score == float(verdict is Verdict.RIGHT)


def test_a_problem_without_numbers_is_unscorable():
    broken = Task("t", "", "", "test", metadata={"numbers": [1], "target": "1"})
    assert CountdownStepsVerifier().verify([broken], ["1"])[0].verdict is Verdict.UNSCORABLE


def test_every_worked_answer_is_right_and_no_instance_is_in_both_parts():
    tasks = load_task_set("countdown:steps", heldout_size=50)
    every = (*tasks.train, *tasks.heldout)
    with make_verifier(tasks) as verifier:
        assert {one.verdict for one in verifier.verify(every, [task.answer for task in every])} == {Verdict.RIGHT}
    train, heldout = (
        [(tuple(sorted(task.metadata["numbers"])), task.metadata["target"]) for task in part]
        for part in (tasks.train, tasks.heldout)
    )
    assert len(set(heldout)) == len(heldout) == 50
    assert not set(heldout) & set(train)
    assert len({task.question for task in tasks.train}) == len({task.id for task in every}) - 50 == len(tasks.train)
    assert len(set(train)) < len(train)  # other orders of the same numbers
    assert all(len(task.answer) <= tasks.max_new_tokens for task in every)
    assert countdown("steps", train_size=5, heldout_size=2) == countdown("steps", train_size=5, heldout_size=2)

"""Idle lines in worked sums."""

from __future__ import annotations

import random

import pytest

from zerozoo.rewards.steps import StepLabel, check_steps
from zerozoo.tasks.distractors import distracted_response
from zerozoo.tasks.word_sums import word_sums, worked_response


def test_one_line_is_idle_and_all_others_are_right():
    tasks = word_sums("chain", train_size=200, heldout_size=1).train
    rng, places, repeats = random.Random(0), set(), 0
    for task in tasks:
        lines = distracted_response(task, 1.0, rng).split("\n")
        labels = check_steps(lines, task.metadata["numbers"], task.metadata["operators"])
        plain = worked_response(task, "steps", rng).split("\n")
        assert sorted(labels) == [StepLabel.IDLE, *[StepLabel.RIGHT] * 4]
        place = labels.index(StepLabel.IDLE)
        assert [line.strip() for line in lines[:place] + lines[place + 1 :]] == [line.strip() for line in plain]
        assert lines[0].startswith(" ")
        places.add(place)
        repeats += place > 0 and lines[place].strip() == lines[place - 1].strip()
    assert places == {0, 1, 2, 3}
    assert 0 < repeats < 100


def test_several_idle_lines_each_number_equally_often():
    tasks = word_sums("chain", train_size=300, heldout_size=1).train
    counts = {1: 0, 2: 0, 3: 0}
    for number, task in enumerate(tasks):
        lines = distracted_response(task, 1.0, random.Random(number), most=3).split("\n")
        labels = check_steps(lines, task.metadata["numbers"], task.metadata["operators"])
        plain = [line.strip() for line in worked_response(task, "steps", random.Random(number)).split("\n")]
        kept = [line.strip() for line, label in zip(lines, labels, strict=True) if label is StepLabel.RIGHT]
        assert kept == plain
        counts[labels.count(StepLabel.IDLE)] += 1
    assert sum(counts.values()) == 300
    assert all(70 < count < 130 for count in counts.values())
    with pytest.raises(ValueError, match="must be at least 1"):
        distracted_response(tasks[0], 1.0, random.Random(0), most=0)


def test_the_share_is_a_share():
    task = word_sums("chain", train_size=1, heldout_size=1).train[0]
    rng = random.Random(0)
    longer = sum(distracted_response(task, 0.3, rng).count("\n") == 4 for _ in range(500))
    assert 120 < longer < 180
    assert distracted_response(task, 0.0, rng) == worked_response(task, "steps", rng)
    with pytest.raises(ValueError, match="must be in 0..1"):
        distracted_response(task, 1.5, rng)

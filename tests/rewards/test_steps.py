from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerozoo.rewards.steps import (
    SPLITTERS,
    StepLabel,
    check_steps,
    first_wrong,
    last_tokens,
    read_chain,
    split_steps,
)
from zerozoo.runs.errors import UserError
from zerozoo.tasks.arithmetic import arithmetic
from zerozoo.tasks.word_sums import word_sums, worked_response

RIGHT, IDLE, WRONG = StepLabel.RIGHT, StepLabel.IDLE, StepLabel.WRONG


def texts(text, rule="lines"):
    return [step.text for step in split_steps(text, rule)]


# --- where steps begin and end ---


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("lines", "", []),
        ("lines", "one", ["one"]),
        ("lines", "one\ntwo", ["one\n", "two"]),
        ("lines", "one\n\n \ntwo\n\n", ["one\n\n \n", "two\n\n"]),
        ("lines", "\n\n one\ntwo", ["\n\n one\n", "two"]),
        ("lines", " \n ", [" \n "]),
        ("numbered", "Step 1: a\nb\nStep 2: c", ["Step 1: a\nb\n", "Step 2: c"]),
        ("numbered", "So.\n## Step 1\na\n**step 2** b\n", ["So.\n## Step 1\na\n", "**step 2** b\n"]),
        ("numbered", "the next step 2 is small", ["the next step 2 is small"]),
        ("numbered", "Stepping 1\nSteps 2", ["Stepping 1\nSteps 2"]),
        ("sentences", "A b. C d! E?", ["A b. ", "C d! ", "E?"]),
        ("sentences", "It is 3.5 m. So what?! Yes.", ["It is 3.5 m. ", "So what?! ", "Yes."]),
        ("sentences", 'He said "no." She left.', ['He said "no." ', "She left."]),
        ("sentences", "Primes, e.g. 2 and 3. Mr. X knows.", ["Primes, e.g. 2 and 3. ", "Mr. X knows."]),
        ("sentences", "1. First this.\n2. Then that.", ["1. First this.\n", "2. Then that."]),
        ("sentences", "x is 12. y is 3", ["x is 12. ", "y is 3"]),
        ("sentences", "no full stop\n\nhere", ["no full stop\n\n", "here"]),
        ("sentences", "Wait... what", ["Wait... ", "what"]),
    ],
)
def test_steps(rule, text, expected):
    assert texts(text, rule) == expected


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from('ab1 .\n!?"step*)e.g,'), max_size=60), st.sampled_from(sorted(SPLITTERS)))
def test_joined_steps_are_the_text(text, rule):
    steps = split_steps(text, rule)
    assert "".join(step.text for step in steps) == text
    assert all(text[step.start : step.end] == step.text for step in steps)
    assert not text.strip() or all(step.text.strip() for step in steps)  # no step without content


def test_long_texts_without_an_end_take_no_time():
    for text in ("." * 300_000, " " * 300_000, "\n" * 300_000, "step 1 " * 50_000, ".)" * 150_000):
        for rule in SPLITTERS:
            split_steps(text, rule)


def test_an_unknown_rule():
    with pytest.raises(UserError, match="lines, numbered, sentences"):
        split_steps("a", "words")


def test_last_tokens():
    steps = split_steps("ab\ncd\nef")  # ends 3, 6, 8
    assert last_tokens(steps, [1, 2, 3, 4, 5, 6, 7, 8]) == [2, 5, 7]
    assert last_tokens(steps, [2, 3, 5, 6, 8]) == [1, 3, 4]
    assert last_tokens(steps, [2, 4, 8]) == [1, 2, 2]  # "\nc" holds a boundary, and so does "d\nef"
    assert last_tokens([], []) == []
    with pytest.raises(ValueError, match="end at character 8"):
        last_tokens(steps, [2, 4, 7])


# --- which steps are right ---


@pytest.mark.parametrize(
    ("steps", "labels"),
    [
        # 27 + 45 - 18 = 54
        (["27+45=72", "72-18=54", "the answer is 54."], [RIGHT, RIGHT, RIGHT]),
        (["27+45=73", "73-18=55", "the answer is 55."], [WRONG, WRONG, WRONG]),
        (["27+45=73", "27+45=72", "72-18=54"], [WRONG, RIGHT, RIGHT]),  # it came back
        (["27+45=72", "72-18=55", "54"], [RIGHT, WRONG, RIGHT]),
        (["45 + 27 = 72", "72 - 18 = 54", r"\boxed{54}"], [RIGHT, RIGHT, RIGHT]),
        (["27-18=9", "9+45=54"], [RIGHT, RIGHT]),  # the other order
        (["18-27=-9"], [IDLE]),  # true, but not on the way
        (["45-18=27", "27+27=54", "the answer is 54."], [IDLE, IDLE, RIGHT]),  # true; not from the running value on
        (["27+45=72", "27+45=72", "72-18=54"], [RIGHT, IDLE, RIGHT]),  # a repetition
        (["27+45=72", "72+1=73"], [RIGHT, WRONG]),  # nobody spoke of 1
        (["let us see", "27+45-18=54", "the answer is 54.", "the answer is 54."], [IDLE, RIGHT, RIGHT, IDLE]),
        (["27+45=72, 72-18=54"], [RIGHT]),
        (["27+45=72, 72-18=55"], [WRONG]),
        (["the answer is 54.5"], [IDLE]),  # no whole number, so no claim that is understood
        (["the answer is 27+45=72"], [RIGHT]),
        (["answer: -54"], [WRONG]),
        (["27+45=" + "9" * 5000], [WRONG]),
        (["9" * 5000], [WRONG]),
        (["#### 54"], [RIGHT]),
        (["27 × 2"], [IDLE]),
        ([], []),
    ],
)
def test_labels_by_hand(steps, labels):
    assert check_steps(steps, [27, 45, 18], "+-") == labels


def test_products_are_worked_in_order():
    assert check_steps(["12+7=19", "19*2=38", "ans=38"], [12, 7, 2], "+*") == [RIGHT, RIGHT, RIGHT]
    assert check_steps(["12*2=24"], [12, 7, 2], "+*") == [IDLE]
    assert check_steps(["7*12=84", "84-2=82"], [12, 7, 2], "*-") == [RIGHT, RIGHT]
    assert check_steps(["12+7*2=26", "26"], [12, 7, 2], "+*") == [IDLE, WRONG]  # true, but another sum


def test_first_wrong():
    assert first_wrong([RIGHT, IDLE, WRONG, RIGHT, WRONG]) == 2
    assert first_wrong([RIGHT, IDLE]) is None
    assert first_wrong([]) is None


def test_the_working_of_the_base_corpus():
    """Right workings have right steps only; a wrong one has a first wrong step, and everything before it is right."""
    rng = random.Random(3)
    for task in word_sums("hard", train_size=60, heldout_size=1).train:
        numbers, operators = task.metadata["numbers"], task.metadata["operators"]
        good = [step.text for step in split_steps(worked_response(task, "steps", rng))]
        assert check_steps(good, numbers, operators) == [RIGHT] * 4
        bad = [step.text for step in split_steps(worked_response(task, "steps", rng, wrong=1.0))]
        labels = check_steps(bad, numbers, operators)
        place = first_wrong(labels)
        truths = [good[number] == bad[number] for number in range(4)]
        assert place == truths.index(False)
        assert labels[:place] == [RIGHT] * place
        assert labels[-1] is WRONG
        for style in ("plain", "sentence", "boxed"):
            assert check_steps([worked_response(task, style, rng)], numbers, operators) == [RIGHT]
            assert check_steps([worked_response(task, style, rng, 1.0)], numbers, operators) == [WRONG]


def test_chains_are_read_from_questions():
    assert read_chain("What is 7 + 5 - 3?") == ((7, 5, 3), "+-")
    assert read_chain("2*3") == ((2, 3), "*")
    for task in arithmetic("steps").heldout:
        numbers, operators = read_chain(task.question)
        assert len(numbers) == 3
        assert check_steps([f"the answer is {task.answer}"], numbers, operators) == [RIGHT]
    for text in ("", "What is 7?", "ann had 3 nuts, got 4?"):
        with pytest.raises(ValueError, match="no sum"):
            read_chain(text)


def test_what_is_no_chain():
    for numbers, operators in (([1, 2], ""), ([1, 2], "/"), ([], "")):
        with pytest.raises(ValueError, match="no chain"):
            check_steps(["1"], numbers, operators)


def test_long_steps_take_no_time():
    for text in ("1" * 100_000, "1+" * 50_000, "-" * 100_000, "answer is " * 10_000, "1 " * 50_000):
        check_steps([text], [1, 2], "+")

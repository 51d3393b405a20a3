"""Postfix programs: their values, what is no program, and the share of tests that counts as the score."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerozoo.rewards.postfix import MOST_TOKENS, PostfixVerifier, run_postfix
from zerozoo.rewards.verifier import Verdict
from zerozoo.tasks.task import Task


@pytest.mark.parametrize(
    ("program", "x", "value"),
    [
        ("x", 7, 7),
        ("x 3 * 4 + 20 min", 5, 19),
        ("x 3 * 4 + 20 min", 6, 20),
        ("x 2 - 0 max", 1, 0),
        ("10 x -", 3, 7),  # the lower one on the stack stands left
        ("  x  1 +\n", -1, 0),
    ],
)
def test_values(program: str, x: int, value: int) -> None:
    assert run_postfix(program, x) == value


@pytest.mark.parametrize(
    "program", ["", "x 3", "+", "x +", "x 3 /", "y", "x 3 ** ", "-3 x +", "1" * 10, "__import__('os')", "x " * 65]
)
def test_what_is_no_program(program: str) -> None:
    assert run_postfix(program, 1) is None


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="x0123456789 +-*minax", max_size=80))
def test_no_text_breaks_the_interpreter(text: str) -> None:
    assert isinstance(run_postfix(text, 3), int | None)


def test_products_are_bounded() -> None:
    longest = "999999999 " * (MOST_TOKENS // 2) + "* " * (MOST_TOKENS // 2 - 1)
    value = run_postfix(longest, 0)
    assert value is not None
    assert value.bit_length() < 1000


def task(**metadata: Any) -> Task:
    return Task("t", "q", "x 1 +", "postfix", metadata=metadata)


def test_the_score_is_the_share_of_tests_passed() -> None:
    problem = task(inputs=[-2, 0, 2, 4], expected=[0, 0, 2, 4])  # at least 0
    responses = [" x 0 max", " x", " 0", " nothing", "", " x 0 max\nx"]
    found = PostfixVerifier(stop=("question",)).verify([problem] * 6, responses)
    assert [one.score for one in found] == [1.0, 0.75, 0.5, 0.0, 0.0, 1.0]
    right, wrong = Verdict.RIGHT, Verdict.WRONG
    assert [one.verdict for one in found] == [right, wrong, wrong, wrong, wrong, right]
    assert found[0].extracted == "x 0 max"
    (cut,) = PostfixVerifier(stop=("question",)).verify([problem], [" x 0 max question"])
    assert cut.verdict is right


def test_problems_without_tests_are_unscorable() -> None:
    for metadata in ({}, {"inputs": [], "expected": []}, {"inputs": [1], "expected": [1, 2]}, {"inputs": 1}):
        (found,) = PostfixVerifier().verify([task(**metadata)], ["x"])
        assert (found.verdict, found.score) == (Verdict.UNSCORABLE, 0.0)


def test_random_programs_against_python() -> None:
    rng = random.Random(0)
    for _ in range(200):
        tokens, infix = ["x"], "x"
        for _ in range(rng.randint(0, 4)):
            number, operation = rng.randint(0, 30), rng.choice("+-*")
            tokens += [str(number), operation]
            infix = f"({infix}){operation}{number}"
        x = rng.randint(-9, 9)
        assert run_postfix(" ".join(tokens), x) == eval(infix, {"x": x})  # text of this test

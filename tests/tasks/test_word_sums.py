from __future__ import annotations

import random
import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerozoo.rewards.verifier import Verdict
from zerozoo.runs.errors import UserError
from zerozoo.tasks.task import Task, make_verifier
from zerozoo.tasks.word_sums import ALPHABET, SPLITS, STYLES, CorpusMix, corpus, is_heldout, word_sums, worked_response

QUESTION = re.compile(r"[a-z]{3} had (\d+) [a-z]{4}((?:, [a-z]{3} \d+)+)\?")
GAINS = {"got", "won"}


def recompute(question: str) -> list[int]:
    """The running totals of a question, from its text alone."""
    match = QUESTION.fullmatch(question)
    assert match, question
    totals = [int(match[1])]
    for verb, number in re.findall(r", ([a-z]{3}) (\d+)", match[2]):
        totals.append(totals[-1] + (int(number) if verb in GAINS else -int(number)))
    return totals


def final_number(response: str) -> int:
    return int(re.findall(r"\d+", response)[-1])


@settings(max_examples=15, deadline=None)
@given(split=st.sampled_from(sorted(SPLITS)), seed=st.integers(0, 10**6))
def test_problems_of_a_split(split: str, seed: int) -> None:
    tasks = word_sums(split, seed, train_size=60, heldout_size=30)
    assert (len(tasks.train), len(tasks.heldout)) == (60, 30)
    assert len({task.question for task in (*tasks.train, *tasks.heldout)}) == 90
    for task in (*tasks.train, *tasks.heldout):
        totals = recompute(task.question)
        assert task.answer == str(totals[-1])
        assert min(totals) >= 0
        numbers = [int(number) for number in re.findall(r"\d+", task.question)]
        assert len(numbers) == {"easy": 2, "medium": 3, "hard": 4}[split]
        assert {len(str(number)) for number in numbers} == {1 if split == "easy" else 2}
        assert len(task.question) <= 40
        assert task.level == split
        if split == "hard":
            # Column by column without a carry or borrow, the units of some step would come out wrong.
            steps = [(before, after - before, after) for before, after in pairwise(totals)]
            units = [(b % 10 + (d % 10 if d > 0 else -(-d % 10)), a % 10) for b, d, a in steps]
            assert any(without != truth for without, truth in units)


def test_mixed_has_equal_parts() -> None:
    tasks = word_sums("mixed", train_size=90, heldout_size=30)
    assert Counter(task.level for task in tasks.train) == {"easy": 30, "medium": 30, "hard": 30}
    assert Counter(task.level for task in tasks.heldout) == {"easy": 10, "medium": 10, "hard": 10}
    easy = word_sums("easy", train_size=30, heldout_size=30, heldout_split="mixed")
    assert easy.heldout == tasks.heldout
    assert {task.level for task in easy.train} == {"easy"}


def test_a_chain_has_three_easy_steps_and_is_no_part_of_mixed() -> None:
    tasks = word_sums("chain", train_size=60, heldout_size=30)
    for task in (*tasks.train, *tasks.heldout):
        assert len(task.metadata["numbers"]) == 4
        assert all(1 <= number <= 9 for number in task.metadata["numbers"])
        assert len(task.metadata["operators"]) == 3
    assert "chain" not in {task.level for task in word_sums("mixed", train_size=90, heldout_size=30).train}


def test_determinism() -> None:
    assert word_sums("hard", 4, 50, 20) == word_sums("hard", 4, 50, 20)
    assert word_sums("hard", 4, 50, 20).heldout != word_sums("hard", 5, 50, 20).heldout
    assert list(corpus(1, 30)) == list(corpus(1, 50))[:30]
    assert list(corpus(1, 30)) != list(corpus(2, 30))


def test_corpus_never_holds_a_heldout_problem() -> None:
    texts = list(corpus(0, 20_000)) + list(corpus(9, 5_000))
    seen = {question for text in texts for question in re.findall(r"question: ([^\n]*\?)", text)}
    # The sums of several steps must not occur under other names either.
    sums = {re.sub(r"[a-z]{3} had | [a-z]{4}(?=,)|\?$", "", question) for question in seen}
    sums = {re.sub(r", (got|won) ", "+", re.sub(r", (ate|hid) ", "-", one)) for one in sums}
    for seed in (0, 1):
        for split in SPLITS:
            for task in word_sums(split, seed).heldout:
                assert is_heldout(task)
                assert task.question not in seen
                if split != "easy":
                    operators = [*task.metadata["operators"], ""]
                    pairs = zip(task.metadata["numbers"], operators, strict=True)
                    assert "".join(f"{number}{operator}" for number, operator in pairs) not in sums
    # The check is not empty: training problems do occur.
    assert sum(task.question in seen for task in word_sums("easy").train) > 500


def test_corpus_is_written_in_the_alphabet() -> None:
    text = "".join(corpus(0, 3000))
    assert set(text) <= set(ALPHABET)
    assert len(ALPHABET) == len(set(ALPHABET)) < 60
    assert set("\\boxed{0123456789}\n") <= set(ALPHABET)


def test_corpus_shares() -> None:
    mix = CorpusMix(wrong=0.3, run_on=0.25)
    texts = list(corpus(3, 6000, mix))
    run_on = sum(text.count("question:") == 2 for text in texts) / len(texts)
    assert run_on == pytest.approx(0.25, abs=0.02)
    first = [re.split(r"\nquestion: ", text)[0] for text in texts]
    answers = [part.partition("\nanswer:")[::2] for part in first]
    wrong = sum(
        final_number(response) != recompute(prompt.removeprefix("question: "))[-1] for prompt, response in answers
    )
    assert wrong / len(texts) == pytest.approx(0.3, abs=0.02)
    boxed = sum("\\boxed{" in response for _, response in answers) / len(texts)
    assert boxed == pytest.approx(0.03, abs=0.01)
    steps = sum("=" in response for _, response in answers) / len(texts)
    assert steps == pytest.approx(0.25, abs=0.02)


def example() -> Task:
    return Task("x", "?", "54", "word-sums", "medium", {"numbers": [27, 45, 18], "operators": "+-"})


def test_worked_responses_word_by_word() -> None:
    rng = random.Random(0)
    assert worked_response(example(), "plain", rng) == " 54"
    assert worked_response(example(), "sentence", rng) == " the answer is 54."
    assert worked_response(example(), "boxed", rng) == " \\boxed{54}"
    assert worked_response(example(), "steps", rng) == " 27+45=72\n72-18=54\nthe answer is 54."
    with pytest.raises(ValueError):
        worked_response(example(), "verse", rng)


@settings(max_examples=60, deadline=None)
@given(
    split=st.sampled_from(sorted(SPLITS)),
    style=st.sampled_from(STYLES),
    seed=st.integers(0, 10**6),
    wrong=st.sampled_from([0.0, 1.0]),
)
def test_worked_responses_are_right_or_wrong_as_asked(split: str, style: str, seed: int, wrong: float) -> None:
    task = word_sums(split, seed, train_size=3, heldout_size=1).train[seed % 3]
    response = worked_response(task, style, random.Random(seed), wrong)
    assert response.startswith(" ")
    assert len(response) <= 64
    assert (str(final_number(response)) == task.answer) == (wrong == 0.0)
    if style == "steps":
        lines = re.findall(r"(\d+)([-+])(\d+)=(\d+)", response)
        assert len(lines) == len(task.metadata["operators"])
        slips = [int(a) + (int(b) if sign == "+" else -int(b)) != int(c) for a, sign, b, c in lines]
        assert sum(slips) == int(wrong)


def test_verifier_reads_every_style() -> None:
    tasks = word_sums("hard", train_size=20, heldout_size=1)
    with make_verifier(tasks) as verifier:
        for style in STYLES:
            rng = random.Random(0)
            right = [worked_response(task, style, rng) for task in tasks.train]
            wrong = [worked_response(task, style, rng, 1.0) for task in tasks.train]
            assert {result.verdict for result in verifier.verify(tasks.train, right)} == {Verdict.RIGHT}
            assert {result.verdict for result in verifier.verify(tasks.train, wrong)} == {Verdict.WRONG}


def test_errors() -> None:
    with pytest.raises(UserError, match="easy, medium, hard, mixed"):
        word_sums("harder")
    with pytest.raises(UserError, match="easy, medium, hard, mixed"):
        word_sums("easy", heldout_split="harder")
    with pytest.raises(UserError, match="fewer than 50000"):
        word_sums("easy", train_size=50_000)
    with pytest.raises(UserError, match="heldout_size must be at least 1"):
        word_sums("easy", heldout_size=0)
    for mix in (CorpusMix(styles={"verse": 1}), CorpusMix(splits={}), CorpusMix(wrong=1.5), CorpusMix(run_on=-1)):
        with pytest.raises(ValueError):
            next(corpus(0, 1, mix))

"""Values of steps by sampling: where steps end, what a value counts, what is completed only once, and the first pit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import Decoding, Samples
from zerozoo.language.step_audit import audit
from zerozoo.language.step_pairs import per_step_pairs, pit_metrics
from zerozoo.language.step_values import (
    Prefix,
    Span,
    StepSplitter,
    StepValues,
    Trace,
    advantages,
    first_pits,
    success_rate,
)
from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.runs.errors import UserError
from zerozoo.tasks.task import Task

END = 0  # the end token; every other id is the code of its character
TASK = Task("t", "1+2+3", "6", "test", metadata={"numbers": [1, 2, 3], "operators": "++"})


def ids(text: str, end: bool = False) -> list[int]:
    return [ord(one) for one in text] + [END] * end


class Letters:
    """As much of a policy as is needed: a token a character, and id 300 for "=6" in one token."""

    max_context = 60

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join({END: "", 300: "=6"}.get(token, chr(token)) for token in tokens)


class Script:
    """Writes what the text so far is to be followed by, in turn; remembers what it was asked."""

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self.answers, self.asked = answers, []  # type: ignore[var-annotated]

    def sample(self, prompts: Any, samples: int, decoding: Decoding, generator: torch.Generator) -> Samples:
        texts = ["".join(map(chr, prompt)) for prompt in prompts]
        self.asked.append((texts, samples, decoding.max_new_tokens))
        rows = [
            ids(self.answers[text][turn % len(self.answers[text])], True) for text in texts for turn in range(samples)
        ]
        return written(rows, [place for place in range(len(texts)) for _ in range(samples)])


def written(rows: list[list[int]], groups: list[int]) -> Samples:
    longest = max(map(len, rows))
    return Samples(
        tokens=torch.tensor([row + [END] * (longest - len(row)) for row in rows]),
        lengths=torch.tensor([len(row) for row in rows]),
        logprobs=torch.zeros(len(rows), longest),
        stopped=torch.ones(len(rows), dtype=torch.bool),
        groups=torch.tensor(groups),
        texts=[Letters().decode(row) for row in rows],
    )


class EndsWith:
    """Right is what ends with the answer; remembers the texts."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def verify(self, problems: Sequence[Any], responses: Sequence[str]) -> list[Verification]:
        self.seen += responses
        return [
            Verification(Verdict.RIGHT if text.endswith(problem.answer) else Verdict.WRONG, text, 0.0, False, 0.0)
            for problem, text in zip(problems, responses, strict=True)
        ]

    def close(self) -> None: ...


def make(answers: dict[str, list[str]], **changes: Any) -> StepValues:
    splitter = StepSplitter(Letters(), ("?",))  # type: ignore[arg-type]
    settings: dict[str, Any] = {"trials": 2, "generator": torch.Generator(), **changes}
    return StepValues(Letters(), Script(answers), EndsWith(), splitter, Decoding(20), **settings)  # type: ignore[arg-type]


def trace(text: str, right: bool = False) -> Trace:
    tokens = tuple(ids(text, True))
    return Trace(TASK, tuple(ids("q:")), tokens, StepSplitter(Letters()).spans(tokens), right)  # type: ignore[arg-type]


# --- steps


def test_steps_end_at_tokens_and_the_last_one_has_the_end_token():
    splitter = StepSplitter(Letters(), ("?",))  # type: ignore[arg-type]
    assert splitter.spans(ids("1+2=3\n3+3=6", True)) == (Span("1+2=3\n", 6), Span("3+3=6", 12))
    assert splitter.spans([*ids("3+3"), 300, *ids("\nx")]) == (Span("3+3=6\n", 5), Span("x", 6))
    assert splitter.spans(ids("1\n2?no\nmore")) == (Span("1\n", 2), Span("2", 11))  # nothing behind a stop string
    assert splitter.spans([END]) == (Span("", 1),)
    assert splitter.text(ids("1\n2?no")) == "1\n2"


def test_a_token_across_a_boundary_ends_the_step_before_it_and_two_ends_in_one_token_are_one_step():
    class Joined(Letters):
        def decode(self, tokens: Sequence[int]) -> str:
            return "".join({400: "\nb", 401: "a\nb\n"}.get(token, chr(token)) for token in tokens)

    splitter = StepSplitter(Joined())  # type: ignore[arg-type]
    assert splitter.spans([ord("a"), 400, ord("c")]) == (Span("a\n", 2), Span("bc", 3))
    assert splitter.spans([401, ord("c")]) == (Span("a\nb\n", 1), Span("c", 2))


def test_tokens_that_change_in_company_are_measured_in_company():
    class Blank(Letters):
        """A tokenizer that drops the first blank, as sentencepiece does."""

        def decode(self, tokens: Sequence[int]) -> str:
            return "".join(chr(token) for token in tokens).removeprefix(" ")

    splitter = StepSplitter(Blank())  # type: ignore[arg-type]
    assert splitter.spans(ids(" a b\n c")) == (Span("a b\n", 5), Span(" c", 7))


# --- values


def test_success_rate():
    """The best of K succeeds with probability 1 - (1 - p)^K; here by counting."""
    assert success_rate([True, False, False, True]) == 0.5
    assert success_rate([True, False, False, False], best_of=2) == 0.5
    assert success_rate([True, True, False, False], best_of=2) == 0.5
    assert success_rate([False, True, False, True, True], best_of=2) == 1.0  # the fifth makes no whole trial
    assert success_rate([True], best_of=5) == 1.0


def test_advantages_add_up_to_the_outcome():
    assert advantages([0.5, 0.75, 0.0], 0.25) == [0.25, 0.25, -0.75]
    assert sum(advantages([0.5, 0.75, 0.0], 0.25)) == 0.0 - 0.25


def test_a_value_is_the_share_of_completions_that_make_the_response_right():
    values = make({"q:1+2=3\n": ["3+3=6", "3+3=7"], "q:1+2=4\n": ["4+3=7", "4+3=7"]})
    good, bad = (Prefix(TASK, tuple(ids("q:")), tuple(ids(text))) for text in ("1+2=3\n", "1+2=4\n"))
    assert values.values([good, bad, good]) == [0.5, 0.0, 0.5]
    assert values.sampler.asked == [(["q:1+2=3\n", "q:1+2=4\n"], 2, 14)]  # once each, 6 of 20 tokens are written
    assert sorted(values.verifier.seen) == ["1+2=3\n3+3=6", "1+2=3\n3+3=7", "1+2=4\n4+3=7", "1+2=4\n4+3=7"]
    assert (values.drawn, values.tokens) == (4, 4 * 6)
    assert values.values([bad]) == [0.0]
    assert len(values.sampler.asked) == 1  # kept


def test_a_completion_gets_what_its_prefix_leaves_of_the_length():
    """Of two prefixes the longer one leaves less room, and what is behind it does not count."""
    values = make({"q:1\n": ["....6"], "q:1234567890123456\n": [".6.", "12.6"]})
    short, long = (Prefix(TASK, tuple(ids("q:")), tuple(ids(text))) for text in ("1\n", "1234567890123456\n"))
    assert values.values([long]) == [0.0]  # ".6." is not right and of "12.6" only "12." fits
    assert [one.ids for one in values.completions(long)] == [tuple(ids(".6.")), tuple(ids("12."))]
    assert values.values([short]) == [1.0]


def test_the_best_of_k_and_responses_that_have_ended():
    values = make({"q:a\n": ["5", "6", "5", "5"]}, best_of=2)
    assert values.values([Prefix(TASK, tuple(ids("q:")), tuple(ids("a\n")))]) == [0.5]
    over = [Prefix(TASK, tuple(ids("q:")), tuple(ids(text, True)), ended=True) for text in ("6", "7")]
    assert values.values(over) == [1.0, 0.0]
    assert len(values.sampler.asked) == 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="take up to 70 tokens, but the model has room for 60"):
        make({}).values([Prefix(TASK, tuple(ids("q" * 50)), ())])
    for name in ("trials", "best_of"):
        with pytest.raises(UserError, match=f"{name} is 0, but must be at least 1"):
            make({}, **{name: 0})


# --- pits and pairs


def rollouts(*texts: str) -> Rollouts:
    samples = written([ids(text, True) for text in texts], [0] * len(texts))
    verdicts = EndsWith().verify([TASK] * len(texts), texts)
    return Rollouts([TASK], [ids("q:")], samples, verdicts, torch.zeros(len(texts)))


def test_the_first_pit_is_the_first_step_with_the_lowest_value():
    answers = {
        "q:1+2=3\n": ["3+3=6", "3+3=7"],
        "q:1+2=4\n": ["4+3=7", "4+2=6"],
        "q:1+2=4\n4+3=7\n": ["7", "7"],
    }
    wrong = [trace("1+2=3\n3+3=7"), trace("1+2=4\n4+3=7\n7")]
    values = make(answers)
    assert first_pits(wrong, values) == [(1, [0.5, 0.0]), (1, [0.5, 0.0])]
    assert ["q:1+2=4\n4+3=7\n"] in [asked[0] for asked in values.sampler.asked]
    with pytest.raises(ValueError, match="a right trace has no pit"):
        first_pits([trace("6", right=True)], values)


def test_steps_behind_a_value_of_zero_are_not_completed():
    values = make({"q:1+2=4\n": ["7", "7"]})
    assert first_pits([trace("1+2=4\n4+3=7\n7")], values) == [(0, [0.0])]
    assert len(values.sampler.asked) == 1


def test_a_pair_holds_two_steps_behind_the_same_prefix():
    """Behind 1+2=3 the step 3+3=6 was right in two of two, 3+3=9 in one of two, and the trace's own does not count."""
    behind = ["3+3=6", "3+3=9\n6", "3+3=6\n6", "3+3=9\n9", "3+3=7\n6", "3+3=7\n6"]
    values = make({"q:1+2=3\n": behind, "q:1+2=3\n3+3=7\n": ["7"]}, trials=6)
    values.learn_of(rollouts("1+2=3\n3+3=6", "1+2=3\n3+3=7\n7"))
    wrong = [trace("1+2=3\n3+3=7\n7"), trace("1+2=3\n3+3=7\n7")]
    found = per_step_pairs(wrong, values)
    (row,) = found.rows  # both traces are lost with the same step
    assert row["prompt"] == ids("q:1+2=3\n")
    assert row["rejected"] == ids("3+3=7\n")
    assert row["chosen"] == ids("3+3=6\n") or row["chosen"] == ids("3+3=6", True)
    assert found.metrics["pits/pairs"] == 1
    assert found.metrics["pits/found"] == 1.0  # 3+3=7 is the first wrong step
    assert found.metrics["pits/advantage"] == pytest.approx(0 - 5 / 6)


def test_a_pit_at_the_first_step_is_set_against_the_traces_of_the_same_problem():
    values = make({"q:1+2=4\n": ["7"]})
    values.learn_of(rollouts("1+2=3\n3+3=6", "1+2=4\n4+3=7"))
    (row,) = per_step_pairs([trace("1+2=4\n4+3=7")], values).rows
    assert (row["prompt"], row["chosen"], row["rejected"]) == (ids("q:"), ids("1+2=3\n"), ids("1+2=4\n"))
    alone = make({"q:1+2=4\n": ["7"]})
    alone.learn_of(rollouts("1+2=4\n4+3=7"))
    assert per_step_pairs([trace("1+2=4\n4+3=7")], alone).rows == []  # there is nothing good to say


def test_most_pairs_of_a_problem():
    values = make({"q:1+2=4\n": ["7"], "q:1+2=5\n": ["8"]})
    values.learn_of(rollouts("1+2=3\n3+3=6", "1+2=4\n4+3=7"))
    wrong = [trace("1+2=4\n4+3=7"), trace("1+2=5\n5+3=8")]
    assert len(per_step_pairs(wrong, values).rows) == 2
    assert len(per_step_pairs(wrong, values, most=1).rows) == 1


def test_pits_against_the_oracle():
    wrong = [trace("1+2=3\n3+3=7\n7"), trace("1+2=4\n4+3=7\n7"), trace("1+2=3\n")]  # the last has no wrong step
    assert pit_metrics(wrong, [1, 1, 0]) == {"pits/found": 0.5, "pits/early": 0.0}
    assert pit_metrics(wrong, [0, 0, 0]) == {"pits/found": 0.5, "pits/early": 0.5}
    assert pit_metrics(wrong[2:], [0]) == {}


def test_the_audit_counts_by_hand():
    """Needed: two operations and the answer. Of nine steps one is wrong, two are idle, one of these is a repetition."""
    texts = ["1+2=3\n3+3=6\n6", "1+2=3\n1+2=3\n1+3=4\n3+3=7\n6", "6"]
    found = audit((TASK, text) for text in texts)
    assert found["steps/number"] == 3.0
    assert found["steps/excess"] == pytest.approx(2 / 3)
    assert found["steps/idle"] == pytest.approx(2 / 9)
    assert found["steps/wrong"] == pytest.approx(1 / 9)
    assert found["steps/repeated"] == pytest.approx(1 / 9)
    assert audit([(Task("u", "?", "1", "test"), "1")]) == {}

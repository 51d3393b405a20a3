from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from zerozoo.rewards.constraints import CONSTRAINTS, ConstraintVerifier, constraint, loose_texts, satisfied
from zerozoo.rewards.verifier import Verdict


@dataclass(frozen=True)
class Gold:
    answer: str = ""
    metadata: dict = field(default_factory=dict)


def count(kind, number, relation="exactly", **parameters):
    return {"kind": kind, "relation": relation, "count": number, **parameters}


WORDS = {"kind": "words", "relation": "at most", "count": 3}
CASES = [
    (count("words", 4), "I don't know well-being", True),
    (count("words", 3), "one, two; three - !", True),
    (count("words", 3, "at least"), "one two", False),
    (count("words", 3, "at least"), "one two three", True),
    (count("words", 3, "at most"), "one two three", True),
    (count("words", 3, "at most"), "one two three four", False),
    (count("words", 3), "one two", False),
    (count("sentences", 2), "It rains. So what?", True),
    (count("sentences", 2), "It is 3.5 m, e.g. here. Good", True),
    (count("sentences", 1), "It rains... !", True),
    (count("sentences", 2), "It rains\nand pours", True),
    (count("sentences", 1), "A. B.", False),
    (count("paragraphs", 2), "a\nb\n \n\nc", True),
    (count("paragraphs", 2), "a\nb", False),
    ({"kind": "keywords", "words": ["nuts", "figs"]}, "Figs and NUTS.", True),
    ({"kind": "keywords", "words": ["nuts", "figs"]}, "Figs and peanuts.", False),
    ({"kind": "keywords", "words": ["C++"]}, "I like C++.", True),
    ({"kind": "forbidden-words", "words": ["nuts", "figs"]}, "peanuts", True),
    ({"kind": "forbidden-words", "words": ["nuts", "figs"]}, "no Figs", False),
    (count("keyword-frequency", 2, word="nuts"), "nuts, Nuts, peanuts", True),
    (count("keyword-frequency", 2, word="nuts"), "nuts nuts nuts", False),
    (count("letter-frequency", 3, letter="e"), "Eleven", True),
    (count("letter-frequency", 2, letter="E"), "eleven", False),
    ({"kind": "paragraph-start", "word": "so", "paragraph": 2}, "First.\n\n*So* it is.", True),
    ({"kind": "paragraph-start", "word": "so", "paragraph": 2}, "So.\n\nFirst.", False),
    ({"kind": "paragraph-start", "word": "so", "paragraph": 3}, "So.\n\nSo.", False),
    ({"kind": "case", "case": "lower"}, "all small, 3 times", True),
    ({"kind": "case", "case": "lower"}, "not All", False),
    ({"kind": "case", "case": "lower"}, "123", False),
    ({"kind": "case", "case": "upper"}, "LOUD!", True),
    ({"kind": "case", "case": "upper"}, "LOUd", False),
    (count("capital-words", 2), "NASA and ESA, I say", True),
    (count("capital-words", 2), "NASA", False),
    ({"kind": "without-character", "character": ","}, "none; of them", True),
    ({"kind": "without-character", "character": ","}, "one, here", False),
    (count("bullets", 2), "list:\n- a\n  * b\n-c\n1. d", True),
    (count("bullets", 2), "- a", False),
    ({"kind": "title"}, "<<Rain>>\nIt rains.", True),
    ({"kind": "title"}, "<<>> << >> <Rain>", False),
    (count("highlights", 2), "*one* and **two three**, 4 * 5 * 6", True),
    (count("highlights", 0), "* a bullet\n* another", True),
    (count("highlights", 1), "none", False),
    (count("placeholders", 2, "at least"), "Dear [name], come to [place]. []", True),
    (count("placeholders", 2, "at least"), "Dear [name]", False),
    ({"kind": "json"}, ' {"a": [1, 2]} ', True),
    ({"kind": "json"}, '```json\n{"a": 1}\n```', True),
    ({"kind": "json"}, 'Sure: {"a": 1}', False),
    ({"kind": "json"}, "3", False),
    ({"kind": "json"}, "{'a': 1}", False),
    ({"kind": "json"}, "[" * 100_000, False),
    ({"kind": "json", "keys": ["a", "b"]}, '{"a": 1, "b": 2, "c": 3}', True),
    ({"kind": "json", "keys": ["a", "b"]}, '{"a": 1}', False),
    ({"kind": "json", "keys": ["a"]}, '["a"]', False),
    ({"kind": "start-phrase", "phrase": "Once upon"}, "once upon a time", True),
    ({"kind": "start-phrase", "phrase": "Once upon"}, "It was once upon a time", False),
    ({"kind": "end-phrase", "phrase": "the end."}, "So. The End. ", True),
    ({"kind": "end-phrase", "phrase": "the end"}, "the end.", False),
    ({"kind": "quotation"}, '"So it is."', True),
    ({"kind": "quotation"}, '"So" it is', False),
    ({"kind": "quotation"}, '"', False),
    ({"kind": "postscript", "marker": "P.S."}, "Text.\nP.S. more", True),
    ({"kind": "postscript", "marker": "P.S."}, "P.S. more", False),
    ({"kind": "postscript", "marker": "P.S."}, "Text.\nP.S. ", False),
    ({"kind": "two-responses"}, "one ****** two", True),
    ({"kind": "two-responses"}, "one ****** one", False),
    ({"kind": "two-responses"}, "one ****** two ****** three", False),
    ({"kind": "combination", "constraints": [WORDS, {"kind": "case", "case": "lower"}]}, "so it is", True),
    ({"kind": "combination", "constraints": [WORDS, {"kind": "case", "case": "lower"}]}, "So it is", False),
]


@pytest.mark.parametrize(("one", "text", "met"), CASES)
def test_constraints_by_hand(one, text, met):
    assert satisfied(text, one) is met


def test_every_kind_is_tested_both_ways():
    for kind in CONSTRAINTS:
        assert {met for one, _, met in CASES if one["kind"] == kind} == {True, False}, kind


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_an_empty_text_meets_nothing(kind):
    one = next(one for one, _, _ in CASES if one["kind"] == kind)
    assert satisfied("", one) is False
    assert satisfied(" \n", one) is False


@pytest.mark.parametrize(
    "one",
    [
        {},
        {"kind": "poem"},
        {"kind": ["words"]},
        {"kind": "words"},
        count("words", 3, "nearly"),
        count("words", 3, ["at least"]),
        count("words", -1),
        count("words", 2.5),
        count("words", True),
        count("words", 3, colour="red"),
        {"kind": "keywords", "words": []},
        {"kind": "keywords", "words": "nuts"},
        {"kind": "keywords", "words": ["nuts", ""]},
        {"kind": "forbidden-words", "words": [3]},
        count("letter-frequency", 2, letter="ab"),
        {"kind": "without-character", "character": "ab"},
        {"kind": "case", "case": "title"},
        {"kind": "paragraph-start", "word": "so", "paragraph": 0},
        {"kind": "end-phrase", "phrase": " "},
        {"kind": "json", "keys": [""]},
        {"kind": "combination", "constraints": []},
        {"kind": "combination", "constraints": [count("words", 99, "at least"), {"kind": "poem"}]},
    ],
)
def test_senseless_constraints_are_unscorable_whatever_the_text(one):
    for text in ("", "so it is", "one two three", '{"a": 1}', "A\n\nB"):
        with pytest.raises(ValueError):
            satisfied(text, one)
    with ConstraintVerifier() as verifier:
        results = verifier.verify([Gold(metadata={"constraints": [WORDS, one]})] * 2, ["", "so it is"])
    assert [(result.verdict, result.score) for result in results] == [(Verdict.UNSCORABLE, 0.0)] * 2


@pytest.mark.parametrize("metadata", [{}, {"constraints": []}, {"constraints": 3}, {"constraints": ["words"]}])
def test_a_problem_without_constraints_is_unscorable(metadata):
    assert ConstraintVerifier().verify([Gold(metadata=metadata)], ["a"])[0].verdict is Verdict.UNSCORABLE


def test_all_must_hold_and_the_score_is_their_share():
    gold = Gold(metadata={"constraints": [WORDS, {"kind": "keywords", "words": ["so"]}, {"kind": "title"}]})
    texts = ["<<So>> it is", "so it is", "so it really is", "it really is not"]
    results = ConstraintVerifier().verify([gold] * 5, [*texts, ""])
    assert [result.score for result in results] == pytest.approx([1, 2 / 3, 1 / 3, 0, 0])
    assert [result.verdict for result in results] == [Verdict.RIGHT] + [Verdict.WRONG] * 4
    assert [result.extracted for result in results[:2]] == texts[:2]
    with pytest.raises(ValueError, match="1 problems but 2 responses"):
        ConstraintVerifier().verify([gold], ["a", "b"])


def test_text_behind_a_stop_string_is_ignored():
    gold = Gold(metadata={"constraints": [count("words", 2)]})
    verifier = ConstraintVerifier(stop=("question",))
    assert verifier.verify([gold], [" two words\nquestion: and more"])[0].verdict is Verdict.RIGHT
    assert ConstraintVerifier().verify([gold], ["two words</s> and more"])[0].verdict is Verdict.RIGHT


def test_loose():
    assert loose_texts("a\n*b*\nc")[:4] == ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*"]
    gold = Gold(metadata={"constraints": [count("words", 2), {"kind": "case", "case": "lower"}]})
    response = "Sure, here it is:\n**two words**\nAnything else?"
    assert ConstraintVerifier().verify([gold], [response])[0].verdict is Verdict.WRONG
    assert ConstraintVerifier(loose=True).verify([gold], [response])[0].verdict is Verdict.RIGHT
    quoted = Gold(metadata={"constraints": [{"kind": "quotation"}]})
    assert ConstraintVerifier(loose=True).verify([quoted], ['*"so"*'])[0].verdict is Verdict.RIGHT


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="already"):
        constraint("words")(lambda text: True)


def test_long_texts_take_no_time():
    texts = ["<" * 100_000, "<<" + "a" * 100_000, "[" + "a" * 100_000, "*a" * 50_000, "\n \n" * 30_000, "a-" * 50_000]
    for text in texts:
        for one in {one["kind"]: one for one, _, _ in CASES}.values():
            satisfied(text, one)

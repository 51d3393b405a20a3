"""Constraints on the form of a response that a program can check: so many words, these keywords, no commas, valid JSON.

Each kind is a pure function (text, parameters) -> whether the text meets it, in `CONSTRAINTS` by name. A task names its
constraints in its metadata: {"constraints": [{"kind": "words", "relation": "at most", "count": 5}, ...]}. The kinds are
those of IFEval (Zhou et al. 2023, arXiv 2311.07911) and of the verifiers that Tulu 3 (arXiv 2411.15124) trains on,
written anew, with definitions that need no language data: a word is a run of letters and digits, with the apostrophes
and hyphens inside it (IFEval counts "don't" as two); a sentence ends with a full stop, question or exclamation mark or
a new line; keywords are whole words in any letter case. The language of a response is not judged: no sound rule tells
it from a few words.
"""

from __future__ import annotations

import json
import operator
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zerozoo.rewards.extract import END_TOKENS, cut_at_stop
from zerozoo.rewards.steps import split_steps
from zerozoo.rewards.verifier import ClosingVerifier, Problem, Verdict, Verification, check_lengths

WORD = re.compile(r"\w+(?:['’-]\w+)*")
BULLET = re.compile(r"^[ \t]*[-*•][ \t]+\S", re.MULTILINE)
TITLE = re.compile(r"<<(?=[^<>\n]*\w)[^<>\n]++>>")
HIGHLIGHT = re.compile(r"(?<!\*)\*{1,2}[^*\s](?:[^*\n]*[^*\s])?\*{1,2}(?!\*)")
PLACEHOLDER = re.compile(r"\[(?=[^\[\]\n]*\w)[^\[\]\n]++\]")
FENCE = re.compile(r"```[^\n`]*\n(.*?)\n?```", re.DOTALL)
RESPONSE_SEPARATOR = "******"
RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "at least": operator.ge,
    "at most": operator.le,
    "exactly": operator.eq,
}
CASES = ("lower", "upper")

Check = Callable[..., bool]
CONSTRAINTS: dict[str, Check] = {}


def constraint(name: str) -> Callable[[Check], Check]:
    """Registers a function (text, parameters) -> bool under a name; ValueError says that a parameter makes no sense."""

    def register(check: Check) -> Check:
        if name in CONSTRAINTS:
            raise ValueError(f"there is a constraint {name!r} already")
        CONSTRAINTS[name] = check
        return check

    return register


def satisfied(text: str, constraint: Mapping[str, Any]) -> bool:
    """Whether a text meets {"kind": name, parameter: value, ...}; an empty text meets nothing.

    ValueError for an unknown kind and for missing, unknown or senseless parameters, whatever the text.
    """
    parameters = dict(constraint)
    kind = parameters.pop("kind", None)
    if not isinstance(kind, str) or kind not in CONSTRAINTS:
        raise ValueError(f"unknown constraint {kind!r}, expected one of {', '.join(CONSTRAINTS)}")
    text = text.strip()
    try:
        return CONSTRAINTS[kind](text, **parameters) and text != ""
    except TypeError as error:
        raise ValueError(f"the constraint {kind!r} has wrong parameters: {error}") from None


class ConstraintVerifier(ClosingVerifier):
    """RIGHT when a response meets all constraints in its problem's metadata; `score` is the share that it meets.

    A problem without constraints, or with one that `satisfied` refuses, is UNSCORABLE. `extracted` is the text judged,
    without what follows the first of the `stop` strings; `boxed` is always false.

    With `loose` a constraint is met when it holds without the first or last line of the text, or without asterisks, as
    in the loose accuracy of IFEval: an introduction ("Sure, here it is:") or Markdown then does no harm. This is for
    evaluation; a reward that forgives them teaches them.
    """

    def __init__(self, stop: Sequence[str] = (), loose: bool = False) -> None:
        self._stops = (*END_TOKENS, *stop)
        self._loose = loose

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verification]:
        """One verification for every (problem, response) pair, in order."""
        check_lengths(problems, responses)
        return [
            self._verify_one(problem.metadata, response) for problem, response in zip(problems, responses, strict=True)
        ]

    def _verify_one(self, metadata: Mapping[str, Any], response: str) -> Verification:
        start = time.perf_counter()
        text = cut_at_stop(response, self._stops).strip()
        constraints = metadata.get("constraints")
        verdict, score = Verdict.UNSCORABLE, 0.0
        if isinstance(constraints, Sequence) and constraints and all(isinstance(one, Mapping) for one in constraints):
            texts = loose_texts(text) if self._loose else [text]
            try:
                met = [any(satisfied(variant, one) for variant in texts) for one in constraints]
            except ValueError:
                pass
            else:
                verdict = Verdict.RIGHT if all(met) else Verdict.WRONG
                score = sum(met) / len(met)
        return Verification(verdict, text, 1000 * (time.perf_counter() - start), False, score)


def loose_texts(text: str) -> list[str]:
    """The text as it is, without its first line, its last line and both, and each of these without asterisks."""
    lines = text.split("\n")
    parts = [text, *("\n".join(lines[start:end]) for start, end in ((1, None), (None, -1), (1, -1)))]
    return [*parts, *(part.replace("*", "") for part in parts)]


# --- lengths ---


@constraint("words")
def _words(text: str, relation: str, count: int) -> bool:
    return _compare(len(WORD.findall(text)), relation, count)


@constraint("sentences")
def _sentences(text: str, relation: str, count: int) -> bool:
    return _compare(sum(bool(WORD.search(step.text)) for step in split_steps(text, "sentences")), relation, count)


@constraint("paragraphs")
def _paragraphs(text: str, relation: str, count: int) -> bool:
    """Paragraphs have a blank line between."""
    return _compare(len(_split_paragraphs(text)), relation, count)


# --- words ---


@constraint("keywords")
def _keywords(text: str, words: Sequence[str]) -> bool:
    """All of the words occur."""
    return all(_occurrences(text, word) > 0 for word in _checked_words(words))


@constraint("forbidden-words")
def _forbidden_words(text: str, words: Sequence[str]) -> bool:
    """None of the words occurs."""
    return all(_occurrences(text, word) == 0 for word in _checked_words(words))


@constraint("keyword-frequency")
def _keyword_frequency(text: str, word: str, relation: str, count: int) -> bool:
    return _compare(_occurrences(text, _checked_text(word)), relation, count)


@constraint("letter-frequency")
def _letter_frequency(text: str, letter: str, relation: str, count: int) -> bool:
    """How often a letter occurs, in any case."""
    if len(_checked_text(letter)) != 1:
        raise ValueError(f"{letter!r} is not one letter")
    return _compare(text.casefold().count(letter.casefold()), relation, count)


@constraint("paragraph-start")
def _paragraph_start(text: str, word: str, paragraph: int) -> bool:
    """The paragraph of this number, counted from 1, starts with the word."""
    wanted = _checked_text(word).casefold()
    if type(paragraph) is not int or paragraph < 1:
        raise ValueError(f"{paragraph!r} is not the number of a paragraph")
    paragraphs = _split_paragraphs(text)
    first = WORD.search(paragraphs[paragraph - 1]) if paragraph <= len(paragraphs) else None
    return first is not None and first[0].casefold() == wanted


# --- letter case and characters ---


@constraint("case")
def _case(text: str, case: str) -> bool:
    """All letters are "lower" or all are "upper" case, and there is one at least."""
    if case not in CASES:
        raise ValueError(f"unknown letter case {case!r}, expected one of {', '.join(CASES)}")
    return text.islower() if case == "lower" else text.isupper()


@constraint("capital-words")
def _capital_words(text: str, relation: str, count: int) -> bool:
    """How many words have capital letters only, two letters at least."""
    return _compare(sum(word.isupper() and len(word) > 1 for word in WORD.findall(text)), relation, count)


@constraint("without-character")
def _without_character(text: str, character: str) -> bool:
    """The character does not occur: no comma, for instance."""
    if len(_checked_text(character)) != 1:
        raise ValueError(f"{character!r} is not one character")
    return character not in text


# --- form ---


@constraint("bullets")
def _bullets(text: str, relation: str, count: int) -> bool:
    """How many lines are bullet points ("- ", "* " or "• ")."""
    return _compare(len(BULLET.findall(text)), relation, count)


@constraint("title")
def _title(text: str) -> bool:
    """A title in double angle brackets, <<like this>>."""
    return TITLE.search(text) is not None


@constraint("highlights")
def _highlights(text: str, relation: str, count: int) -> bool:
    """How many parts are *highlighted* with one or two asterisks."""
    return _compare(len(HIGHLIGHT.findall(BULLET.sub("", text))), relation, count)


@constraint("placeholders")
def _placeholders(text: str, relation: str, count: int) -> bool:
    """How many placeholders in square brackets there are, [like this]."""
    return _compare(len(PLACEHOLDER.findall(text)), relation, count)


@constraint("json")
def _json(text: str, keys: Sequence[str] = ()) -> bool:
    """The whole text, or the code fence that it consists of, is a JSON object or list; `keys` are an object's keys."""
    wanted = _checked_words(keys) if keys else ()
    fence = FENCE.fullmatch(text)
    try:
        value = json.loads(fence[1] if fence else text)
    except (ValueError, RecursionError):
        return False
    if wanted:
        return isinstance(value, dict) and all(key in value for key in wanted)
    return isinstance(value, dict | list)


@constraint("start-phrase")
def _start_phrase(text: str, phrase: str) -> bool:
    """The text starts with the phrase, in any letter case."""
    return text.casefold().startswith(_checked_text(phrase).strip().casefold())


@constraint("end-phrase")
def _end_phrase(text: str, phrase: str) -> bool:
    """The text ends with the phrase, in any letter case; nothing, not even a full stop, may follow."""
    return text.casefold().endswith(_checked_text(phrase).strip().casefold())


@constraint("quotation")
def _quotation(text: str) -> bool:
    """The whole text stands in double quotation marks."""
    return len(text) > 2 and text[0] == text[-1] == '"'


@constraint("postscript")
def _postscript(text: str, marker: str) -> bool:
    """A line begins with the marker, "P.S." for instance, and says something, after a text that has begun before."""
    lines = text.split("\n")[1:]
    start = _checked_text(marker).casefold()
    return any(
        line.strip().casefold().startswith(start) and WORD.search(line.strip()[len(marker) :]) is not None
        for line in lines
    )


@constraint("two-responses")
def _two_responses(text: str) -> bool:
    """Two different responses with ****** between."""
    parts = [part.strip() for part in text.split(RESPONSE_SEPARATOR)]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


@constraint("combination")
def _combination(text: str, constraints: Sequence[Mapping[str, Any]]) -> bool:
    """All of several constraints, as one."""
    if not isinstance(constraints, Sequence) or not constraints:
        raise ValueError("a combination needs constraints")
    met = [satisfied(text, one) for one in constraints]  # all of them are looked at, so that a bad one is found
    return all(met)


# --- parts ---


def _compare(found: int, relation: str, count: int) -> bool:
    if relation not in RELATIONS:
        raise ValueError(f"unknown relation {relation!r}, expected one of {', '.join(RELATIONS)}")
    if type(count) is not int or count < 0:
        raise ValueError(f"{count!r} is not a count")
    return RELATIONS[relation](found, count)


def _split_paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text) if part.strip()]


def _occurrences(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _checked_text(text: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{text!r} must be a text that is not empty")
    return text


def _checked_words(words: Sequence[str]) -> Sequence[str]:
    if isinstance(words, str) or not isinstance(words, Sequence) or not words:
        raise ValueError(f"{words!r} must be a list of words")
    return [_checked_text(word) for word in words]

"""Instructions whose observance a program can check: "Use exactly 7 words. End with the words: so it goes."

A problem is drawn from kinds of constraints with parameters filled in; its answer is one response that meets them all,
made here, which serves as a worked example and proves that the constraints do not contradict each other. Three parts
that are apart by construction:

- train: constraint instances (a kind with its parameters) of which a hash says that they may be trained on, 3 of 4;
- heldout: the same kinds, but other instances only, so no rule of its problems was ever trained on;
- unseen: kinds that no training problem of the level has. Tulu 3 (arXiv 2411.15124) keeps such a suite back during all
  development, since verifiers that are trained on are over-fitted to.

Which instance is held out does not depend on a seed.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from zerozoo.rewards.constraints import RELATIONS, satisfied
from zerozoo.runs.errors import UserError
from zerozoo.tasks.prompts import TEMPLATES
from zerozoo.tasks.task import Task, TaskSet, check_sizes

SUITES = ("heldout", "unseen")
ATTEMPTS = 30  # at a response that meets the constraints, before they count as a contradiction
MISSES = 5000  # draws in a row without a new problem after which a part counts as used up

_FOOD = (
    *("nuts", "figs", "eggs", "pies", "buns", "peas", "yams", "kiwi"),
    *("corn", "rice", "plum", "lime", "beet", "milk", "tofu", "kale"),
)
_WORDS = (
    *_FOOD,
    *("garden", "river", "market", "window", "letter", "summer", "people", "music", "morning", "street", "village"),
    *("walk", "bring", "follow", "remember", "build", "carry", "listen", "small", "green", "quiet", "early", "bright"),
    *("and", "with", "under", "near", "often", "again"),
)
_TOPICS = ("breakfast", "a long walk", "the market", "rain", "a small village", "music", "learning to cook", "trees")
_PHRASES = (
    *("so it goes", "that is all", "see you soon", "enough for today", "and nobody knew", "good morning to all"),
    *("this is the end", "we will see", "as always", "who would have thought", "once upon a time", "in short"),
    *("nothing else happened", "ask me again tomorrow", "the rest is silence", "long ago", "that was the day"),
    *("come back later", "a week went by", "the door was open", "none of us slept", "they laughed"),
)

Draw = Callable[[random.Random], dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """One kind of constraint: how its parameters are drawn, and how it is said, with the parameters in braces."""

    draw: Draw
    says: str


@dataclass(frozen=True)
class Level:
    """`trained` and `unseen` kinds by their name in `rewards.constraints`; a problem has 1 to `most` of them.

    `words` are what answers are made of, `length` how many they have by default; `prose` writes sentences with capital
    letters and full stops. An answer has at most `longest` characters.
    """

    trained: Mapping[str, Kind]
    unseen: Mapping[str, Kind]
    most: int
    words: Sequence[str]
    length: range
    prose: bool
    longest: int
    template: str
    max_new_tokens: int


def _counted(low: int, high: int, **choices: Sequence[str]) -> Draw:
    """Draws a relation and a count in low..high, and one of each list of choices."""

    def draw(rng: random.Random) -> dict[str, Any]:
        chosen = {name: rng.choice(values) for name, values in choices.items()}
        return {**chosen, "relation": rng.choice(list(RELATIONS)), "count": rng.randint(low, high)}

    return draw


def _some(words: Sequence[str], most: int) -> Draw:
    return lambda rng: {"words": sorted(rng.sample(words, rng.randint(1, most)))}


def _one(name: str, values: Sequence[str]) -> Draw:
    return lambda rng: {name: rng.choice(values)}


LEVELS: dict[str, Level] = {
    # Every character is one of `word_sums.ALPHABET`, for the character-level tiny base model.
    "short": Level(
        trained={
            "words": Kind(_counted(2, 9), "{relation} {count} words"),
            "keywords": Kind(_some(_FOOD, 2), "use {words}"),
            "forbidden-words": Kind(_some(_FOOD, 2), "without {words}"),
            "end-phrase": Kind(_one("phrase", _FOOD), "end with {phrase}"),
        },
        unseen={
            "keyword-frequency": Kind(_counted(2, 4, word=_FOOD), "{word} {relation} {count} times"),
            "start-phrase": Kind(_one("phrase", _FOOD), "start with {phrase}"),
            "bullets": Kind(_counted(2, 4), "{relation} {count} lines with -"),
            "letter-frequency": Kind(_counted(2, 5, letter="aeiu"), "{relation} {count} letters {letter}"),
        },
        most=2,
        words=_FOOD,
        length=range(3, 7),
        prose=False,
        longest=64,
        template="word-sums",
        max_new_tokens=64,
    ),
    "plain": Level(
        trained={
            "words": Kind(_counted(8, 40), "Use {relation} {count} words."),
            "sentences": Kind(_counted(2, 6), "Write {relation} {count} sentences."),
            "keywords": Kind(_some(_WORDS, 3), "Use the words {words}."),
            "forbidden-words": Kind(_some(_WORDS, 3), "Do not use the words {words}."),
            "keyword-frequency": Kind(_counted(2, 4, word=_WORDS), 'Use the word "{word}" {relation} {count} times.'),
            "letter-frequency": Kind(
                _counted(2, 12, letter="abcdefgimnoprstuw"), 'Use the letter "{letter}" {relation} {count} times.'
            ),
            "capital-words": Kind(_counted(2, 6), "Write {relation} {count} words in capital letters."),
            "bullets": Kind(_counted(2, 6), 'Write {relation} {count} bullet points that begin with "- ".'),
            "end-phrase": Kind(_one("phrase", _PHRASES), 'End with the words "{phrase}" and nothing behind them.'),
        },
        unseen={
            "paragraphs": Kind(_counted(2, 4), "Write {relation} {count} paragraphs with blank lines between them."),
            "start-phrase": Kind(_one("phrase", _PHRASES), 'Start with the words "{phrase}".'),
            "case": Kind(_one("case", ("lower", "upper")), "Write all letters in {case} case."),
            "without-character": Kind(_one("character", ".,aeiou"), 'Do not use the character "{character}".'),
            "title": Kind(lambda rng: {}, "Give the text a title in double angle brackets, such as <<rain>>."),
            "quotation": Kind(lambda rng: {}, "Put the whole response in double quotation marks."),
            "highlights": Kind(_counted(2, 4), "Highlight {relation} {count} parts with asterisks, *like this*."),
            "placeholders": Kind(_counted(2, 4), "Use {relation} {count} placeholders in square brackets: [name]."),
            "postscript": Kind(_one("marker", ("P.S.", "P.P.S.", "N.B.")), "Add a last line that begins with {marker}"),
            "json": Kind(
                lambda rng: {"keys": sorted(rng.sample(("text", "title", "author", "date"), 2))},
                "Write the whole response as one JSON object with the keys {keys}.",
            ),
        },
        most=3,
        words=_WORDS,
        length=range(12, 25),
        prose=True,
        longest=600,
        template="plain-qa",
        max_new_tokens=256,
    ),
}
DEFAULT_LEVEL = "plain"


def constraints(
    level: str = DEFAULT_LEVEL,
    seed: int = 0,
    train_size: int = 2000,
    heldout_size: int = 200,
    suite: str = "heldout",
) -> TaskSet:
    """A task set of one level; `seed` draws the problems, `suite` says which part is measured on: heldout or unseen.

    Metadata of a task: `constraints`, for `rewards.constraints.ConstraintVerifier`. Raises `UserError` for an unknown
    level or suite, and for more problems than there are.
    """
    if level not in LEVELS:
        raise UserError(f"Unknown constraints level '{level}'; choose from: {', '.join(LEVELS)}.")
    if suite not in SUITES:
        raise UserError(f"Unknown suite of constraints '{suite}'; choose from: {', '.join(SUITES)}.")
    check_sizes(train_size, heldout_size)
    spec = LEVELS[level]
    return TaskSet(
        name=f"constraints:{level}" if suite == "heldout" else f"constraints:{level}:{suite}",
        train=_draw(level, "train", train_size, seed),
        heldout=_draw(level, suite, heldout_size, seed),
        verifier="constraints",
        extractor="lenient",
        template=spec.template,
        stop=TEMPLATES[spec.template].stop,
        max_new_tokens=spec.max_new_tokens,
    )


def is_heldout(constraint: Mapping[str, Any]) -> bool:
    """Whether this instance of a kind is one of those, 1 in 4, that no training problem has."""
    text = json.dumps(constraint, sort_keys=True)
    return hashlib.sha256(f"constraints/{text}".encode()).digest()[0] < 64


@lru_cache(maxsize=16)  # drawing takes far longer than anything else that is done with the problems
def _draw(level: str, part: str, count: int, seed: int) -> tuple[Task, ...]:
    """`count` distinct problems of a part."""
    rng = random.Random(f"constraints/{part}/{level}/{seed}")
    drawn: dict[str, Task] = {}
    misses = 0
    while len(drawn) < count and misses < MISSES:
        task = _problem(level, part, rng)
        misses += 1
        if task is not None and task.question not in drawn:
            drawn[task.question] = task
            misses = 0
    if len(drawn) < count:
        raise UserError(f"There are fewer than {count} problems in the part '{part}' of constraints:{level}.")
    return tuple(drawn.values())


def _problem(level: str, part: str, rng: random.Random) -> Task | None:
    """A random problem, or None where no response was found that meets its constraints."""
    spec = LEVELS[level]
    kinds = spec.unseen if part == "unseen" else spec.trained
    chosen: list[dict[str, Any]] = []
    for kind in rng.sample(list(kinds), rng.randint(1, spec.most)):
        one = {"kind": kind, **kinds[kind].draw(rng)}
        while part != "unseen" and is_heldout(one) != (part == "heldout"):
            one = {"kind": kind, **kinds[kind].draw(rng)}
        chosen.append(one)
    answer = _answer(spec, chosen, rng)
    if answer is None:
        return None
    said = [_say(kinds[one["kind"]].says, one, spec.prose) for one in chosen]
    question = f"Write about {rng.choice(_TOPICS)}. {' '.join(said)}" if spec.prose else f"write {', '.join(said)}."
    return Task(
        id=f"constraints/{level}/{hashlib.sha256(question.encode()).hexdigest()[:16]}",
        question=question,
        answer=answer,
        source="constraints",
        level=level,
        metadata={"constraints": chosen},
    )


def _say(says: str, constraint: Mapping[str, Any], quoted: bool) -> str:
    spoken = {
        name: (", ".join(f'"{word}"' for word in value) if quoted else " and ".join(value))
        if isinstance(value, list)
        else value
        for name, value in constraint.items()
    }
    return says.format(**spoken)


# --- answers ---


def _answer(spec: Level, constraints: Sequence[Mapping[str, Any]], rng: random.Random) -> str | None:
    for _ in range(ATTEMPTS):
        text = _draft(spec, {one["kind"]: one for one in constraints}, rng)
        if len(text) <= spec.longest and all(satisfied(text, one) for one in constraints):
            return text
    return None


def _draft(spec: Level, wanted: Mapping[str, Mapping[str, Any]], rng: random.Random) -> str:
    """A text that mostly meets what is wanted: words at random, those that are asked for among them, in due form."""
    tokens = _tokens(spec, wanted, rng)
    pieces = {name: _about(wanted.get(name), rng, 0) for name in ("bullets", "paragraphs")}
    if pieces["bullets"]:
        text = "\n".join(f"- {_sentence(part, spec)}" for part in _parts(tokens, pieces["bullets"]))
    else:
        number = _about(wanted.get("sentences"), rng, max(len(tokens) // 8, pieces["paragraphs"]) if spec.prose else 1)
        sentences = [_sentence(part, spec) for part in _parts(tokens, number)]
        text = "\n\n".join(" ".join(part) for part in _parts(sentences, max(pieces["paragraphs"], 1)))
    if "end-phrase" in wanted:
        text = text.removesuffix(".")
    if "title" in wanted:
        text = f"<<{rng.choice(spec.words)}>>\n{text}"
    if "postscript" in wanted:
        text += f"\n{wanted['postscript']['marker']} {rng.choice(spec.words)}"
    if "case" in wanted:
        text = text.lower() if wanted["case"]["case"] == "lower" else text.upper()
    if "without-character" in wanted:
        text = text.replace(wanted["without-character"]["character"], "")
    if "quotation" in wanted:
        text = f'"{text}"'
    return json.dumps(dict.fromkeys(wanted["json"]["keys"], text)) if "json" in wanted else text


def _tokens(spec: Level, wanted: Mapping[str, Mapping[str, Any]], rng: random.Random) -> list[str]:
    """Words and phrases in order: the start, a mixture of what is asked for and of filling, and the end."""
    start, end = ([wanted[name]["phrase"]] if name in wanted else [] for name in ("start-phrase", "end-phrase"))
    repeated = wanted.get("keyword-frequency", {})
    letter = wanted.get("letter-frequency", {})
    avoided = {*wanted.get("forbidden-words", {}).get("words", ()), repeated.get("word")}
    filling = [word for word in spec.words if word not in avoided]
    without = [word for word in filling if letter.get("letter", " ") not in word]
    middle = [*wanted.get("keywords", {}).get("words", ()), *[repeated.get("word", "")] * _about(repeated, rng, 0)]
    middle += [f"*{rng.choice(filling)}*" for _ in range(_about(wanted.get("highlights"), rng, 0))]
    middle += [f"[{rng.choice(filling)}]" for _ in range(_about(wanted.get("placeholders"), rng, 0))]
    length = _about(wanted.get("words"), rng, rng.choice(spec.length))
    there = len(" ".join([*start, *middle, *end]).split())
    letters = _about(letter, rng, 0)
    for _ in range(length - there):
        few = letter and "".join([*start, *middle, *end]).count(letter["letter"]) >= letters
        middle.append(rng.choice(without if few and without else filling))
    for place in range(min(_about(wanted.get("capital-words"), rng, 0), len(middle))):
        middle[-1 - place] = middle[-1 - place].upper()
    rng.shuffle(middle)
    return [*start, *middle, *end]


def _about(constraint: Mapping[str, Any] | None, rng: random.Random, default: int) -> int:
    """A number that the relation and the count of a constraint allow, near the count."""
    if not constraint:
        return default
    count: int = constraint["count"]
    spread = {"at least": rng.randint(0, 2), "at most": -rng.randint(0, 1), "exactly": 0}[constraint["relation"]]
    return count + spread


def _parts(items: list[str], number: int) -> list[list[str]]:
    """The items in order in `number` parts of about equal size, none of them empty."""
    number = max(1, min(number, len(items)))
    return [items[len(items) * place // number : len(items) * (place + 1) // number] for place in range(number)]


def _sentence(tokens: Sequence[str], spec: Level) -> str:
    text = " ".join(tokens)
    return f"{text[:1].upper()}{text[1:]}." if spec.prose else text

"""Which training problems repeat evaluation problems, found by their n-grams, and the training set without them.

A token of an evaluation text matches a training text when both share an n-gram that holds it; the two overlap when more
than a given share of the evaluation text's tokens match the same training text. The defaults, n = 8 and more than half
of the tokens, and the limit of 2 % of an evaluation set, above which a whole training set counts as contaminated, are
those of Tulu 3 (arXiv 2411.15124, section on decontamination; the measure as in its released code). Tokens are words
and single marks here, letter case apart, where Tulu 3 uses spaCy's.

Problems from one template ("What is 7 + 5?") share their n-grams without being the same; `unique_tasks` and `exclude`
compare whole questions and are right for those.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zerozoo.runs.errors import UserError
from zerozoo.tasks.task import Task

N = 8
SHARE = 0.5
CONTAMINATED = 0.02
TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Overlap:
    """`share` of the tokens of an evaluation problem stand in n-grams that the training problem has, too."""

    evaluation_id: str
    training_id: str
    share: float


@dataclass(frozen=True)
class Report:
    """All overlaps beyond the limit, in the order of the evaluation set, and what was compared."""

    overlaps: tuple[Overlap, ...]
    training_size: int
    evaluation_size: int

    @property
    def contaminated_share(self) -> float:
        """Share of the evaluation problems that overlap with any training problem."""
        return len({overlap.evaluation_id for overlap in self.overlaps}) / self.evaluation_size

    @property
    def is_contaminated(self) -> bool:
        """Whether Tulu 3 would call the whole training set contaminated with this evaluation set (more than 2 %)."""
        return self.contaminated_share > CONTAMINATED

    @property
    def training_ids(self) -> frozenset[str]:
        """The training problems that overlap with any evaluation problem."""
        return frozenset(overlap.training_id for overlap in self.overlaps)

    def __str__(self) -> str:
        evaluated = len({overlap.evaluation_id for overlap in self.overlaps})
        return (
            f"{evaluated} of {self.evaluation_size} evaluation problems overlap with"
            f" {len(self.training_ids)} of {self.training_size} training problems."
        )


def find_overlaps(
    training: Sequence[Task],
    evaluation: Sequence[Task],
    n: int = N,
    share: float = SHARE,
    text: Callable[[Task], str] = lambda task: task.question,
) -> Report:
    """Every pair of problems that overlap by more than `share` of the evaluation problem's tokens in n-grams.

    A text of fewer than n tokens overlaps with texts of the very same tokens only. `text` says what is compared. Raises
    `UserError` for n < 1, a share outside 0..1, an empty evaluation set, or an id that two problems of a part have.
    """
    if n < 1 or not 0 <= share < 1:
        raise UserError(f"Decontamination needs n of at least 1 and a share from 0 to below 1, not {n} and {share}.")
    if not evaluation:
        raise UserError("Decontamination needs evaluation problems to compare with.")
    for part, tasks in (("training", training), ("evaluation", evaluation)):
        if len({task.id for task in tasks}) < len(tasks):
            raise UserError(f"Decontamination needs {part} problems with different ids.")
    index: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, task in enumerate(training):
        for gram in dict.fromkeys(_ngrams(_tokens(text(task)), n)):
            index[gram].append(place)
    overlaps = []
    for task in evaluation:
        tokens = _tokens(text(task))
        matched: dict[int, set[int]] = defaultdict(set)
        for start, gram in enumerate(_ngrams(tokens, n)):
            for place in index.get(gram, ()):
                matched[place].update(range(start, start + len(gram)))
        overlaps += [
            Overlap(task.id, training[place].id, len(found) / len(tokens))
            for place, found in sorted(matched.items())
            if len(found) > share * len(tokens)
        ]
    return Report(tuple(overlaps), len(training), len(evaluation))


def decontaminate(
    training: Sequence[Task],
    evaluation: Sequence[Task],
    n: int = N,
    share: float = SHARE,
    text: Callable[[Task], str] = lambda task: task.question,
) -> tuple[tuple[Task, ...], Report]:
    """(the training problems that overlap with no evaluation problem, the report); see `find_overlaps`.

    Raises `UserError` when nothing is left.
    """
    report = find_overlaps(training, evaluation, n, share, text)
    kept = tuple(task for task in training if task.id not in report.training_ids)
    if not kept:
        raise UserError("No training problem is left after decontamination: all overlap with evaluation problems.")
    return kept, report


def _tokens(text: str) -> list[str]:
    return TOKEN.findall(text.casefold())


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens; of a shorter text the whole, which as a shorter run equals no part of a longer text."""
    if len(tokens) < n:
        return [tuple(tokens)] if tokens else []
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]

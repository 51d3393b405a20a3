"""One problem with a checkable answer, and a set of them with the settings that suit it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from zerozoo.runs.errors import UserError

if TYPE_CHECKING:
    from zerozoo.rewards.by_problem import ByProblemVerifier
    from zerozoo.rewards.code import CodeVerifier
    from zerozoo.rewards.constraints import ConstraintVerifier
    from zerozoo.rewards.countdown import CountdownVerifier
    from zerozoo.rewards.countdown_steps import CountdownStepsVerifier
    from zerozoo.rewards.postfix import PostfixVerifier
    from zerozoo.rewards.unit_test_verifier import UnitTestVerifier
    from zerozoo.rewards.verifier import MathVerifier
    from zerozoo.tasks.gym_scorer import GymVerifier

    AnyVerifier: TypeAlias = (
        MathVerifier
        | CountdownVerifier
        | CountdownStepsVerifier
        | GymVerifier
        | CodeVerifier
        | ConstraintVerifier
        | PostfixVerifier
        | ByProblemVerifier
        | UnitTestVerifier
    )

VERIFIERS = (
    "math",
    "countdown",
    "countdown-steps",
    "reasoning-gym",
    "code",
    "constraints",
    "postfix",
    "unit-tests",
    "by-problem",
)


@dataclass(frozen=True)
class Task:
    """One problem: what is asked and the gold answer, before any prompt template is applied.

    `level` is "" when the source has none. `metadata` carries whatever the verifier needs besides the answer.
    """

    id: str
    question: str
    answer: str
    source: str
    level: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


def question_key(question: str) -> str:
    """The form under which two questions count as the same one: letter case and runs of blanks are ignored."""
    return " ".join(question.split()).casefold()


def unique_tasks(tasks: Iterable[Task], excluded: Iterable[Task] = ()) -> tuple[Task, ...]:
    """The tasks in order, each question once (the first one stays), without the questions of `excluded`."""
    seen = {question_key(task.question) for task in excluded}
    kept = []
    for task in tasks:
        key = question_key(task.question)
        if key not in seen:
            seen.add(key)
            kept.append(task)
    return tuple(kept)


def check_sizes(train_size: int, heldout_size: int) -> None:
    """Raises `UserError` unless both parts of a generated task set get at least one problem."""
    for option, size in (("train_size", train_size), ("heldout_size", heldout_size)):
        if size < 1:
            raise UserError(f"{option} must be at least 1, not {size}.")


@dataclass(frozen=True)
class TaskSet:
    """Problems to train on, held-out problems to measure on, and the settings recommended for both.

    `verifier` is one of `VERIFIERS`, `extractor` a name of `rewards.extract`, `template` a name of `prompts.TEMPLATES`
    or a text with `{question}`; `stop` are strings that end a response. A run may replace each of these. `notes` are
    sentences on what loading left out (repeated questions, unusable answers), for the user to read before a run.

    Raises `UserError` when a part is empty or when a question stands in both parts.
    """

    name: str
    train: tuple[Task, ...]
    heldout: tuple[Task, ...]
    verifier: str
    extractor: str
    template: str
    stop: tuple[str, ...]
    max_new_tokens: int
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.verifier not in VERIFIERS:
            raise UserError(f"Unknown verifier '{self.verifier}'; choose from: {', '.join(VERIFIERS)}.")
        for part, tasks in (("training", self.train), ("held-out", self.heldout)):
            if not tasks:
                raise UserError(f"The task set '{self.name}' has no {part} problems.")
        train_keys = {question_key(task.question) for task in self.train}
        shared = [task for task in self.heldout if question_key(task.question) in train_keys]
        if shared:
            raise UserError(
                f"The task set '{self.name}' has {len(shared)} held-out questions that are also trained on,"
                f" for example: {shared[0].question[:80]!r}."
            )


def make_verifier(source: TaskSet | str, extractor: str | None = None) -> AnyVerifier:
    """The verifier of a task set, or of one of the names in `VERIFIERS`; the same one scores training and evaluation.

    `extractor` replaces the task set's own (default for a bare name: "lenient"). A task set's verifier ignores what
    follows one of its stop strings, so that it does not matter whether a sampler cuts them off. Those of math and
    reasoning-gym use the extractor; the others have ways of their own to find what they judge, and that of countdown
    wants every number used, as the question says. Raises `UserError` for an unknown name or a missing package.
    """
    stop: tuple[str, ...] = ()
    if isinstance(source, TaskSet):
        stop = source.stop
        extractor = source.extractor if extractor is None else extractor
        source = source.verifier
    if extractor is None:
        extractor = "lenient"
    return _named_verifier(source, extractor, stop)


def _named_verifier(source: str, extractor: str, stop: tuple[str, ...]) -> AnyVerifier:
    if source == "math":
        from zerozoo.rewards.verifier import MathVerifier

        return MathVerifier(extractor=extractor, stop=stop)
    if source == "countdown":
        from zerozoo.rewards.countdown import CountdownVerifier

        return CountdownVerifier(use_all=True, stop=stop)
    if source == "countdown-steps":
        from zerozoo.rewards.countdown_steps import CountdownStepsVerifier

        return CountdownStepsVerifier(stop=stop)
    if source == "reasoning-gym":
        from zerozoo.tasks.gym_scorer import GymVerifier

        return GymVerifier(extractor=extractor, stop=stop)
    if source == "code":
        from zerozoo.rewards.code import CodeVerifier

        return CodeVerifier(stop=stop)
    if source == "constraints":
        from zerozoo.rewards.constraints import ConstraintVerifier

        return ConstraintVerifier(stop=stop)
    if source == "postfix":
        from zerozoo.rewards.postfix import PostfixVerifier

        return PostfixVerifier(stop=stop)
    if source == "unit-tests":
        from zerozoo.rewards.unit_test_verifier import UnitTestVerifier

        return UnitTestVerifier(stop=stop)
    if source == "by-problem":
        from zerozoo.rewards.by_problem import ByProblemVerifier

        return ByProblemVerifier(lambda name, its_extractor: _named_verifier(name, its_extractor, stop))
    raise UserError(f"Unknown verifier '{source}'; choose from: {', '.join(VERIFIERS)}.")

"""One door to every task set: generated tasks by name, problem files, hub data sets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from zerozoo.runs.errors import UserError
from zerozoo.tasks import arithmetic as arithmetic_tasks
from zerozoo.tasks import code as code_tasks
from zerozoo.tasks import constraints as constraint_tasks
from zerozoo.tasks import copying as copying_tasks
from zerozoo.tasks import countdown as countdown_tasks
from zerozoo.tasks import focal_context as focal_tasks
from zerozoo.tasks import postfix as postfix_tasks
from zerozoo.tasks import small_countdown as small_countdown_tasks
from zerozoo.tasks import unit_tests as unit_test_tasks
from zerozoo.tasks import word_sums as word_sum_tasks
from zerozoo.tasks.files import load_suite, load_tasks, recommended_template, unique_ids
from zerozoo.tasks.mixture import JOIN, mixture
from zerozoo.tasks.presets import PRESETS
from zerozoo.tasks.prompts import get_template
from zerozoo.tasks.splits import difficulty_split, exclude, split_heldout
from zerozoo.tasks.task import Task, TaskSet, make_verifier, unique_tasks

GENERATED = (
    "arithmetic",
    "countdown",
    "word-sums",
    "reasoning-gym",
    "code",
    "constraints",
    "postfix",
    "small-countdown",
    "copying",
    "unit-tests",
)
FILE_HELDOUT_SIZE = 200
FILE_MAX_NEW_TOKENS = 1024


def load_task_set(
    name: str,
    level: str | None = None,
    split: str | None = None,
    heldout: str | None = None,
    train_size: int | None = None,
    heldout_size: int | None = None,
    seed: int = 0,
    question_column: str | None = None,
    answer_column: str | None = None,
    without: str | None = None,
    extractor: str | None = None,
    template: str | None = None,
) -> TaskSet:
    """The task set of a name. Options left at None take the set's own defaults.

    - "arithmetic" (`level`), "countdown" (`level`), "code" (`level`), "word-sums" (`split`, and `heldout` for the split
      measured on), "constraints" (`level`, and `heldout` "unseen" for the kinds that are not trained on),
      "postfix", "small-countdown", "unit-tests", "copying", "reasoning-gym:<dataset>" (`level` of its curriculum):
      generated. Level or split may follow a colon: "arithmetic:two-digit"; behind "unit-tests:" stands a file or folder
      of Python whose functions are to be tested.
    - several of these and of the following with "+" between them: a `mixture`; its parts say level and split behind a
      colon, and the sizes are those of each part.
    - a preset, file, folder or hub id (`files.load_tasks`), or several with commas between them: `split` easy, medium
      or hard picks by difficulty; `heldout` is a source of its own to measure on, otherwise `heldout_size` problems
      are split off by a hash of their question; questions of the source `without` are removed from training.

    `seed` chooses the split and the generated problems; it is not the training seed, so that every run of one
    experiment is measured on the same held-out problems. `extractor` and `template` replace the recommended ones.

    Raises `UserError` for an unknown name, for options that the name has no use for, and for bad data.
    """
    if JOIN in name and not Path(name).exists():
        _refuse(name, level=level, split=split, heldout=heldout, question_column=question_column)
        _refuse(name, answer_column=answer_column, without=without, extractor=extractor)
        names = [part.strip() for part in name.split(JOIN)]
        if not all(names):
            raise UserError(f"The mixture {name!r} has an empty place in it.")

        def part_of(name: str) -> TaskSet:
            return load_task_set(name, train_size=train_size, heldout_size=heldout_size, seed=seed, template=template)

        return mixture([part_of(part) for part in names])
    kind, _, variant = name.partition(":")
    sizes = {"train_size": train_size, "heldout_size": heldout_size}
    columns = {"question_column": question_column, "answer_column": answer_column}
    if kind not in GENERATED:
        _refuse(name, level=level, train_size=train_size)
        task_set = _from_files(name, split, heldout, heldout_size, seed, without, **columns)
    else:
        _refuse(name, without=without, **columns)
        task_set = _generated(kind, variant, level, split, heldout, sizes, seed)
    if template is not None:
        task_set = replace(task_set, template=template, stop=get_template(template).stop)
    if extractor is not None:
        task_set = replace(task_set, extractor=_known_extractor(extractor))
    return task_set


def _generated(
    kind: str,
    variant: str,
    level: str | None,
    split: str | None,
    heldout: str | None,
    sizes: dict[str, int | None],
    seed: int,
) -> TaskSet:
    given: dict[str, Any] = {option: size for option, size in sizes.items() if size is not None}
    if kind == "word-sums":
        _refuse(kind, level=level)
        trained, _, measured = variant.partition(":")
        trained_split = _one_of(kind, "split", trained, split) or "easy"
        measured_split = _one_of(kind, "heldout", measured, heldout)
        return word_sum_tasks.word_sums(trained_split, seed, heldout_split=measured_split, **given)
    if kind == "constraints":
        _refuse(kind, split=split)
        name, _, suite = variant.partition(":")
        name = _one_of(kind, "level", name, level) or constraint_tasks.DEFAULT_LEVEL
        suite = _one_of(kind, "heldout", suite, heldout) or constraint_tasks.SUITES[0]
        return constraint_tasks.constraints(name, seed, suite=suite, **given)
    _refuse(kind, split=split, heldout=heldout)
    if kind == "postfix":
        _refuse(kind, level=_one_of(kind, "level", variant, level))
        return postfix_tasks.postfix(seed, **given)
    if kind == "small-countdown":
        _refuse(kind, level=_one_of(kind, "level", variant, level))
        return small_countdown_tasks.small_countdown(seed, **given)
    if kind == "unit-tests":
        _refuse(kind, level=level)
        if variant:
            _refuse(f"{kind}:{variant}", train_size=given.get("train_size"))
            return focal_tasks.file_tests(variant, seed, **given)
        return unit_test_tasks.unit_tests(seed, **given)
    if kind == "reasoning-gym":
        from zerozoo.tasks.gym import gym_tasks

        dataset, _, variant = variant.partition(":")
        return gym_tasks(dataset, _one_of(kind, "level", variant, level), seed, **given)
    chosen = _one_of(kind, "level", variant, level)
    if kind == "copying":
        _refuse(kind, level=chosen)
        return copying_tasks.copying(seed, **given)
    if kind == "countdown":
        return countdown_tasks.countdown(chosen or countdown_tasks.DEFAULT_LEVEL, seed, **given)
    _refuse(kind, train_size=given.get("train_size"))
    if kind == "code":
        return code_tasks.code(chosen or code_tasks.DEFAULT_LEVEL, seed, **given)
    return arithmetic_tasks.arithmetic(chosen or arithmetic_tasks.DEFAULT_LEVEL, seed, **given)


def _from_files(
    name: str,
    split: str | None,
    heldout: str | None,
    heldout_size: int | None,
    seed: int,
    without: str | None,
    question_column: str | None,
    answer_column: str | None,
) -> TaskSet:
    if heldout is not None and heldout_size is not None:
        raise UserError("Give either heldout (a source to measure on) or heldout_size, not both.")
    notes: list[str] = []
    sources = _sources(name)
    loaded = [task for source in sources for task in load_tasks(source, question_column, answer_column)]
    tasks = unique_tasks(unique_ids(loaded))
    _note(notes, len(loaded) - len(tasks), "repeated questions were left out")
    if split is not None:
        tasks = difficulty_split(tasks, split)
    if without is not None:
        kept = exclude(tasks, _suite(without))
        _note(notes, len(tasks) - len(kept), f"questions that are in {without} were left out")
        tasks = kept
    if heldout is None:
        size = FILE_HELDOUT_SIZE if heldout_size is None else heldout_size
        tasks = _checkable(tasks, name, notes)
        train, measured = split_heldout(tasks, size, seed)
    else:
        suite = unique_tasks(_suite(heldout))
        measured = _checkable(suite, heldout, notes)
        train = exclude(tasks, suite)
        _note(notes, len(tasks) - len(train), f"training questions that are in {heldout} were left out")
        train = _checkable(train, name, notes)
    template = recommended_template(train)
    return TaskSet(
        name=name if split is None else f"{name}:{split}",
        train=train,
        heldout=measured,
        verifier="math",
        extractor="lenient",
        template=template,
        stop=get_template(template).stop,
        max_new_tokens=FILE_MAX_NEW_TOKENS,
        notes=tuple(notes),
    )


def _checkable(tasks: Sequence[Task], name: str, notes: list[str]) -> tuple[Task, ...]:
    """The tasks whose gold answer the verifier can use. It says so when it is asked about an empty response."""
    from zerozoo.rewards.verifier import Verdict

    with closing(make_verifier("math")) as verifier:
        results = verifier.verify(tasks, [""] * len(tasks))
    kept = tuple(task for task, result in zip(tasks, results, strict=True) if result.verdict is Verdict.WRONG)
    if not kept and tasks:
        raise UserError(
            f"None of the {len(tasks)} answers of {name} can be used as a gold answer, for example"
            f" {tasks[0].answer[:60]!r}; check the answer column."
        )
    _note(notes, len(tasks) - len(kept), f"problems of {name} were left out: their gold answer cannot be parsed")
    return kept


def _suite(source: str) -> tuple[Task, ...]:
    return unique_ids(task for part in _sources(source) for task in load_suite(part))


def _sources(name: str) -> list[str]:
    """Several sources stand in one name with commas between them, unless a file has just that name."""
    if Path(name).exists():
        return [name]
    parts = [part.strip() for part in name.split(",")]
    if not all(parts):
        raise UserError(f"The list of data sets {name!r} has an empty place in it.")
    for part in parts:
        if part not in PRESETS and "/" not in part and not Path(part).exists() and not Path(part).suffix:
            raise UserError(
                f"Unknown task {part!r}; choose one of {', '.join(GENERATED)}:<dataset>, {', '.join(PRESETS)},"
                " a file, a folder or a hub id such as owner/name."
            )
    return parts


def _one_of(kind: str, option: str, variant: str, given: str | None) -> str | None:
    if variant and given is not None and variant != given:
        raise UserError(f"'{kind}:{variant}' and {option} '{given}' contradict each other; give one of them.")
    return given if given is not None else variant or None


def _refuse(name: str, **options: object) -> None:
    for option, value in options.items():
        if value is not None:
            raise UserError(f"The option {option} has no use for the task '{name}'; leave it out.")


def _known_extractor(name: str) -> str:
    from zerozoo.rewards.extract import EXTRACTORS

    if name not in EXTRACTORS:
        raise UserError(f"Unknown extractor '{name}'; choose from: {', '.join(EXTRACTORS)}.")
    return name


def _note(notes: list[str], count: int, what: str) -> None:
    if count:
        notes.append(f"{count} {what}.")

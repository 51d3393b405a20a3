"""Which runs a command of `zerozoo runs` is about: filters, directories, and arms to compare."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from tyro.conf import DisallowNone, Positional, UseAppendAction

from zerozoo.runs.aggregates import RESAMPLES
from zerozoo.runs.compare import Gathered, Settings, gather, read_reference
from zerozoo.runs.errors import UserError
from zerozoo.runs.queries import DEFAULT_METRICS, Arm, arms_of_filters, arms_of_runs, default_metric, parse_filter_set
from zerozoo.runs.records import Record, Series, find_runs, read_record, read_series
from zerozoo.runs.store import Store


@dataclass(frozen=True)
class Filters:
    """Conditions that runs must meet, all of them. Needs DuckDB."""

    recipe: UseAppendAction[tuple[str, ...]] = ()
    """name of the recipe; given several times: one of them"""
    environment: UseAppendAction[tuple[str, ...]] = ()
    """environment or data; given several times: one of them"""
    tag: UseAppendAction[tuple[str, ...]] = ()
    """a tag; given several times: all of them"""
    user: UseAppendAction[tuple[str, ...]] = ()
    """who made the run; given several times: one of them"""
    where: UseAppendAction[tuple[str, ...]] = ()
    """FIELD=VALUE of the config; of several values of one field the run has one"""
    version: UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE of versions.json, such as torch=2.6.0 or commit=HASH"""

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def runs(self, directory: Path) -> tuple[list[Record], list[str]]:
        """The runs below `directory` that meet the conditions, and sentences about the folder as a whole.

        Without DuckDB and without conditions every run is read. Raises UserError if there is no run.
        """
        if self or importlib.util.find_spec("duckdb") is not None:
            with Store.open(directory) as store:
                records = store.select(
                    recipes=self.recipe,
                    environments=self.environment,
                    tags=self.tag,
                    users=self.user,
                    fields=pairs(self.where, "--where"),
                    versions=pairs(self.version, "--version"),
                )
                notes = store.notes
        elif directory.is_dir():
            skipped: list[Path] = []
            records = [read_record(folder) for folder in find_runs(directory, skipped=skipped)]
            notes = [f"{folder} cannot be read and was left out" for folder in skipped]
        else:
            raise UserError(f"there is no folder {directory}; `zerozoo runs list DIRECTORY` looks elsewhere")
        if not records:
            wanted = " that meets the filters" if self else "; `zerozoo train` makes one"
            raise UserError(f"there is no run in {directory}{wanted}")
        return records, notes


@dataclass(frozen=True)
class Choice:
    """The arms of a comparison: run directories, or filter sets over all tracked runs."""

    directories: Positional[tuple[Path, ...]] = ()
    """run directories, or folders with runs below them; runs whose configs differ in seed and environment alone are
    one arm"""
    metric: DisallowNone[str | None] = None
    """name from metrics.jsonl; by default heldout/greedy_accuracy, evaluation/return or episode/return"""
    step: str = "step"
    """what the metric is drawn over, if the runs log something else as their step"""
    filters: UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """a filter set: '?we=..&wpn=..&ceik=..&cen=..&xaxis=..&metric=..' and then 'ALGORITHM?tag=..&seed=..&cl=..' for
    every arm, '?wpn=zerozoo' and then 'RECIPE?..' for runs of zerozoo; may be given several times. Needs DuckDB"""
    env_ids: UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """environments of the filter sets, one list for each or one for all; by default those that the runs have"""
    root: Path = Path("runs")
    """where filter sets look for runs"""
    unfinished: bool = False
    """with filters: count runs that are still running or were stopped"""
    window: int = 100
    """logged points in a final score; never more than a tenth of a run's points"""
    normalise: str = "max-min"
    """scale of the scores: max-min of these runs, none, or a JSON file {"ENVIRONMENT": [random, reference]}"""
    efficiency: Literal["median", "IQM", "mean", "optimality gap"] = "median"
    """aggregate of the efficiency curves"""
    resamples: int = RESAMPLES
    """bootstrap resamples"""
    level: float = 0.95
    """level of the intervals"""

    def settings(self) -> Settings:
        """Raises UserError for numbers that make no comparison and for reference scores that cannot be read."""
        settings = Settings(
            window=self.window,
            resamples=self.resamples,
            level=self.level,
            efficiency=self.efficiency,
            unfinished=self.unfinished,
        )
        if self.normalise in ("max-min", "none"):
            return replace(settings, normalisation=self.normalise)
        return replace(settings, normalisation="reference", reference=read_reference(Path(self.normalise)))

    def records(self) -> list[Record]:
        """The runs in `directories`, each once."""
        return list({record.directory.absolute(): record for record in _expanded(self.directories)}.values())

    def gather(self) -> Gathered:
        """The metric of the arms' runs. Raises UserError for directories beside filters, and where nothing is left."""
        if self.filters and (self.directories or self.metric):
            raise UserError("filters say which runs and which metric: leave out directories and --metric")
        if self.env_ids and not self.filters:
            raise UserError("--env-ids belongs to --filters")
        if self.filters:
            sets = [parse_filter_set(texts) for texts in self.filters]
            with Store.open(self.root) as store:
                gathered = gather(arms_of_filters(store, sets, self.env_ids), store.series, self.unfinished)
                return replace(gathered, discarded=[*store.notes, *gathered.discarded])
        arms, discarded = _arms(self.records(), self.metric, self.step)
        gathered = gather(arms, _load, unfinished=True)
        return replace(gathered, discarded=[*discarded, *gathered.discarded])


def pairs(texts: Sequence[str], flag: str) -> dict[str, list[str]]:
    """Values by name of texts such as "name=value". Raises UserError for a text without a "="."""
    values: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UserError(f"{flag} takes NAME=VALUE, not {text!r}")
        values.setdefault(name, []).append(value)
    return values


def print_sentences(out: Console, title: str, sentences: Sequence[str]) -> None:
    """A list under its title; nothing if it is empty."""
    if sentences:
        out.print(f"\n{title}")
        for sentence in sentences:
            out.print(f"  {sentence}", soft_wrap=True)


def _expanded(directories: Sequence[Path]) -> Iterator[Record]:
    for directory in directories:
        found = list(find_runs(directory)) if directory.is_dir() else []
        if directory in found or not found:
            yield read_record(directory)  # or what is wrong with it
        else:
            yield from map(read_record, found)


def _arms(records: Sequence[Record], wanted: str | None, step: str) -> tuple[list[Arm], list[str]]:
    """The runs that have the metric, by arm; a sentence for each of the others."""
    if not records:
        raise UserError("give run directories, or --filters")
    known = sorted({name for record in records for name in record.final})
    empty = [record for record in records if not record.rows]
    if len(empty) == len(records):
        raise UserError(f"{empty[0].directory} has no metrics yet, so there is nothing to compare or draw")
    metric = wanted or default_metric(records)
    if metric not in known:
        names = repr(wanted) if wanted else f"one of {', '.join(DEFAULT_METRICS)}: give --metric"
        raise UserError(f"none of these runs has logged {names}; they have: {', '.join(known)}")
    having = [record for record in records if metric in record.final]
    without = [record for record in records if metric not in record.final]
    discarded = [
        f"{record.directory}: has {'not logged ' + metric if record.rows else 'no metrics yet'}" for record in without
    ]
    return arms_of_runs(having, metric, step), discarded


def _load(records: Sequence[Record], metric: str, step: str) -> list[Series]:
    return [read_series(record, metric, step) for record in records]

"""`zerozoo evaluate`: what a run's or any other model can do, with intervals."""

from __future__ import annotations

import json as json_text
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tyro.conf import DisallowNone, FlagCreatePairsOff, Positional

from zerozoo.cli.tables import (
    console,
    duration,
    make_table,
    number,
    percent,
    percent_interval,
    print_json,
    print_paragraph,
    strict,
)
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import CONFIG, Run

if TYPE_CHECKING:
    from zerozoo.language.behaviours import Judge
    from zerozoo.language.measure import Settings, SuiteResult
    from zerozoo.language.suites import Suite

# Metrics of the responses in the order of the table: key, label, whether it is a share.
RESPONSES = (
    ("response/length", "length, tokens", False),
    ("response/stopped_length", "  of those that stopped", False),
    ("response/length_right", "  of right answers", False),
    ("response/length_wrong", "  of wrong answers", False),
    ("response/clip_ratio", "cut off at the limit, %", True),
    ("response/box_ratio", "with a box, %", True),
    ("response/repeat_ratio", "repeating themselves, %", True),
    ("response/reflection", "reflection keywords, each", False),
)


@dataclass(frozen=True)
class Subject:
    """What is measured: the name it was given by, where its model is, and its config if it is a run."""

    name: str
    model: str
    config: Mapping[str, Any] | None


def run(
    models: Positional[tuple[str, ...]],
    suite: tuple[str, ...] = ("heldout",),
    samples: int = 1,
    temperature: DisallowNone[float | None] = None,
    top_p: float = 1.0,
    max_new_tokens: DisallowNone[int | None] = None,
    limit: DisallowNone[int | None] = None,
    template: DisallowNone[str | None] = None,
    extractor: DisallowNone[str | None] = None,
    seed: int = 0,
    k: DisallowNone[str | None] = None,
    behaviours: DisallowNone[Literal["rule", "endpoint"] | None] = None,
    judge_url: DisallowNone[str | None] = None,
    judge_model: DisallowNone[str | None] = None,
    judge_key_variable: DisallowNone[str | None] = None,
    output: DisallowNone[Path | None] = None,
    json: Annotated[bool, FlagCreatePairsOff] = False,
    device: str = "auto",
    dtype: str = "auto",
    batch: int = 256,
    loose_numbers: Annotated[bool, FlagCreatePairsOff] = False,
) -> int:
    """Accuracy, pass@k with intervals, lengths and behaviours of runs or models on suites of problems.

    A run is asked with the prompt, stop words, extractor and longest response of its training, and so is every model
    named beside it; the options below replace them. Several models or suites are shown side by side.

    Args:
        models: run directories, or model names: a folder, smollm2-135m, tiny-base, a hub id.
        suite: heldout (the held-out problems of the run), gsm8k, math500, minerva, olympiadbench, aime24, amc23,
            arithmetic:LEVEL, countdown, word-sums:SPLIT, reasoning-gym:NAME, a .jsonl or .parquet file, a hub id.
        samples: responses to each problem; with 1 the model answers greedily.
        temperature: of sampling; by default 0 for one sample and 1 for several.
        top_p: nucleus size.
        max_new_tokens: longest response.
        limit: at most this many problems, chosen by a hash, so always the same.
        template: prompt: simple, complex, plain-qa, r1-tags, chat, or a text with {question}.
        extractor: how the final answer is found: lenient, boxed, first-number, last-number.
        seed: of the sampling.
        k: for pass@k, such as 1,2,4; by default all powers of two up to the samples.
        behaviours: look for backtracking, verification, subgoals and enumeration: rule (phrases, a weak proxy) or
            endpoint (a judge model).
        judge_url: address of an OpenAI-compatible judge, such as http://localhost:8000/v1.
        judge_model: name of the judge model there.
        judge_key_variable: environment variable that holds its API key.
        output: JSON file for the results with every response.
        json: print the results as JSON in place of tables.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: of the weights: auto, float32, bfloat16, float16.
        batch: responses written side by side; more need more memory.
        loose_numbers: also accept numbers within 0.01 % and percentages off by a factor of 100, as the grader that the
            paper used does; makes false positives, for comparisons only.
    """
    from zerozoo.language.measure import Settings

    if not models:
        raise UserError("Name at least one run directory or model to evaluate.")
    if output is not None and (output.is_dir() or output.suffix != ".json"):
        raise UserError(f"--output must be a file whose name ends in .json, not {str(output)!r}.")
    settings = Settings(
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        limit=limit,
        template=template,
        extractor=extractor,
        seed=seed,
        ks=parse_ks(k),
        rows=batch,
        loose_numbers=loose_numbers,
    )
    check_settings(settings)
    judge = make_judge(behaviours, judge_url, judge_model, judge_key_variable)
    results = evaluate_all(list_subjects(models), suite, settings, judge, device, dtype)
    if output is not None:
        write_results(output, results)
    if json:
        print_json([result.to_json(rows=False) for result in results])
        return 0
    out = console()
    print_results(out, results)
    if output is not None:
        out.print(f"\nEvery response is in {output}.", soft_wrap=True)
    return 0


def parse_ks(text: str | None) -> tuple[int, ...] | None:
    """ "1,2,4" -> (1, 2, 4)."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"--k must be whole numbers with commas between them, such as 1,2,4, not {text!r}.")
    return tuple(sorted({int(part) for part in parts}))


def check_settings(settings: Settings) -> None:
    """UserError for values that cannot be, in the words of the command line."""
    from zerozoo.rewards.extract import get_extractor
    from zerozoo.tasks.prompts import get_template

    counts = {"samples": settings.samples, "limit": settings.limit, "batch": settings.rows}
    for name, value in {**counts, "max-new-tokens": settings.max_new_tokens}.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}.")
    if settings.temperature is not None and settings.temperature < 0:
        raise UserError(f"--temperature must not be negative, not {settings.temperature}.")
    if settings.samples > 1 and settings.temperature == 0:
        raise UserError(f"At temperature 0 all {settings.samples} samples are the same; give a temperature above 0.")
    if not 0 < settings.top_p <= 1:
        raise UserError(f"--top-p must lie above 0 and be at most 1, not {settings.top_p}.")
    for k in settings.ks or ():
        if not 1 <= k <= settings.samples:
            raise UserError(
                f"pass@{k} needs at least {max(k, 1)} samples a problem; choose --samples and --k to match."
            )
    if settings.extractor is not None:
        get_extractor(settings.extractor)
    if settings.template is not None:
        get_template(settings.template)


def make_judge(kind: str | None, url: str | None, model: str | None, key_variable: str | None) -> Judge | None:
    """The judge of behaviours that the options describe."""
    from zerozoo.language.behaviours import EndpointJudge, RuleJudge

    if kind == "endpoint":
        if not url or not model:
            raise UserError("--behaviours endpoint needs --judge-url and --judge-model.")
        return EndpointJudge(url, model, api_key_variable=key_variable)
    if url or model or key_variable:
        raise UserError("The --judge options belong to --behaviours endpoint.")
    return RuleJudge() if kind == "rule" else None


def list_subjects(names: Sequence[str]) -> list[Subject]:
    """Runs and models by name. A model beside a run is asked as the first run is. UserError for a run without model."""
    runs = {name: _open_run(Path(name)) for name in names}
    shared = next((run.config for run in runs.values() if run is not None), None)
    return [_subject(name, run, shared) for name, run in runs.items()]


def _subject(name: str, run: Run | None, shared: Mapping[str, Any] | None) -> Subject:
    if run is None:
        return Subject(name, name, shared)
    model = run.path("model")
    if not (model / CONFIG).is_file():
        raise UserError(
            f"The run {name} has no saved model yet, which training writes at its very end; go on with:"
            f" zerozoo train {run.recipe} --resume {shlex.quote(name)}"
        )
    return Subject(name, str(model), run.config)


def _open_run(directory: Path) -> Run | None:
    """The run in a directory; None for anything else, such as a model, which has a config.json of its own."""
    try:
        stored = json_text.loads((directory / CONFIG).read_bytes())
    except (OSError, ValueError):
        return None
    is_run = isinstance(stored, dict) and {"recipe", "seed", "config"} <= stored.keys()
    return Run.open(directory) if is_run else None


def evaluate_all(
    subjects: Sequence[Subject],
    names: Sequence[str],
    settings: Settings,
    judge: Judge | None,
    device: str,
    dtype: str,
) -> list[SuiteResult]:
    """Every suite with every model; each model is loaded once, and the suites before the first model."""
    from zerozoo.language.device import choose_machine
    from zerozoo.language.measure import evaluate_suite
    from zerozoo.language.models import load_model
    from zerozoo.language.suites import open_suite

    place = choose_machine(device)
    if dtype == "auto":
        dtype = place.autocast or "float32"
    plan: list[tuple[Subject, list[Suite]]] = [
        (subject, [open_suite(name, subject.config) for name in names]) for subject in subjects
    ]
    results = []
    for subject, suites in plan:
        policy = load_model(subject.model, dtype=dtype, device=place.device)
        for suite in suites:
            with _progress(f"{subject.name}, {suite.name}") as progress:
                results.append(
                    evaluate_suite(policy, suite, settings, name=subject.name, judge=judge, progress=progress)
                )
    return results


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over the problems, on the error stream and only in a terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(sys.stderr), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def write_results(path: Path, results: Sequence[SuiteResult]) -> None:
    """All results with all responses as one JSON file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = strict([result.to_json() for result in results])
        path.write_text(json_text.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def print_results(out: Console, results: Sequence[SuiteResult]) -> None:
    """What was asked, the table of metrics, the tables by level and subject."""
    letters = [chr(ord("A") + index) for index in range(len(results))]
    for letter, result in zip(letters, results, strict=True):
        prefix = f"{letter}  " if len(results) > 1 else ""
        out.print(f"{prefix}{result.model} on {result.suite}", style="bold", soft_wrap=True)
        for line in (describe(result), *result.notes):
            print_paragraph(out, line, " " * len(prefix))
    out.print()
    heads = letters if len(results) > 1 else ["value"]
    out.print(make_table(["|", *heads], metric_rows(results)))
    for what in ("level", "subject"):
        rows = group_rows(results, what)
        if rows:
            out.print()
            out.print(make_table([f"{what}|", *heads], rows))
    out.print("\nIn [ ]: 95 % intervals over the problems.", style="dim")


def describe(result: SuiteResult) -> str:
    """One sentence about how the problems were asked."""
    chosen = result.settings
    temperature = chosen["temperature"]
    way = (
        "greedy"
        if temperature == 0
        else f"temperature {temperature:g}, top-p {chosen['top_p']:g}, seed {chosen['seed']}"
    )
    return (
        f"{result.problems} problems x {chosen['samples']}, {way}, at most {chosen['max_new_tokens']} tokens,"
        f" prompt {chosen['template']!r}, extractor {chosen['extractor']}"
    )


def metric_rows(results: Sequence[SuiteResult]) -> list[list[str]]:
    """Label and one cell for each result; rows that no result has are left out."""
    several = any(result.settings["samples"] > 1 for result in results)
    rows = [
        ["accuracy, %" + (" (first sample)" if several else ""), *(percent_interval(one.accuracy) for one in results)]
    ]
    if several:
        counts = {result.settings["samples"] for result in results}
        name = f"avg@{counts.pop()}, %"
        rows.append([name, *(percent_interval(one.average) for one in results)])
        for k in sorted({k for result in results for k in result.pass_at_k}):
            rows.append([f"pass@{k}, %", *(percent_interval(one.pass_at_k[k]) for one in results)])
    rows.append(["right / wrong", *(f"{one.verdicts['right']} / {one.verdicts['wrong']}" for one in results)])
    rows.append(["checks that timed out", *(str(one.verdicts["timeout"]) for one in results)])
    rows.append(["problems without usable gold", *(str(one.problems - one.judged) for one in results)])
    for key, label, share in RESPONSES:
        if any(key in result.metrics for result in results):
            show = percent if share else number
            rows.append([label, *(show(one.metrics.get(key)) for one in results)])
    rows += _behaviour_rows(results)
    rows.append(["time", *(duration(one.seconds) for one in results)])
    rows.append(["tokens / s", *(number(round(one.tokens_per_second)) for one in results)])
    return rows


def _behaviour_rows(results: Sequence[SuiteResult]) -> list[list[str]]:
    found = [result.behaviours or {} for result in results]
    names = dict.fromkeys(name for one in found for name in one)
    rows = [
        [f"{name.replace('_', ' ')}, %", *(percent_interval(one[name]) if name in one else "-" for one in found)]
        for name in names
    ]
    if any(result.unread for result in results):
        rows.append(["unread by the judge", *(str(result.unread) for result in results)])
    return rows


def group_rows(results: Sequence[SuiteResult], what: str) -> list[list[str]]:
    """Accuracy by level or subject, with the number of problems."""
    groups = [result.groups.get(what, {}) for result in results]
    rows = []
    for value in dict.fromkeys(value for one in groups for value in one):
        cells = [
            f"{percent_interval(one[value].accuracy)} of {one[value].problems}" if value in one else "-"
            for one in groups
        ]
        rows.append([value, *cells])
    return rows

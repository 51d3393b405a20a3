"""Measuring a model on a suite of problems: everything the paper monitors (card M7), with intervals."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import compress
from typing import Any

import torch

from zerozoo.language.behaviours import Judge, behaviour_ratios
from zerozoo.language.build import drop_long_prompts
from zerozoo.language.dynamics import mean_at_k, pass_at_k_table
from zerozoo.language.evaluation import sampling_metrics
from zerozoo.language.models import LanguageModel
from zerozoo.language.rollouts import Rollouts, join_rollouts, verify_samples
from zerozoo.language.samplers.interface import Decoding, Sampler
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.suites import Suite
from zerozoo.rewards.verifier import MathVerifier, Verdict, Verifier
from zerozoo.runs.errors import UserError
from zerozoo.runs.statistics import Interval, proportion_interval
from zerozoo.runs.streams import Streams
from zerozoo.tasks.prompts import PLACE, get_template, render
from zerozoo.tasks.splits import DIFFICULTY, hash_order
from zerozoo.tasks.task import Task, make_verifier


@dataclass(frozen=True)
class Settings:
    """How a suite is answered. None takes what the suite recommends.

    Attributes:
        samples: responses to each problem.
        temperature: None: 0 (greedy) for one sample, 1 for several.
        max_new_tokens: longest response. A recommended one that the model has no room for becomes half its context.
        limit: at most this many problems, the first by the hash of their question.
        ks: the k of pass@k; None: 1, 2, 4, ... up to `samples`.
        rows: responses written side by side; it changes no result beyond rounding.
        loose_numbers: the leniency of the paper's grader, see `MathVerifier`.
    """

    samples: int = 1
    temperature: float | None = None
    top_p: float = 1.0
    max_new_tokens: int | None = None
    limit: int | None = None
    template: str | None = None
    extractor: str | None = None
    seed: int = 0
    ks: tuple[int, ...] | None = None
    rows: int = 256
    loose_numbers: bool = False

    @property
    def decided_temperature(self) -> float:
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.samples == 1 else 1.0


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy on the problems of one level or subject."""

    problems: int
    accuracy: Interval


@dataclass(frozen=True)
class SuiteResult:
    """What was measured.

    Attributes:
        settings: everything that decided the numbers.
        problems: how many were answered; `judged` of them have a gold answer that the verifier can use, and only these
            enter accuracy, avg@n, pass@k and groups.
        verdicts: responses by verdict: right, wrong, timeout (not right, either), and unscorable: those to the problems
            that were not judged.
        accuracy: of the first sample of each problem, with Wilson's interval.
        average: avg@n over all samples, interval by bootstrap over problems.
        pass_at_k: unbiased, by k, interval by bootstrap over problems.
        metrics: `dynamics.response_metrics` of all responses.
        groups: {"level" or "subject": {value: GroupAccuracy}}, over all samples; only where there is more than one.
        behaviours: share of first responses that show each; None without a judge. `unread` of them it gave no answer.
        tokens: response tokens written in `sampling_seconds`; `seconds` is the whole evaluation without loading.
        rows: one mapping per response.
    """

    model: str
    suite: str
    settings: dict[str, Any]
    problems: int
    judged: int
    verdicts: dict[str, int]
    accuracy: Interval
    average: Interval
    pass_at_k: dict[int, Interval]
    metrics: dict[str, float]
    groups: dict[str, dict[str, GroupAccuracy]]
    behaviours: dict[str, Interval] | None
    unread: int
    tokens: int
    sampling_seconds: float
    seconds: float
    notes: tuple[str, ...] = ()
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.sampling_seconds if self.sampling_seconds > 0 else 0.0

    def to_json(self, rows: bool = True) -> dict[str, Any]:
        """Plain dicts; `rows` says whether every response is in it."""
        content = asdict(self) | {"tokens_per_second": self.tokens_per_second}
        if not rows:
            del content["rows"]
        return content


Progress = Callable[[int, int], None]


def evaluate_suite(
    policy: LanguageModel,
    suite: Suite,
    settings: Settings,
    name: str | None = None,
    judge: Judge | None = None,
    sampler: Sampler | None = None,
    verifier: Verifier | None = None,
    progress: Progress = lambda done, total: None,
) -> SuiteResult:
    """Answer every problem of a suite and measure the responses.

    Args:
        name: what the model is called in the result; by default its own name.
        judge: finds behaviours in the first response to each problem.
        sampler: by default the native one.
        verifier: by default the suite's own.
        progress: told (problems done, all problems) after every batch.

    Raises UserError when no prompt leaves room for a response or no gold answer can be judged.
    """
    began = time.perf_counter()
    suite, tasks, notes = _prepare(policy, suite, settings)
    sampler = sampler or NativeSampler(policy, settings.rows)
    own = closing(_make_verifier(suite, settings)) if verifier is None else nullcontext(verifier)
    with own as judging:
        rollouts, sampling_seconds = _answer(policy, suite, tasks, settings, sampler, judging, progress)
        usable = _usable_golds(tasks, judging)
    judgements = judge.judge(rollouts.samples.texts[:: settings.samples]) if judge else []
    return SuiteResult(
        model=name or policy.name,
        suite=suite.name,
        settings=_decided(suite, settings),
        problems=len(tasks),
        **_scores(rollouts, usable, settings),
        metrics={key: value for key, value in sampling_metrics(rollouts).items() if key.startswith("response/")},
        behaviours=behaviour_ratios(judgements) if judge else None,
        unread=sum(judgement is None for judgement in judgements),
        tokens=int(rollouts.samples.lengths.sum()),
        sampling_seconds=sampling_seconds,
        seconds=time.perf_counter() - began,
        notes=notes,
        rows=_rows(rollouts, settings.samples),
    )


def _make_verifier(suite: Suite, settings: Settings) -> Verifier:
    if not settings.loose_numbers:
        return make_verifier(suite.verifier, suite.extractor)
    return MathVerifier(extractor=suite.extractor, loose_numbers=True)


def _decided(suite: Suite, settings: Settings) -> dict[str, Any]:
    """Everything that decided the numbers; `rows` did not."""
    from_suite = {
        name: getattr(suite, name) for name in ("verifier", "extractor", "template", "stop", "max_new_tokens")
    }
    own = {name: getattr(settings, name) for name in ("samples", "top_p", "limit", "seed", "loose_numbers")}
    return {**own, "temperature": settings.decided_temperature, **from_suite}


def _prepare(policy: LanguageModel, suite: Suite, settings: Settings) -> tuple[Suite, list[Task], tuple[str, ...]]:
    """The suite with the settings' own choices, the problems that are answered, and what was left out."""
    notes = list(suite.notes)
    if settings.template is not None:
        suite = replace(suite, template=settings.template, stop=get_template(settings.template).stop)
    if settings.extractor is not None:
        if suite.verifier == "countdown":
            raise UserError("Countdown reads the whole response; leave out the extractor.")
        suite = replace(suite, extractor=settings.extractor)
    if settings.loose_numbers and suite.verifier != "math":
        raise UserError(f"Loose numbers belong to mathematics; {suite.name} has a verifier of its own.")
    longest = settings.max_new_tokens or suite.max_new_tokens
    if longest >= policy.max_context:
        if settings.max_new_tokens is not None:
            raise UserError(
                f"max_new_tokens is {longest}, but {policy.name} has room for {policy.max_context} tokens,"
                " prompt included."
            )
        longest = policy.max_context // 2
        notes.append(
            f"Responses have at most {longest} tokens: {policy.name} has room for {policy.max_context} in all."
        )
    suite = replace(suite, max_new_tokens=longest)
    tasks: Sequence[Task] = suite.tasks
    if settings.limit is not None and settings.limit < len(tasks):
        notes.append(f"The first {settings.limit} of {len(tasks)} problems, by the hash of their question.")
        tasks = hash_order(tasks, 0)[: settings.limit]
    kept, dropped = drop_long_prompts(tasks, lambda task: _prompt(policy, suite, task), policy.max_context - longest)
    if not kept:
        raise UserError(f"Every prompt is too long for {policy.name} with {longest} new tokens; lower max_new_tokens.")
    if dropped:
        what = "1 problem was" if dropped == 1 else f"{dropped} problems were"
        notes.append(f"{what} left out: prompt and response have no room in {policy.max_context} tokens.")
    return suite, list(kept), tuple(notes)


def _prompt(policy: LanguageModel, suite: Suite, task: Task) -> list[int]:
    """Token ids of a prompt; a question that came wrapped in a foreign template is not wrapped a second time."""
    template = PLACE if task.metadata.get("template") == PLACE else suite.template
    return policy.encode(render(template, task.question, policy.tokenizer))


def _answer(
    policy: LanguageModel,
    suite: Suite,
    tasks: list[Task],
    settings: Settings,
    sampler: Sampler,
    verifier: Verifier,
    progress: Progress,
) -> tuple[Rollouts, float]:
    """Responses with their verdicts, and the seconds it took to write them."""
    decoding = Decoding(suite.max_new_tokens, settings.decided_temperature, settings.top_p, stop_strings=suite.stop)
    generator = Streams(settings.seed).torch("evaluation")
    at_once = max(1, settings.rows // settings.samples)
    parts, seconds = [], 0.0
    for start in range(0, len(tasks), at_once):
        chunk = tasks[start : start + at_once]
        prompts = [_prompt(policy, suite, task) for task in chunk]
        began = time.perf_counter()
        drawn = sampler.sample(prompts, settings.samples, decoding, generator)
        seconds += time.perf_counter() - began
        verifications = verify_samples(chunk, drawn, verifier)
        rewards = torch.tensor([float(one.verdict is Verdict.RIGHT) for one in verifications])
        parts.append(Rollouts(chunk, prompts, drawn, verifications, rewards))
        progress(start + len(chunk), len(tasks))
    return join_rollouts(parts, policy.pad_id), seconds


def _usable_golds(tasks: Sequence[Task], verifier: Verifier) -> list[bool]:
    """Which problems have a gold answer that can be judged, found with an empty response to each.

    Not from the model's own responses: one that repeats an unusable gold letter by letter is right, so every model
    would be measured on other problems.
    """
    return [one.verdict is not Verdict.UNSCORABLE for one in verifier.verify(tasks, [""] * len(tasks))]


def _scores(rollouts: Rollouts, usable: list[bool], settings: Settings) -> dict[str, Any]:
    """Everything about being right. A problem whose gold answer cannot be judged is left out, never called wrong."""
    if not any(usable):
        example = rollouts.tasks[0].answer[:60]
        raise UserError(f"None of the {len(usable)} gold answers can be judged, for example {example!r}.")
    verdicts = [one.verdict for one in rollouts.verifications]
    every = [verdicts[row : row + settings.samples] for row in range(0, len(verdicts), settings.samples)]
    problems, tasks = list(compress(every, usable)), list(compress(rollouts.tasks, usable))
    correct = [[verdict is Verdict.RIGHT for verdict in row] for row in problems]
    counts = Counter(verdict.value for row in problems for verdict in row)
    counts[Verdict.UNSCORABLE.value] += settings.samples * usable.count(False)
    return {
        "judged": len(problems),
        "verdicts": {verdict.value: counts[verdict.value] for verdict in Verdict},
        "accuracy": proportion_interval(sum(row[0] for row in correct), len(correct)),
        "average": _honest(mean_at_k(correct), len(correct)),
        "pass_at_k": {k: _honest(one, len(correct)) for k, one in pass_at_k_table(correct, settings.ks).items()},
        "groups": {
            what: accuracies
            for what, values in (
                ("level", [task.level for task in tasks]),
                ("subject", [str(task.metadata.get("subject") or "") for task in tasks]),
            )
            if len(accuracies := _by_group(values, correct)) > 1
        },
    }


def _honest(interval: Interval, problems: int) -> Interval:
    """Wilson's interval where the bootstrap gives none: every problem is at 0, or every problem at 1."""
    certain = interval.low == interval.high and interval.value in (0.0, 1.0)
    return proportion_interval(int(interval.value) * problems, problems) if certain else interval


def _by_group(values: Sequence[str], correct: Sequence[list[bool]]) -> dict[str, GroupAccuracy]:
    """Accuracy by value, easy to hard, then in alphabetical order; problems without a value are in none."""
    order = list(DIFFICULTY)
    groups = {}
    for value in sorted({*values} - {""}, key=lambda value: (order.index(value) if value in order else 9, value)):
        rows = [row for row, own in zip(correct, values, strict=True) if own == value]
        if len(rows[0]) == 1:
            interval = proportion_interval(sum(row[0] for row in rows), len(rows))
        else:
            interval = _honest(mean_at_k(rows), len(rows))
        groups[value] = GroupAccuracy(len(rows), interval)
    return groups


def _rows(rollouts: Rollouts, samples: int) -> list[dict[str, Any]]:
    """What was asked, what came and how it was judged, one mapping per response."""
    rows = []
    for index, row in enumerate(rollouts.rows_for_log(0)):
        kept = {key: value for key, value in row.items() if key not in ("step", "group", "reward", "advantage")}
        rows.append({"sample": index % samples, "level": rollouts.tasks[index // samples].level, **kept})
    return rows

"""Monte-Carlo values of the steps of a solution: how often does a policy get from here to the right answer?

    Q(x, y_1:i) = P[ a completion of the prefix y_1:i by the policy is right ]

The labels of process reward models, the first pit of a wrong trace and the children of a search tree all rest on it. A
prefix is a list of token ids as they were drawn, cut where a step ends; equal prefixes are completed once, because the
traces of one problem share their beginnings.

Sources: Math-Shepherd, arXiv 2312.08935 (labels by completion); arXiv 2406.14532, section 6 (best of K as the policy
that completes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from zerozoo.language.models import LanguageModel
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import Decoding, Sampler, cut_at_stop
from zerozoo.rewards.steps import last_tokens, split_steps
from zerozoo.rewards.verifier import Verdict, Verifier
from zerozoo.runs.errors import UserError
from zerozoo.tasks.task import Task


@dataclass(frozen=True)
class Span:
    """A step of a response: its text, and the number of response tokens until it ends, its own included."""

    text: str
    end: int


@dataclass(frozen=True)
class Prefix:
    """The first steps of a response to a task; none of them: the prompt alone.

    Attributes:
        ended: nothing can follow, because the response has ended by itself or at the length limit.
    """

    task: Task
    prompt: tuple[int, ...]
    ids: tuple[int, ...] = ()
    ended: bool = False


@dataclass(frozen=True)
class Completion:
    """What the policy wrote behind a prefix, and whether prefix and completion together are a right response."""

    ids: tuple[int, ...]
    right: bool


@dataclass(frozen=True)
class Trace:
    """A whole response with its steps; the last one ends with the last token, an end token included."""

    task: Task
    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    right: bool

    def prefix(self, steps: int) -> Prefix:
        """The first `steps` steps."""
        end = self.spans[steps - 1].end if steps else 0
        return Prefix(self.task, self.prompt, self.ids[:end], steps == len(self.spans))


class StepSplitter:
    """Cuts responses into steps at token boundaries; a token across a boundary belongs to the step before.

    Args:
        policy: whose tokens they are.
        stop: texts that end a response; what stands behind one is no step.
        rule: one of `rewards.steps.SPLITTERS`.
    """

    def __init__(self, policy: LanguageModel, stop: Sequence[str] = (), rule: str = "lines") -> None:
        self.policy, self.stop, self.rule = policy, tuple(stop), rule
        self._pieces: dict[int, str] = {}

    def text(self, ids: Sequence[int]) -> str:
        """The text of a response, cut before a stop string."""
        return cut_at_stop(self.policy.decode(ids), self.stop)

    def spans(self, ids: Sequence[int]) -> tuple[Span, ...]:
        """The steps of a response, at least one; empty steps at the end belong to the last one."""
        whole = self.policy.decode(ids)
        steps = split_steps(cut_at_stop(whole, self.stop), self.rule)
        if not steps:
            return (Span("", len(ids)),)
        ends = [place + 1 for place in last_tokens(steps, self._ends(ids, whole))]
        ends[-1] = len(ids)
        # Two steps may end in one token; then they are one step.
        spans: list[Span] = []
        for step, end in zip(steps, ends, strict=True):
            if spans and spans[-1].end == end:
                spans[-1] = Span(spans[-1].text + step.text, end)
            else:
                spans.append(Span(step.text, end))
        return tuple(spans)

    def trace(self, rollouts: Rollouts, row: int) -> Trace:
        """A row of rollouts."""
        group = int(rollouts.groups[row])
        ids = tuple(rollouts.samples.tokens[row, : int(rollouts.samples.lengths[row])].tolist())
        right = rollouts.verifications[row].verdict is Verdict.RIGHT
        return Trace(rollouts.tasks[group], tuple(rollouts.prompts[group]), ids, self.spans(ids), right)

    def _ends(self, ids: Sequence[int], whole: str) -> list[int]:
        """Number of characters until the end of each token."""
        for token in ids:
            if token not in self._pieces:
                self._pieces[token] = self.policy.decode([token])
        ends, length = [], 0
        for token in ids:
            length += len(self._pieces[token])
            ends.append(length)
        if "".join(self._pieces[token] for token in ids) == whole:
            return ends
        # Tokens that are parts of a character, or lose their blank when they stand alone.
        return [len(self.policy.decode(ids[: place + 1])) for place in range(len(ids))]


@dataclass
class StepValues:
    """Estimates Q by sampling completions; keeps them, so that a prefix is completed once.

    Attributes:
        policy, sampler, verifier, splitter: complete and judge; texts are judged without their prompt, as always.
        decoding: of a whole response from the prompt on: a completion gets what its prefix leaves of `max_new_tokens`.
        trials: success or failure is tried so often for each prefix.
        best_of: completions of one trial, which succeeds when any of them is right (K of the policy that completes).
        generator: the random numbers; what is drawn depends on the order of the calls.
        tokens: drawn so far.
        drawn: completions drawn so far.
    """

    policy: LanguageModel
    sampler: Sampler
    verifier: Verifier
    splitter: StepSplitter
    decoding: Decoding
    trials: int
    generator: torch.Generator
    best_of: int = 1
    tokens: int = 0
    drawn: int = 0
    known: dict[tuple[str, tuple[int, ...]], list[Completion]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("trials", "best_of"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, but must be at least 1.")

    def learn_of(self, rollouts: Rollouts) -> None:
        """Responses drawn from the same policy are completions of the empty prefix, which cost nothing more."""
        sequences = rollouts.sequences(range(len(rollouts)))
        for row, group in enumerate(rollouts.groups.tolist()):
            right = rollouts.verifications[row].verdict is Verdict.RIGHT
            known = self.known.setdefault((rollouts.tasks[group].id, ()), [])
            known.append(Completion(tuple(sequences.responses[row]), right))

    def values(self, prefixes: Sequence[Prefix]) -> list[float]:
        """Q of each prefix: 1 or 0 for a response that has ended, by its verdict."""
        self._complete(prefixes)
        return [success_rate([one.right for one in self.completions(prefix)], self.best_of) for prefix in prefixes]

    def completions(self, prefix: Prefix) -> list[Completion]:
        """Those of a prefix whose value has been asked for."""
        return self.known[prefix.task.id, prefix.ids]

    def _complete(self, prefixes: Sequence[Prefix]) -> None:
        """Draw what is missing, all prefixes together."""
        new = {
            (one.task.id, one.ids): one
            for one in prefixes
            if len(self.known.get((one.task.id, one.ids), ())) < (1 if one.ended else self.best_of)
        }
        ended = [one for one in new.values() if one.ended]
        self._judge(ended, [()] * len(ended))
        opened = [one for one in new.values() if not one.ended]
        if not opened:
            return
        starts = [[*one.prompt, *one.ids] for one in opened]
        room = [self.decoding.max_new_tokens - len(one.ids) for one in opened]
        self._check_room(max(map(len, starts)) + max(room))
        decoding = replace(self.decoding, max_new_tokens=max(room))
        samples = self.sampler.sample(starts, self.trials * self.best_of, decoding, self.generator)
        self.tokens += samples.drawn
        self.drawn += len(samples.lengths)
        owners = samples.groups.tolist()
        lengths = [min(length, room[owner]) for length, owner in zip(samples.lengths.tolist(), owners, strict=True)]
        rows = [tuple(row[:length]) for row, length in zip(samples.tokens.tolist(), lengths, strict=True)]
        self._judge([opened[owner] for owner in owners], rows)

    def _judge(self, prefixes: Sequence[Prefix], completions: Sequence[tuple[int, ...]]) -> None:
        texts = [self.splitter.text([*one.ids, *more]) for one, more in zip(prefixes, completions, strict=True)]
        verdicts = self.verifier.verify([one.task for one in prefixes], texts) if texts else []
        for one, more, judged in zip(prefixes, completions, verdicts, strict=True):
            known = self.known.setdefault((one.task.id, one.ids), [])
            known.append(Completion(more, judged.verdict is Verdict.RIGHT))

    def _check_room(self, longest: int) -> None:
        if longest > self.policy.max_context:
            raise UserError(
                f"A prompt, the first steps and what may follow them take up to {longest} tokens, but the model has"
                f" room for {self.policy.max_context}: lower max_new_tokens."
            )


def success_rate(right: Sequence[bool], best_of: int = 1) -> float:
    """Share of trials with a success: trial j is the completions j K .. j K + K - 1, and any right one of them counts.

    Completions that make no whole trial are left out, unless there is none: then all are one trial.
    """
    trials = max(len(right) // best_of, 1)
    return sum(any(right[trial * best_of : (trial + 1) * best_of]) for trial in range(trials)) / trials


def advantages(values: Sequence[float], start: float) -> list[float]:
    """A_i = Q_i - Q_(i-1), with Q_0 = `start`, the value of the prompt: what each step has changed.

    Source: arXiv 2406.14532, section 6: the value of a state is the Q of the step that led to it.
    """
    return [after - before for before, after in zip([start, *values][:-1], values, strict=True)]


def first_pits(traces: Sequence[Trace], values: StepValues) -> list[tuple[int, list[float]]]:
    """The first step with the lowest Q of each wrong trace, counted from 0, and the Q of the steps until there.

    The last step of a wrong trace has Q = 0 by its verdict, so the first step with Q = 0 is the first with the lowest,
    and nothing behind it has to be estimated. Step by step, all traces together.

    Raises ValueError for a right trace.
    """
    if any(trace.right for trace in traces):
        raise ValueError("a right trace has no pit")
    found: list[list[float]] = [[] for _ in traces]
    open_traces = list(range(len(traces)))
    while open_traces:
        prefixes = [traces[place].prefix(len(found[place]) + 1) for place in open_traces]
        for place, value in zip(open_traces, values.values(prefixes), strict=True):
            found[place].append(value)
        open_traces = [place for place in open_traces if found[place][-1] > 0]
    return [(len(one) - 1, one) for one in found]

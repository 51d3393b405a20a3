"""Pairs of single steps: behind the same first steps a good continuation and the step at which a wrong trace got lost.

Both steps continue one prefix, which belongs to the prompt of the pair, so that only the tokens of the two steps are in
the loss: the form that the theory of arXiv 2406.14532 (section 6) covers. Other descriptions of the method prefer a
whole right solution to the prefix with the pit; that form is not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zerozoo.language.example_files import Row
from zerozoo.language.step_audit import is_chain, step_labels
from zerozoo.language.step_values import Prefix, StepSplitter, StepValues, Trace, advantages, first_pits
from zerozoo.rewards.steps import first_wrong


@dataclass(frozen=True)
class StepPairs:
    """Rows for `preference_data.read_pairs`, and what was seen on the way."""

    rows: list[Row]
    metrics: dict[str, float]


def per_step_pairs(wrong: Sequence[Trace], values: StepValues, most: int = 0) -> StepPairs:
    """One pair of each wrong trace, where a right completion of the prefix before the pit begins with another step.

    The chosen step is the one whose completions were right most often. Traces of a problem that go wrong with the same
    step behind the same prefix give one pair.

    Args:
        wrong: traces that were judged wrong.
        values: must know completions of the prompts (`StepValues.learn_of`).
        most: pairs kept of each problem; 0: all.
    """
    pits = first_pits(wrong, values)
    rows: list[Row] = []
    seen: set[tuple[str, tuple[int, ...], tuple[int, ...]]] = set()
    kept: dict[str, int] = {}
    falls = []
    for trace, (pit, found) in zip(wrong, pits, strict=True):
        before = trace.prefix(pit)
        start = values.values([trace.prefix(0)])[0]
        falls.append(advantages(found, start)[-1])
        rejected = trace.ids[len(before.ids) : trace.spans[pit].end]
        chosen = best_step(before, values, rejected)
        key = (trace.task.id, before.ids, rejected)
        if chosen is None or key in seen or (most and kept.get(trace.task.id, 0) >= most):
            continue
        seen.add(key)
        kept[trace.task.id] = kept.get(trace.task.id, 0) + 1
        rows.append(
            {
                "task": trace.task.id,
                "prompt": [*before.prompt, *before.ids],
                "chosen": list(chosen),
                "rejected": list(rejected),
                "chosen_text": values.splitter.text(chosen),
                "rejected_text": trace.spans[pit].text,
                "pit": pit,
            }
        )
    metrics = {
        "pits/advantage": sum(falls) / max(len(falls), 1),
        "pits/pairs": float(len(rows)),
        "pits/wrong_traces": float(len(wrong)),
        **pit_metrics(wrong, [pit for pit, _ in pits]),
    }
    return StepPairs(rows, metrics)


def best_step(before: Prefix, values: StepValues, rejected: Sequence[int]) -> tuple[int, ...] | None:
    """The first step of the completions of a prefix with the highest share of right ones, then the most; no lost one.

    None when no right completion begins with another step than `rejected`.
    """
    counts: dict[tuple[int, ...], list[int]] = {}
    for completion in values.completions(before):
        step = first_step(values.splitter, before, completion.ids)
        right, every = counts.setdefault(step, [0, 0])
        counts[step] = [right + completion.right, every + 1]
    counts.pop(tuple(rejected), None)
    candidates = [(right / every, right, step) for step, (right, every) in counts.items() if right]
    return max(candidates, key=lambda one: one[:2])[2] if candidates else None


def first_step(splitter: StepSplitter, before: Prefix, completion: Sequence[int]) -> tuple[int, ...]:
    """The tokens of a completion until its first step ends."""
    start = len(before.ids)
    spans = splitter.spans([*before.ids, *completion])
    end = next((span.end for span in spans if span.end > start), start + len(completion))
    return tuple(completion[: end - start])


def pit_metrics(traces: Sequence[Trace], pits: Sequence[int]) -> dict[str, float]:
    """How often the pit is the first wrong step, by the oracle; nothing where there is no oracle.

    A trace that is judged wrong without a wrong step (one that was cut off) does not count.
    """
    truths: list[tuple[int, int]] = []
    for trace, pit in zip(traces, pits, strict=True):
        if is_chain(trace.task):
            truth = first_wrong(step_labels(trace.task, [span.text for span in trace.spans]))
            if truth is not None:
                truths.append((pit, truth))
    if not truths:
        return {}
    return {
        "pits/found": sum(pit == truth for pit, truth in truths) / len(truths),
        "pits/early": sum(pit < truth for pit, truth in truths) / len(truths),
    }

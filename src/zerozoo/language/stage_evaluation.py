"""What a stage of a training has done to a model: accuracies on suites of problems before and after, and how far it has
moved; and that training problems stay clear of these suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from zerozoo.language.logprobs import Sequences
from zerozoo.language.measure import Settings, evaluate_suite
from zerozoo.language.models import LanguageModel
from zerozoo.language.samplers.interface import Decoding
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.scoring import Scorer
from zerozoo.language.suites import Suite, open_suite
from zerozoo.runs.run import Run
from zerozoo.runs.streams import Streams
from zerozoo.tasks.decontamination import decontaminate
from zerozoo.tasks.prompts import render
from zerozoo.tasks.splits import hash_order
from zerozoo.tasks.task import TaskSet

Groups = Mapping[str, Sequence[str]]  # names of suites by the name of their group


def clear_of_suites(tasks: TaskSet, groups: Groups, run: Run) -> TaskSet:
    """The task set without the training problems that overlap with a suite in 8-grams; see `tasks.decontamination`."""
    evaluation = {task.id: task for names in groups.values() for name in names for task in open_suite(name).tasks}
    if not evaluation:
        return tasks
    kept, report = decontaminate(tasks.train, list(evaluation.values()))
    run.say(f"Decontamination: {report}")
    return replace(tasks, train=kept)


def before_and_after(
    models: Mapping[str, LanguageModel], groups: Groups, settings: Settings, config: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Accuracies of two models on every suite, their mean over each group, and the drift from the first to the second.

    Args:
        models: the two by what they are called, "before" and "after" say.
        config: of a training, as whose problems those of the suites are asked; None: as they recommend.
    Returns:
        {"before/SUITE", "before/GROUP", "after/SUITE", "after/GROUP": accuracy, "after/kl": nats a response, on the
        problems of the first group that has any}
    """
    suites = {name: open_suite(name, config) for names in groups.values() for name in names}
    metrics: dict[str, float] = {}
    for called, model in models.items():
        for group, names in groups.items():
            found = {name: evaluate_suite(model, suites[name], settings).average.value for name in names}
            metrics |= {f"{called}/{name}": value for name, value in found.items()}
            if found:
                metrics[f"{called}/{group}"] = fmean(found.values())
    first, second = models
    measured = [suites[name] for name in next((names for names in groups.values() if names), ())]
    if measured:
        metrics[f"{second}/kl"] = fmean(_drift_on(models[second], models[first], suite, settings) for suite in measured)
    return metrics


def drift(
    policy: LanguageModel,
    reference: LanguageModel,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    generator: torch.Generator,
    rows_at_once: int = 256,
) -> float:
    """KL(policy || reference) of whole responses in nats, the mean of log pi(y) - log ref(y) over one y a prompt.

    It is an unbiased estimate and may come out below 0. The log-probs are those of temperature 1: draw with that.
    """
    samples = NativeSampler(policy, rows_at_once).sample(prompts, 1, decoding, generator)
    lengths = samples.lengths.tolist()
    responses = [row[:length] for row, length in zip(samples.tokens.tolist(), lengths, strict=True)]
    sequences = Sequences(prompts, responses)
    ours, theirs = (Scorer(model).all_responses(sequences) for model in (policy, reference))
    return float((ours - theirs).mean())


def _drift_on(policy: LanguageModel, reference: LanguageModel, suite: Suite, settings: Settings) -> float:
    tasks = hash_order(suite.tasks, 0)[: settings.limit]
    prompts = [policy.encode(render(suite.template, task.question, policy.tokenizer)) for task in tasks]
    decoding = Decoding(suite.max_new_tokens, stop_strings=suite.stop)
    return drift(policy, reference, prompts, decoding, Streams(settings.seed).torch("drift"), settings.rows)

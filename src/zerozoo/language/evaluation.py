"""Measuring a policy on tasks, with the verifier that trains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zerozoo.language.dynamics import response_metrics
from zerozoo.language.rollouts import Rollouts, verify_samples
from zerozoo.language.samplers.interface import Decoding, Sampler, Samples
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.rewards.verifier import Verdict, Verification, Verifier
from zerozoo.runs.statistics import mean_interval, proportion_interval
from zerozoo.runs.streams import Streams
from zerozoo.tasks.task import Task

# Unscorable and timed-out responses are neither right nor wrong.
_JUDGED = {Verdict.RIGHT: True, Verdict.WRONG: False}


@dataclass(frozen=True)
class Evaluation:
    """Responses to a set of tasks and what was measured on them.

    Attributes:
        rollouts: every response with its verdict; the reward is 1 for right answers, 0 for all others.
        metrics: names without prefix, such as "accuracy", "low", "high", "length".
        correct: (tasks, samples) bool.
    """

    rollouts: Rollouts
    metrics: dict[str, float]
    correct: Tensor


def evaluate_tasks(
    sampler: Sampler,
    tasks: Sequence[Task],
    prompts: Sequence[list[int]],
    verifier: Verifier,
    decoding: Decoding,
    generator: torch.Generator,
    samples: int = 1,
) -> Evaluation:
    """Answer every task `samples` times and judge the answers.

    The interval of the accuracy is Wilson's for one sample a task. With more samples the responses to one task are
    not independent, so it is the t interval of the mean over tasks.
    """
    return judge(tasks, prompts, sampler.sample(prompts, samples, decoding, generator), verifier)


def evaluate_modes(
    sampler: Sampler,
    tasks: Sequence[Task],
    prompts: Sequence[list[int]],
    verifier: Verifier,
    decoding: Decoding,
    seed: int,
    stream: str,
    sampled: bool,
) -> dict[str, Evaluation]:
    """Answer every task greedily and, if `sampled`, once as `decoding` says; by mode, "greedy" and "sampled".

    Each mode begins the stream of that name anew, so its random numbers do not depend on what is evaluated beside. Our
    own sampler reads the prompts once for both modes.
    """
    if sampled and isinstance(sampler, NativeSampler):
        both = sampler.sample_with_greedy(prompts, decoding, Streams(seed).torch(stream))
        return {
            mode: judge(tasks, prompts, drawn, verifier)
            for mode, drawn in zip(("greedy", "sampled"), both, strict=True)
        }
    decodings = {"greedy": replace(decoding, temperature=0.0)} | ({"sampled": decoding} if sampled else {})
    return {
        mode: evaluate_tasks(sampler, tasks, prompts, verifier, one, Streams(seed).torch(stream))
        for mode, one in decodings.items()
    }


def judge(tasks: Sequence[Task], prompts: Sequence[list[int]], drawn: Samples, verifier: Verifier) -> Evaluation:
    """What `evaluate_tasks` gives, of responses that are there already, as many to each task."""
    samples = len(drawn.texts) // len(tasks)
    verifications = verify_samples(tasks, drawn, verifier)
    rewards = torch.tensor([float(one.verdict is Verdict.RIGHT) for one in verifications])
    rollouts = Rollouts(list(tasks), list(prompts), drawn, verifications, rewards)
    correct = rewards.view(len(tasks), samples)
    if samples == 1:
        interval = proportion_interval(int(rewards.sum()), len(tasks))
    else:
        interval = mean_interval(correct.mean(1).numpy())
    metrics = {"accuracy": interval.value, "low": interval.low, "high": interval.high}
    metrics |= sampling_metrics(rollouts)
    return Evaluation(rollouts, metrics, correct.bool())


def sampling_metrics(rollouts: Rollouts) -> dict[str, float]:
    """The monitors of the paper (card M7) on a set of responses, and how the verifier fared."""
    verdicts = [one.verdict for one in rollouts.verifications]
    metrics = response_metrics(
        texts=rollouts.samples.texts,
        lengths=rollouts.samples.lengths.tolist(),
        finished=["stop" if stopped else "length" for stopped in rollouts.samples.stopped.tolist()],
        correct=[_JUDGED.get(verdict) for verdict in verdicts],
        boxed=[one.boxed for one in rollouts.verifications],
    )
    return metrics | verdict_shares(rollouts.verifications)


def verdict_shares(verifications: Sequence[Verification]) -> dict[str, float]:
    """Share of responses that could not be judged; they count as not right but are never called wrong (trap 30)."""
    total = len(verifications)
    return {
        f"verifier/{verdict.value}": sum(one.verdict is verdict for one in verifications) / total
        for verdict in (Verdict.UNSCORABLE, Verdict.TIMEOUT)
    }

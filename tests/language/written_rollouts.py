"""Rollouts written by hand, for tests of what is made of them."""

from __future__ import annotations

import torch

from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import Samples
from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.tasks.task import Task


def rollouts(*rows: tuple[int, str, Verdict, bool]) -> Rollouts:
    """Responses (problem, text, verdict, ended by itself)."""
    longest = max(len(text) for _, text, _, _ in rows)
    samples = Samples(
        tokens=torch.tensor([[*map(ord, text), *[0] * (longest - len(text))] for _, text, _, _ in rows]),
        lengths=torch.tensor([len(text) for _, text, _, _ in rows]),
        logprobs=torch.zeros((len(rows), longest)),
        stopped=torch.tensor([stopped for *_, stopped in rows]),
        groups=torch.tensor([group for group, *_ in rows]),
        texts=[text for _, text, _, _ in rows],
    )
    number = max(group for group, *_ in rows) + 1
    tasks = [Task(f"t{index}", f"q{index}", "0", "test") for index in range(number)]
    verdicts = [Verification(verdict, "", 0.0, False, 0.0) for _, _, verdict, _ in rows]
    return Rollouts(tasks, [[index + 1] for index in range(number)], samples, verdicts, torch.zeros(len(rows)))

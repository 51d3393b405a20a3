"""What a response leaves in samples.jsonl."""

from __future__ import annotations

import json

import torch

from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import Samples
from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.tasks.task import Task


def rollouts() -> Rollouts:
    """Two responses to one task; the second is padded after its only token."""
    samples = Samples(
        tokens=torch.tensor([[4, 5, 1], [5, 0, 0]]),
        lengths=torch.tensor([3, 1]),
        logprobs=torch.tensor([[-0.126, -2.0, -1e-4], [-0.5, 0.0, 0.0]]),
        stopped=torch.tensor([True, False]),
        groups=torch.tensor([0, 0]),
        texts=["<b>", "b>"],
    )
    verifications = [Verification(verdict, "", 0.0, False, 0.0) for verdict in (Verdict.RIGHT, Verdict.UNSCORABLE)]
    return Rollouts([Task("t", "q?", "a", "test")], [[7]], samples, verifications, torch.tensor([1.0, 0.0]))


def test_a_row_without_tokens():
    first, second = rollouts().rows_for_log(3)
    assert first == {
        "step": 3,
        "group": 0,
        "task": "t",
        "question": "q?",
        "gold": "a",
        "response": "<b>",
        "verdict": "right",
        "extracted": "",
        "boxed": False,
        "reward": 1.0,
        "advantage": 0.0,
        "length": 3,
        "finish": "stop",
    }
    assert (second["verdict"], second["finish"]) == ("unscorable", "length")
    assert len(rollouts().rows_for_log(3, most=1)) == 1


def test_tokens_and_their_logprobs_end_with_the_response():
    asked: list[int] = []

    def spell(token: int) -> str:
        asked.append(token)
        return {4: "<", 5: "b>", 1: "<eos>"}[token]

    first, second = rollouts().rows_for_log(3, spell=spell)
    assert (first["tokens"], first["logprobs"]) == (["<", "b>", "<eos>"], [-0.13, -2.0, 0.0])
    assert (second["tokens"], second["logprobs"]) == (["b>"], [-0.5])
    assert json.dumps(first["logprobs"]) == "[-0.13, -2.0, 0.0]"  # no -0.0
    assert asked == [4, 5, 1]  # each token once
    plain = rollouts().rows_for_log(3)[0]
    assert {name: value for name, value in first.items() if name not in ("tokens", "logprobs")} == plain

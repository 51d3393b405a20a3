"""Weights that travel: only what has changed, bit for bit, and a probe that finds what went wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from zerozoo.distributed.weights import (
    Blueprint,
    Publisher,
    Update,
    check_probe,
    fingerprints,
    load_bytes,
    make_probe,
    probe_logprobs,
    to_bytes,
)
from zerozoo.language.families import tiny_model
from zerozoo.language.models import LanguageModel
from zerozoo.runs.errors import UserError


@pytest.fixture
def policy() -> LanguageModel:
    return tiny_model("llama", vocabulary="0123 ", hidden=16, heads=2, kv_heads=1)


class Store:
    """The object store: what was put is copied, as it would be."""

    def __init__(self) -> None:
        self.objects: list[Any] = []

    def put(self, content: Any) -> int:
        self.objects.append(copy.deepcopy(content))
        return len(self.objects) - 1


def test_every_weight_that_an_optimiser_moves_has_another_fingerprint(policy: LanguageModel) -> None:
    # The fused optimiser does not count in torch's counter of changes, so that would not do.
    for fused in (True, False):
        before = fingerprints(policy.model)
        optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-6, fused=fused)
        for parameter in policy.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        after = fingerprints(policy.model)
        assert before.keys() == after.keys()
        assert all(before[name] != after[name] for name in before)
    assert fingerprints(policy.model) == fingerprints(copy.deepcopy(policy.model))


def test_weights_are_put_once_for_each_version_and_only_those_that_have_ever_changed(policy: LanguageModel) -> None:
    store = Store()
    publisher = Publisher(policy, store.put, "cuda:3", 8)
    assert isinstance(store.objects[0], Blueprint)
    assert (store.objects[0].device, store.objects[0].rows_at_once) == ("cuda", 8)
    first = publisher.publish()
    assert publisher.publish() is first
    assert len(store.objects) == 2
    assert store.objects[1].tensors == {}

    name, weight = next(iter(policy.model.named_parameters()))
    start = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    second = publisher.publish()
    assert second.serial != first.serial
    assert list(store.objects[2].tensors) == [name]
    with torch.no_grad():
        weight.copy_(start)
    publisher.publish()  # back at the start: who has the second version must be told
    assert list(store.objects[3].tensors) == [name]
    assert publisher.published == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_arrive_bit_for_bit(policy: LanguageModel, dtype: torch.dtype) -> None:
    source, target = copy.deepcopy(policy.model).to(dtype), copy.deepcopy(policy.model).to(dtype)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(1.1)
    load_bytes(target, {name: to_bytes(value.detach()) for name, value in source.named_parameters()})
    for one, other in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(one, other)


def test_weights_of_another_model_are_refused(policy: LanguageModel) -> None:
    name, weight = next(iter(policy.model.named_parameters()))
    with pytest.raises(ValueError, match=r"no weights \['other'\]"):
        load_bytes(policy.model, {"other": to_bytes(weight.detach())})
    with pytest.raises(ValueError, match="weights, not"):
        load_bytes(policy.model, {name: to_bytes(weight.detach()[:1])})


def test_a_probe_tells_weights_apart(policy: LanguageModel) -> None:
    probe = make_probe(policy)
    assert len(probe.logprobs) == len(probe.tokens) - 1 == 16
    assert all(value < 0 for value in probe.logprobs)
    check_probe(probe, probe_logprobs(policy, probe.tokens), None)
    with torch.no_grad():
        next(policy.model.parameters()).mul_(1.01)
    with pytest.raises(UserError, match="other log-probs than the learner"):
        check_probe(probe, probe_logprobs(policy, probe.tokens), None)
    with pytest.raises(UserError):
        check_probe(probe, [float("nan")] * 16, None)


def test_a_probe_leaves_the_mode_of_the_model(policy: LanguageModel) -> None:
    for training in (True, False):
        policy.model.train(training)
        make_probe(policy)
        assert policy.model.training is training


def test_the_probe_travels_with_the_weights(policy: LanguageModel) -> None:
    store = Store()
    publisher = Publisher(policy, store.put, "cpu", 8)
    publisher.publish()
    update: Update = store.objects[1]
    assert update.probe == make_probe(policy)

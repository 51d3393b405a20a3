"""A rollout worker without Ray: the responses of the native sampler, from weights that it fetches when it must."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from zerozoo.distributed.chunks import Chunk, Parcel
from zerozoo.distributed.rollout_worker import NativeWriter, RolloutWorker
from zerozoo.distributed.weights import Publisher
from zerozoo.language.families import tiny_model
from zerozoo.language.models import LanguageModel
from zerozoo.language.samplers.interface import Decoding
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.runs.errors import UserError

PROMPTS = [[3, 4], [5, 6, 3], [4]]
DECODING = Decoding(6)


class Store:
    def __init__(self) -> None:
        self.objects: list[Any] = []
        self.fetched: list[str] = []

    def put(self, content: Any) -> int:
        self.objects.append(copy.deepcopy(content))
        return len(self.objects) - 1

    def fetch(self, reference: int) -> Any:
        self.fetched.append(type(self.objects[reference]).__name__)
        return copy.deepcopy(self.objects[reference])


@pytest.fixture
def policy() -> LanguageModel:
    return tiny_model("llama", vocabulary="0123 ", hidden=16, heads=2, kv_heads=1)


def order(publisher: Publisher, version: int, begun: torch.Tensor | None = None, samples: int = 2) -> Chunk:
    uniforms = torch.rand((3 * samples, 6), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weights = publisher.publish()
    rows = None if begun is None else begun.numpy()
    return Chunk(PROMPTS, samples, DECODING, uniforms.numpy(), publisher.model, weights, version, rows)


def test_it_writes_what_the_learner_would_and_fetches_nothing_twice(policy: LanguageModel) -> None:
    store = Store()
    publisher = Publisher(policy, store.put, "cpu", 8)
    worker = RolloutWorker(0, NativeWriter, store.fetch)
    for version in (0, 1):
        if version:
            with torch.no_grad():
                for parameter in policy.model.parameters():
                    parameter.mul_(1.2)
        chunk = order(publisher, version)
        wanted = NativeSampler(policy, 8).write(PROMPTS, 2, DECODING, torch.tensor(chunk.uniforms))
        for _ in range(2):
            written = worker.write(chunk)
            assert torch.equal(written.tokens, wanted.tokens)
            assert torch.equal(written.logprobs, wanted.logprobs)
            assert written.texts == wanted.texts
            inside = torch.arange(written.tokens.shape[1]) < written.lengths[:, None]
            assert torch.equal(written.versions, torch.where(inside, version, 0).int())
    assert store.fetched == ["Blueprint", "Update", "Update"]
    assert worker.pulse().phase == ""


def test_it_goes_back_to_earlier_weights_for_a_chunk_that_was_lost_elsewhere(policy: LanguageModel) -> None:
    store = Store()
    publisher = Publisher(policy, store.put, "cpu", 8)
    chunks, wanted = [], []
    for version in range(3):
        with torch.no_grad():
            for parameter in list(policy.model.parameters())[:version]:  # each version has changed more than the last
                parameter.mul_(1.3)
        chunks.append(order(publisher, version))
        wanted.append(NativeSampler(policy, 8).write(PROMPTS, 2, DECODING, torch.tensor(chunks[-1].uniforms)))
    worker = RolloutWorker(0, NativeWriter, store.fetch)
    for version in (2, 1, 0, 2):
        assert torch.equal(worker.write(chunks[version]).logprobs, wanted[version].logprobs)


def test_another_model_takes_the_place_of_the_first(policy: LanguageModel) -> None:
    store = Store()
    worker = RolloutWorker(0, NativeWriter, store.fetch)
    other = tiny_model("llama", seed=1, vocabulary="0123 ", hidden=16, heads=2, kv_heads=1)
    publishers = [Publisher(one, store.put, "cpu", 8) for one in (policy, other)]
    for model, publisher in [(policy, publishers[0]), (other, publishers[1]), (policy, publishers[0])]:
        chunk = order(publisher, 0)
        wanted = NativeSampler(model, 8).write(PROMPTS, 2, DECODING, torch.tensor(chunk.uniforms))
        assert torch.equal(worker.write(chunk).logprobs, wanted.logprobs)


def test_it_goes_on_with_responses_that_were_begun(policy: LanguageModel) -> None:
    store = Store()
    publisher = Publisher(policy, store.put, "cpu", 8)
    begun = torch.tensor([[3], [4], [5]])
    chunk = order(publisher, 0, begun, samples=1)
    wanted = NativeSampler(policy, 8).write(PROMPTS, 1, DECODING, torch.tensor(chunk.uniforms), begun)
    written = RolloutWorker(0, NativeWriter, store.fetch).write(chunk)
    assert written.tokens[:, 0].tolist() == [3, 4, 5]
    assert torch.equal(written.tokens, wanted.tokens)


def test_it_refuses_to_write_with_weights_that_are_not_those_of_the_learner(policy: LanguageModel) -> None:
    store = Store()
    publisher = Publisher(policy, store.put, "cpu", 8)
    names = [name for name, _ in policy.model.named_parameters()]
    chunks = []
    for factor in (1.5, 2.0):
        with torch.no_grad():
            policy.model.get_parameter(names[0]).mul_(factor)
            policy.model.get_parameter(names[1]).mul_(factor)
        chunks.append(order(publisher, 1))
    store.objects[2].tensors[names[1]][:] = 0  # damaged on the way
    worker = RolloutWorker(0, NativeWriter, store.fetch)
    before = worker.write(chunks[0]).logprobs
    for _ in range(2):  # also when it is asked again
        with pytest.raises(UserError, match="other log-probs"):
            worker.write(chunks[1])
    assert torch.equal(worker.write(chunks[0]).logprobs, before)  # and what it has loaded of them does not stay


def test_its_products_are_as_precise_as_the_learners(policy: LanguageModel) -> None:
    store = Store()
    torch.set_float32_matmul_precision("medium")
    publisher = Publisher(policy, store.put, "cpu", 8)
    chunk = order(publisher, 0)
    torch.set_float32_matmul_precision("highest")  # of the process that the worker begins in
    RolloutWorker(0, NativeWriter, store.fetch).write(chunk)
    assert torch.get_float32_matmul_precision() == "medium"


def test_a_parcel_does_not_resolve_by_itself() -> None:
    # Ray resolves references among the arguments of a call: in a list they stay references.
    assert isinstance(Parcel(1, ["reference"]).reference, list)

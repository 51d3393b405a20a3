"""Streams in one process and over shared memory: the same messages, once each, whatever stops in between."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
from srl_parts import setup

from zerozoo.distributed import shared_memory
from zerozoo.distributed.messages import Layout, Message, flatten
from zerozoo.distributed.policy_worker import acting_weights
from zerozoo.distributed.shared_memory import Cell, Region, SharedInference, SharedSamples, SharedWeights
from zerozoo.distributed.streams import InlineInference, InlineSamples, InlineWeights, Publisher
from zerozoo.runs.errors import UserError

CONTEXT = multiprocessing.get_context("spawn")
REQUEST = Layout.of({"obs": np.zeros((2, 1))})
REPLY = Layout.of({"action": np.zeros(2)})
SAMPLE = Layout.of({"value": np.zeros(1)})


def request(value: float) -> Message:
    return {"obs": np.full((2, 1), float(value))}


def reply(value: float) -> Message:
    return {"action": np.full(2, float(value))}


def value(content: float) -> Message:
    return {"value": np.array([float(content)])}


@pytest.fixture
def inference() -> Iterator[SharedInference]:
    """Two actors with two places each, one policy worker."""
    stream = SharedInference(2, 2, 1, REQUEST, REPLY, CONTEXT)
    yield stream
    stream.close()


@pytest.fixture
def samples() -> Iterator[SharedSamples]:
    """Two actors, room for two samples of each."""
    stream = SharedSamples(2, 2, SAMPLE, CONTEXT)
    yield stream
    stream.close()


def roll(shared: bool, environment: str, steps: int, ring_size: int = 2) -> list[Message]:
    """Samples of one actor whose policy worker answers when asked, in one process."""
    parts = setup(environment, ring_size=ring_size)
    streams = parts.layouts() if shared else {}
    weights: InlineWeights | SharedWeights = InlineWeights()
    inference: InlineInference | SharedInference = InlineInference()
    samples: InlineSamples | SharedSamples = InlineSamples()
    if shared:
        weights = SharedWeights(streams["weights"])
        inference = SharedInference(1, ring_size, 1, streams["request"], streams["reply"], CONTEXT)
        samples = SharedSamples(1, 3, streams["sample"], CONTEXT)
    server = inference.server(0) if isinstance(inference, SharedInference) else inference
    sender = samples.sender(0) if isinstance(samples, SharedSamples) else samples
    worker = parts.policy_worker(server, weights, 0.0)
    actor = parts.actor(0, inference, sender)
    pulled: list[Message] = []
    for step in range(steps):
        if step % 7 == 0:  # new weights now and then
            moved = acting_weights(worker.agent)
            weights.publish(step // 7, {name: array + 0.01 for name, array in moved.items()})
        worker.poll()
        actor.poll()
        pulled += samples.pull()
    for stream in (weights, inference, samples):
        if hasattr(stream, "close"):
            stream.close()
    return pulled


@pytest.mark.parametrize("environment", ["CartPole-v1", "pendulum"])
def test_samples_are_the_same_bits_inline_and_over_shared_memory(environment: str) -> None:
    inline, shared = roll(False, environment, 80), roll(True, environment, 80)
    assert len(inline) == len(shared) == 80 // 5 - 1  # the first poll asks only
    for one, other in zip(inline, shared, strict=True):
        flat = flatten(other)
        for name, array in flatten(one).items():
            assert flat[name].dtype == array.dtype
            assert flat[name].tobytes() == array.tobytes()
    assert np.concatenate([one["version"] for one in inline]).max() == 11


def test_requests_are_served_first_come_first_served_up_to_a_number_of_rows(inference: SharedInference) -> None:
    server = inference.server(0)
    for place in (2, 0, 3):
        inference.post(place, request(place))
    assert [place for place, _ in server.receive(cap=5)] == [2, 0]  # two rows each
    assert [place for place, _ in server.receive(cap=1)] == [2]  # one request in any case
    found = server.receive(cap=100)
    assert [(place, message["obs"][0, 0]) for place, message in found] == [(2, 2.0), (0, 0.0), (3, 3.0)]
    for place, _ in found:
        server.answer(place, reply(10 + place))
    assert server.receive(cap=100) == []
    assert [inference.poll(place)["action"][0] for place in (0, 2, 3)] == [10, 12, 13]  # type: ignore[index]
    assert inference.poll(1) is None


def test_inline_requests_keep_their_order_too() -> None:
    stream = InlineInference()
    for place in (2, 0, 3):
        stream.post(place, request(place))
    assert [place for place, _ in stream.receive(cap=4)] == [2, 0]
    assert [place for place, _ in stream.receive(cap=4)] == [3]


def test_a_policy_worker_that_was_lost_leaves_its_requests_to_the_next(inference: SharedInference) -> None:
    inference.post(0, request(1))
    lost = inference.server(0)
    assert len(lost.receive(cap=100)) == 1
    (found,) = inference.server(0).receive(cap=100)
    assert found[0] == 0
    assert inference.poll(0) is None


def test_an_actor_that_begins_anew_never_gets_the_reply_to_an_old_request(inference: SharedInference) -> None:
    inference.post(0, request(1))
    server = inference.server(0)
    server.receive(cap=100)
    inference.post(0, request(2))  # the actor was lost and is back
    server.answer(0, reply(1))
    assert inference.poll(0) is None
    ((_, again),) = server.receive(cap=100)
    assert again["obs"][0, 0] == 2
    server.answer(0, reply(2))
    answered = inference.poll(0)
    assert answered is not None
    assert answered["action"][0] == 2


def test_each_actor_asks_one_policy_worker(inference: SharedInference) -> None:
    stream = SharedInference(3, 1, 2, REQUEST, REPLY, CONTEXT)
    for place in range(3):
        stream.post(place, request(place))
    assert [[place for place, _ in stream.server(number).receive(100)] for number in range(2)] == [[0, 2], [1]]
    stream.close()


def test_samples_come_once_and_a_full_ring_makes_its_actor_wait(samples: SharedSamples) -> None:
    first, second = samples.sender(0), samples.sender(1)
    assert first.push(value(1))
    assert first.push(value(2))
    assert not first.push(value(3))
    assert second.push(value(10))  # nobody waits for the others
    assert [sample["value"][0] for sample in samples.pull()] == [1, 2, 10]
    assert samples.pull() == []
    assert first.push(value(3))
    assert samples.sender(0).push(value(4))  # an actor that begins anew goes on behind what the lost one sent
    assert [sample["value"][0] for sample in samples.pull()] == [3, 4]


def test_a_sample_that_is_half_written_is_not_there_yet(samples: SharedSamples) -> None:
    sender = samples.sender(0)
    sender.push(value(1))
    samples._cells[0][0]._payload[0] ^= 1
    assert samples.pull() == []
    samples._cells[0][0]._payload[0] ^= 1
    assert [sample["value"][0] for sample in samples.pull()] == [1]


def test_a_message_under_an_old_number_is_not_taken_for_the_new_one() -> None:
    region = Region(Cell.size(SAMPLE))
    cell = Cell(region, 0, SAMPLE)
    assert cell.read() is None
    cell.write(5, value(1))
    cell._header[0] = 6
    assert cell.read() is None
    region.close()


def test_readers_get_the_newest_weights_once() -> None:
    shared = SharedWeights(SAMPLE)
    for stream in (InlineWeights(), shared):
        assert stream.read(-1) is None
        for version in (0, 1, 2, 7):
            stream.publish(version, value(version))
        found = stream.read(2)
        assert found is not None
        assert (found[0], found[1]["value"][0]) == (7, 7.0)
        assert stream.read(7) is None
    shared.close()


def test_a_delay_publishes_old_versions_under_their_own_numbers() -> None:
    stream = InlineWeights()
    publisher = Publisher(stream, delay=2)
    seen = []
    for version in range(6):
        publisher.publish(version, value(version))
        found = stream.read(-1)
        assert found is not None
        assert found[0] == found[1]["value"][0]
        seen.append(found[0])
    assert seen == [0, 0, 0, 1, 2, 3]
    again = Publisher(InlineWeights(), delay=2)
    again.load_state(publisher.state())
    assert again.published == 3
    again.publish(6, value(6))
    assert again.published == 4


def test_without_a_delay_every_version_is_out_at_once() -> None:
    stream = InlineWeights()
    publisher = Publisher(stream)
    for version in range(3):
        publisher.publish(version, value(version))
        assert stream.read(-1) == (version, value(version))


def test_closed_memory_is_gone() -> None:
    stream = SharedWeights(SAMPLE)
    name = stream._region._memory.name
    SharedMemory(name).close()
    stream.close()
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)


def test_more_than_the_shared_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1_000_000

    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(UserError, match="need 2 MB of shared memory and 1 MB are free"):
        Region(2_000_000)

"""Which samples come first, which are dropped and why, and the batch that is prepared ahead."""

from __future__ import annotations

import time

import numpy as np
import pytest
from srl_parts import sample

from zerozoo.distributed.sample_buffer import Intake, SampleBuffer
from zerozoo.distributed.streams import InlineSamples


def names(entries: list) -> list[int]:
    return [int(entry.sample["origin"][2]) for entry in entries]


def filled(versions: list, max_size: int = 16, reuses: int = 1) -> SampleBuffer:
    buffer = SampleBuffer(max_size, reuses)
    for name, version in enumerate(versions):
        buffer.put(sample(version, name))
    return buffer


def test_the_newest_comes_first_and_the_oldest_is_dropped_when_there_is_no_room() -> None:
    buffer = filled([0, 0, 0, 0, 0], max_size=3)
    assert (buffer.received, buffer.overflow, len(buffer)) == (5, 2, 3)
    assert names(buffer.take(2)) == [4, 3]
    assert names(buffer.take(1)) == [2]
    assert buffer.take(1) is None


def test_uses_left_count_before_arrival() -> None:
    buffer = filled([0, 0, 0], reuses=2)
    assert names(buffer.take(1)) == [2]  # has one use left now
    assert names(buffer.take(1)) == [1]
    buffer.put(sample(0, 3))
    assert names(buffer.take(2)) == [3, 0]
    # All four have one use left: the newest arrival comes first.
    assert names(buffer.take(4)) == [3, 2, 1, 0]
    assert len(buffer) == 0


def test_what_was_used_goes_first_when_there_is_no_room() -> None:
    buffer = filled([0, 0], max_size=2, reuses=2)
    buffer.take(1)  # number 1, the newer one
    buffer.put(sample(0, 2))
    assert buffer.overflow == 1
    assert names(buffer.take(2)) == [2, 0]


def test_the_oldest_version_of_a_sample_decides_and_not_the_average() -> None:
    """Trainer at 10, four versions allowed. Averages: 9, 6, 8.5, 5.5."""
    buffer = filled([[9, 9], [6, 6], [5, 12], [5, 6]])
    buffer.drop_stale(10, 4)
    assert buffer.stale == 2
    assert sorted(names(buffer.take(2))) == [0, 1]


def test_without_a_bound_nothing_is_too_old() -> None:
    buffer = filled([0, 0])
    buffer.drop_stale(10_000, float("inf"))
    assert (buffer.stale, len(buffer)) == (0, 2)


def test_a_bound_of_zero_keeps_what_the_present_version_made() -> None:
    buffer = filled([3, 2])
    buffer.drop_stale(3, 0)
    assert (buffer.stale, names(buffer.take(1))) == (1, [0])


def test_samples_from_before_the_first_weights_are_ignored() -> None:
    buffer = filled([[-1, 0], [0, 0]])
    assert (buffer.weightless, len(buffer)) == (1, 1)


def test_a_buffer_comes_back_from_its_state() -> None:
    buffer = filled([0, 1, 2, 3], max_size=3, reuses=2)
    buffer.take(1)
    again = SampleBuffer(3, 2)
    again.load_state(buffer.state())
    assert (again.received, again.overflow) == (4, 1)
    assert names(again.take(3)) == names(buffer.take(3))
    assert names(again.take(2)) == names(buffer.take(2))


def test_batches_lie_side_by_side_and_a_frame_counts_once() -> None:
    stream = InlineSamples()
    intake = Intake(stream, SampleBuffer(4, reuses=2), batch_samples=2, preemption_steps=4)
    assert intake.next(0) is None
    for name in range(2):
        stream.push(sample([0, 0, 0], name))
    intake.receive()
    batch = intake.next(2)
    assert batch is not None
    assert batch.content["value"].tolist() == [[1, 0]] * 3
    assert "origin" not in batch.content
    assert (batch.new_frames, batch.staleness(2).tolist()) == (6, [2, 2])
    again = intake.next(3)
    assert again is not None
    assert (again.new_frames, batch.new_frames) == (0, 6)
    assert intake.next(3) is None


def test_a_batch_that_grew_old_while_it_was_ready_is_not_used() -> None:
    """It is made at version 4 and asked for at version 5: sample 0 is too old by then, sample 1 is not."""
    intake = Intake(InlineSamples(), SampleBuffer(4), batch_samples=2, preemption_steps=4)
    intake.buffer.put(sample(0, 0))
    intake.buffer.put(sample(4, 1))
    intake._version = 4
    intake._prepare()
    assert intake._ready is not None
    assert intake.next(5) is None
    assert (intake.buffer.stale, len(intake.buffer)) == (1, 1)
    intake.buffer.put(sample(5, 2))
    batch = intake.next(5)
    assert batch is not None
    assert names(batch.entries) == [2, 1]
    assert batch.new_frames == 2


def test_the_thread_gives_what_arrives_and_tells_what_went_wrong() -> None:
    class Broken(InlineSamples):
        def pull(self, wait: float = 0.0) -> list:
            found = super().pull()
            if found and found[0]["origin"][2] == 9:
                raise OSError("no memory")
            time.sleep(0.001)
            return found

    stream = Broken()
    intake = Intake(stream, SampleBuffer(4), batch_samples=1, preemption_steps=np.inf)
    intake.start()
    stream.push(sample(0, 1))
    batch = intake.next(0, wait=60)
    assert batch is not None
    assert names(batch.entries) == [1]
    stream.push(sample(0, 9))
    with pytest.raises(OSError, match="no memory"):
        intake.next(0, wait=60)
    intake.close()


def test_a_batch_that_no_buffer_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="does not come out"):
        Intake(InlineSamples(), SampleBuffer(2), batch_samples=3, preemption_steps=0)

"""The book of chunks: everything once, in order, whoever is lost."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from zerozoo.distributed.chunks import TRIES, Book, Chunk, Parcel, groups_per_chunk
from zerozoo.language.samplers.interface import Decoding, Samples


def chunk(number: int) -> Chunk:
    empty = Parcel(0, [])
    return Chunk([[number]], 1, Decoding(1), np.zeros((1, 1)), empty, empty, 0)


def samples(token: int) -> Samples:
    one = torch.tensor([1])
    return Samples(torch.tensor([[token]]), one, torch.zeros(1, 1), torch.tensor([True]), torch.tensor([0]), [""])


def tokens(parts: list[Samples]) -> list[int]:
    return [int(part.tokens) for part in parts]


@pytest.mark.parametrize(
    ("prompts", "samples", "workers", "rows", "groups"),
    [(24, 8, 2, 256, 3), (4, 4, 2, 256, 1), (1, 8, 3, 256, 1), (1024, 8, 2, 256, 32), (10, 300, 1, 256, 1)],
)
def test_how_many_groups_make_a_chunk(prompts: int, samples: int, workers: int, rows: int, groups: int) -> None:
    assert groups_per_chunk(prompts, samples, workers, rows) == groups


def test_chunks_are_taken_oldest_first_and_come_back_in_the_order_of_the_prompts() -> None:
    book = Book()
    first, second = book.add([chunk(0), chunk(1)]), book.add([chunk(2)])
    taken = [book.take() for _ in range(4)]
    assert [ticket.chunk.prompts for ticket in taken if ticket] == [[[0]], [[1]], [[2]]]
    assert taken[3] is None
    for ticket in reversed(taken[:3]):
        assert ticket is not None
        book.finish(ticket, samples(10 + ticket.chunk.prompts[0][0]))
    assert tokens(first.result()) == [10, 11]
    assert tokens(second.result()) == [12]


def test_a_chunk_of_somebody_lost_is_the_next_one_and_counts_once() -> None:
    book = Book()
    job = book.add([chunk(0), chunk(1)])
    lost = book.take()
    assert lost is not None
    assert book.give_back(lost)
    again, other = book.take(), book.take()
    assert again is not None
    assert other is not None
    assert (again.index, other.index) == (0, 1)
    book.finish(again, samples(10))
    book.finish(lost, samples(99))  # the lost one was only slow
    book.finish(other, samples(11))
    assert tokens(job.result()) == [10, 11]


def test_a_chunk_that_kills_everybody_is_given_up() -> None:
    book = Book()
    book.add([chunk(0)])
    for _ in range(TRIES - 1):
        ticket = book.take()
        assert ticket is not None
        assert book.give_back(ticket)
    ticket = book.take()
    assert ticket is not None
    assert not book.give_back(ticket)


def test_an_error_reaches_whoever_waits_and_nothing_of_that_batch_is_written_any_more() -> None:
    book = Book()
    job = book.add([chunk(0), chunk(1)])
    book.take()
    threading.Timer(0.01, book.fail, [ValueError("broken")]).start()
    with pytest.raises(ValueError, match="broken"):
        job.result()
    assert book.take() is None
    later = book.add([chunk(2)])
    ticket = book.take()
    assert ticket is not None
    book.finish(ticket, samples(12))
    assert tokens(later.result()) == [12]

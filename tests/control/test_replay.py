"""Replay against a plain list, exact resume, and mixtures with exact shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zerozoo.control.episodes import Episode, Episodes
from zerozoo.control.replay import Mixture, Replay
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, transitions

SPEC = Spec((2,), 1, False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steps(first: int, count: int) -> dict[str, np.ndarray]:
    """Steps numbered from `first`; every field of a step tells its number."""
    number = np.arange(first, first + count, dtype=np.float64)
    return {
        "obs": np.stack([number, -number], axis=1),
        "action": number[:, None] / 1000,
        "reward": number * 2,
        "next_obs": np.stack([number + 0.5, -number], axis=1),
        "terminated": number % 3 == 0,
        "cost": number + 7,
    }


def filled(capacity: int, *counts: int) -> Replay:
    replay = Replay(SPEC, capacity, extras={"cost": ()})
    for count in counts:
        replay.add(**steps(replay.added, count))
    return replay


def check_rows(batch: Batch, gamma: float) -> list[int]:
    """The numbers of the steps in the batch, after checking that every field belongs to the same step."""
    number = batch.obs[:, 0]
    assert torch.equal(batch.obs[:, 1], -number)
    assert torch.equal(batch.next_obs[:, 0], number + 0.5)
    assert torch.equal(batch.action[:, 0], number / 1000)
    assert torch.equal(batch.reward, number * 2)
    assert torch.equal(batch.extra["cost"], number + 7)
    assert torch.equal(batch.discount, torch.where(number % 3 == 0, 0.0, gamma))
    return [int(n) for n in number]


@settings(max_examples=100)
@given(st.integers(1, 9), st.lists(st.integers(0, 21), min_size=1, max_size=8))
def test_the_ring_holds_the_newest_steps(capacity, counts):
    replay = filled(capacity, *counts)
    everything = list(range(sum(counts)))
    kept = everything[-capacity:]
    assert len(replay) == len(kept)
    assert replay.added == len(everything)
    if not kept:
        return
    batch = replay.sample(300, generator(), gamma=0.5)
    numbers = check_rows(batch, 0.5)
    assert set(numbers) == set(kept)
    assert batch.index.tolist() == [number % capacity for number in numbers]


def test_every_slot_is_drawn_equally_often():
    numbers = check_rows(filled(10, 7, 7).sample(20_000, generator()), 0.99)
    counts = np.bincount(numbers, minlength=14)
    assert counts[:4].sum() == 0
    assert np.abs(counts[4:] - 2000).max() < 5 * np.sqrt(2000)


def test_what_is_added_is_copied():
    replay, rows = filled(4), steps(0, 2)
    replay.add(**{name: torch.from_numpy(values) for name, values in rows.items()})
    for values in rows.values():
        values[:] = 0
    check_rows(replay.sample(20, generator(), gamma=0.9), 0.9)
    batch = replay.sample(20, generator())
    batch.obs.zero_()
    assert set(check_rows(replay.sample(20, generator()), 0.99)) == {0, 1}


def test_images_and_discrete_actions():
    replay = Replay(Spec((2, 2, 1), 4, True), 3, obs_dtype=torch.uint8)
    image = np.full((1, 2, 2, 1), 200, np.uint8)
    replay.add(image, np.array([3]), np.zeros(1), image + 1, np.zeros(1, bool))
    batch = replay.sample(2, generator())
    assert (batch.obs.dtype, batch.action.dtype) == (torch.uint8, torch.int64)
    assert (int(batch.obs[0, 0, 0, 0]), int(batch.next_obs[0, 0, 0, 0]), int(batch.action[0])) == (200, 201, 3)
    for obs in (image.astype(np.float32), image.astype(np.int64)):
        with pytest.raises(ValueError, match="keeps torch.uint8"):
            replay.add(obs, np.array([3]), np.zeros(1), image, np.zeros(1, bool))
    with pytest.raises(ValueError, match="keeps torch.float32"):
        Replay(Spec((2, 2, 1), 4, True), 3).add(image, np.array([3]), np.zeros(1), image, np.zeros(1, bool))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"obs": np.zeros((2, 3))}, r"obs has shape \(2, 3\), but \(2, 2\)"),
        ({"next_obs": np.zeros((1, 2))}, r"next_obs has shape \(1, 2\), but \(2, 2\)"),
        ({"action": np.zeros(2)}, r"action has shape \(2,\), but \(2, 1\)"),
        ({"terminated": np.zeros((2, 1), bool)}, r"terminated has shape \(2, 1\), but \(2,\)"),
        ({"cost": np.zeros((2, 1))}, r"cost has shape \(2, 1\), but \(2,\)"),
        ({"level": np.zeros(2)}, "has the fields"),
    ],
)
def test_wrong_steps_are_refused_and_change_nothing(changes, sentence):
    replay = filled(5, 1)
    with pytest.raises(ValueError, match=sentence):
        replay.add(**{**steps(1, 2), **changes})
    assert len(replay) == 1
    assert check_rows(replay.sample(3, generator()), 0.99) == [0, 0, 0]


def test_missing_fields_and_settings_without_meaning():
    rows = steps(0, 2)
    del rows["cost"]
    with pytest.raises(ValueError, match="'cost'"):
        filled(5).add(**rows)
    with pytest.raises(ValueError, match="empty"):
        filled(5).sample(1, generator())
    with pytest.raises(ValueError, match="capacity"):
        Replay(SPEC, 0)
    with pytest.raises(ValueError, match="cannot be called 'reward'"):
        Replay(SPEC, 5, extras={"reward": ()})


# --- resume


@pytest.mark.parametrize("before", [0, 3, 8, 11])
def test_a_resumed_buffer_goes_on_bit_for_bit(before):
    def go_on(replay: Replay) -> list[torch.Tensor]:
        replay.add(**steps(replay.added, 5))
        batch = replay.sample(64, generator(4))
        return [batch.obs, batch.action, batch.reward, batch.discount, batch.next_obs, batch.index]

    first = filled(8, before)
    state = first.state()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert len(state["obs"]) == min(before, 8)
    taken = {name: value.clone() for name, value in state.items()}
    expected = go_on(first)
    assert all(torch.equal(taken[name], value) for name, value in state.items())  # a copy, not a window
    second = filled(8, 2)  # not empty
    second.load_state(state)
    assert (len(second), second.added) == (min(before, 8), before)
    for one, other in zip(go_on(second), expected, strict=True):
        assert torch.equal(one, other)


def test_a_state_of_another_buffer_is_refused():
    state = filled(8, 9).state()
    with pytest.raises(ValueError, match="has shape"):
        filled(9).load_state(state)
    with pytest.raises(ValueError, match="has the fields"):
        Replay(SPEC, 8).load_state(state)
    with pytest.raises(ValueError, match="has shape"):
        Replay(Spec((3,), 1, False), 8, extras={"cost": ()}).load_state(state)


# --- mixture


def recorded(level: float, **extras: Any) -> Episodes:
    """Every number of the data is its level."""
    item = Episode(np.full((9, 2), level), np.zeros((8, 1)), np.full(8, level), extras=extras)
    return Episodes.from_list([item])


@pytest.mark.parametrize(
    ("shares", "size", "counts"),
    [
        ([0.5, 0.5], 256, [128, 128]),
        ([0.5, 0.5], 7, [4, 3]),
        ([0.25, 0.75], 256, [64, 192]),
        ([0.1, 0.2, 0.7], 10, [1, 2, 7]),
        ([1 / 3, 1 / 3, 1 / 3], 256, [86, 85, 85]),
        ([0.9, 0.1], 3, [3, 0]),
        ([0.0, 1.0], 5, [0, 5]),
    ],
)
def test_shares_are_exact_in_every_batch(shares, size, counts):
    mixture = Mixture([transitions()(recorded(float(n))) for n in range(len(shares))], shares)
    assert mixture.counts(size) == counts
    stream = generator()
    for _ in range(5):
        batch = mixture.sample(size, stream)
        expected = [float(n) for n, count in enumerate(counts) for _ in range(count)]
        assert batch.reward.tolist() == expected
        assert batch.obs[:, 0].tolist() == expected
        assert batch.index is None


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(1, 300))
def test_counts_sum_to_the_batch_and_are_the_nearest(weights, size):
    shares = [weight / sum(weights) for weight in weights]
    counts = Mixture([transitions()(recorded(0.0))] * len(shares), shares).counts(size)
    assert sum(counts) == size
    assert all(abs(count - share * size) < 1 for count, share in zip(counts, shares, strict=True))


def test_half_offline_half_online():
    replay = filled(50, 30)
    offline = recorded(-5.0, cost=np.full(8, -1.0))
    mixture = Mixture([transitions(0.9)(offline), transitions(0.9)(replay)], [0.5, 0.5])
    batch = mixture.sample(20, generator())
    assert batch.reward[:10].tolist() == [-5.0] * 10
    assert batch.extra["cost"][:10].tolist() == [-1.0] * 10
    assert (batch.reward[10:] >= 0).all()
    replay.add(**steps(30, 40))  # the mixture sees what was added
    assert mixture.sample(200, generator()).reward.max() > 60


def test_a_source_without_a_share_may_be_empty():
    mixture = Mixture([transitions()(recorded(1.0, cost=np.zeros(8))), transitions()(filled(8))], [1.0, 0.0])
    assert mixture.sample(4, generator()).reward.tolist() == [1.0] * 4


def test_state_of_a_mixture_is_that_of_its_sources():
    def build(count: int) -> Mixture:
        return Mixture([transitions()(recorded(0.0, cost=np.zeros(8))), transitions()(filled(8, count))], [0.5, 0.5])

    one, other = build(11), build(0)
    assert {name.split(".")[0] for name in one.state()} == {"1"}
    other.load_state(one.state())
    assert torch.equal(one.sample(30, generator()).obs, other.sample(30, generator()).obs)


def test_sources_that_do_not_fit():
    plain, costly = transitions()(recorded(0.0)), transitions()(recorded(0.0, cost=np.zeros(8)))
    with pytest.raises(ValueError, match="different extra fields"):
        Mixture([plain, costly], [0.5, 0.5]).sample(4, generator())
    with pytest.raises(ValueError, match="field next_action"):
        Mixture([plain, transitions(next_action=True)(recorded(0.0))], [0.5, 0.5]).sample(4, generator())
    for shares in ([0.5], [0.5, 0.6], [1.5, -0.5]):
        with pytest.raises(ValueError, match="sum to 1"):
            Mixture([plain, plain], shares)

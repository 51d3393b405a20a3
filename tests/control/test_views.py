"""Views against slow obvious references that walk over lists of episodes, and against closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zerozoo.control.episodes import Episode, Episodes
from zerozoo.control.replay import Replay
from zerozoo.control.views import goals, pairs, sequences, skills, transitions
from zerozoo.runs.errors import UserError

ENDS = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=5)  # (length, terminated)


def make(ends: list[tuple[int, bool]]) -> Episodes:
    """Episode e observes (e, t); action, reward and the cost are random but fixed."""
    random = np.random.default_rng(len(ends))
    items = []
    for number, (length, terminated) in enumerate(ends):
        obs = np.stack([np.full(length + 1, float(number)), np.arange(length + 1.0)], axis=1)
        action, reward, cost = random.uniform(-0.9, 0.9, (length, 2)), random.normal(size=length), random.random(length)
        items.append(Episode(obs, action, reward, terminated, not terminated, {"cost": cost}))
    return Episodes.from_list(items)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def located(data: Episodes, index: torch.Tensor) -> list[tuple[Episode, int]]:
    """(episode, time) of every step."""
    numbers = data.episode_of[index.numpy()]
    return [(data.episode(n), i - int(data.starts[n])) for n, i in zip(numbers, index.tolist(), strict=True)]


def close(one: torch.Tensor, other: list) -> None:
    np.testing.assert_allclose(one.numpy(), np.array(other), rtol=1e-6, atol=1e-6)


# --- transitions


@settings(max_examples=60)
@given(ENDS, st.integers(1, 8), st.sampled_from([0.0, 0.9, 1.0]))
def test_n_step_transitions_against_the_definition(ends, n_step, gamma):
    data = make(ends)
    batch = transitions(gamma, n_step, next_action=True)(data).sample(40, generator())
    for row, (episode, time) in enumerate(located(data, batch.index)):
        taken = min(n_step, len(episode) - time)
        ended = time + taken == len(episode)
        close(batch.obs[row], episode.obs[time])
        close(batch.action[row], episode.action[time])
        close(batch.reward[row], sum(gamma**k * episode.reward[time + k] for k in range(taken)))
        close(batch.next_obs[row], episode.obs[time + taken])
        close(batch.discount[row], 0.0 if ended and episode.terminated[-1] else gamma**taken)
        close(batch.extra["cost"][row], episode.extras["cost"][time])
        assert bool(batch.next_action_valid[row]) == (not ended)
        close(batch.next_action[row], episode.action[-1 if ended else time + taken])


def test_three_steps_by_hand():
    """gamma 1/2, rewards 1, 2, 4 of a truncated and of a terminated episode, two-step sums."""
    items = [Episode(np.arange(4.0)[:, None], np.zeros((3, 1)), [1, 2, 4], terminated=end) for end in (False, True)]
    sampler = transitions(gamma=0.5, n_step=2)(Episodes.from_list(items))
    assert sampler.reward.tolist() == [2, 4, 4] * 2
    assert sampler.discount.tolist() == [0.25, 0.25, 0.5, 0.25, 0, 0]
    batch = sampler.sample(64, generator())
    assert batch.next_obs[:, 0].tolist() == [[2, 3, 3][i % 3] for i in batch.index.tolist()]
    assert batch.next_action is None
    assert batch.goal is None


def test_every_step_is_drawn_equally_often():
    data = make([(3, True), (1, False), (6, True)])
    index = transitions()(data).sample(20_000, generator()).index
    counts = np.bincount(index.numpy(), minlength=len(data))
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000)


def test_draws_come_from_the_given_generator_only():
    data = make([(5, True), (4, False)])
    view = goals(0.9)(data)
    before = torch.random.get_rng_state()
    one, other = view.sample(32, generator(1)), view.sample(32, generator(1))
    assert torch.equal(one.index, other.index)
    assert torch.equal(one.goal, other.goal)
    assert not torch.equal(one.index, view.sample(32, generator(2)).index)
    assert torch.equal(before, torch.random.get_rng_state())
    stream = generator(3)
    view.sample(8, stream)
    state = stream.get_state()
    rest = view.sample(8, stream)
    stream.set_state(state)
    assert torch.equal(view.sample(8, stream).goal, rest.goal)
    assert view.state() == {}
    view.load_state({})
    with pytest.raises(ValueError, match="no state"):
        view.load_state({"size": torch.zeros(())})


def test_observations_are_stored_once():
    data = make([(5, True)])
    for view in (transitions(), goals(), sequences(3), skills(2), pairs(2)):
        assert view(data).obs.data_ptr() == data.obs.ctypes.data


def test_a_view_is_a_value():
    view = transitions(0.99, n_step=3)
    assert replace(view, gamma=0.5) == transitions(0.5, n_step=3)
    assert view == transitions(0.99, n_step=3)


def test_images_and_discrete_actions():
    image = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
    data = Episodes.from_list([Episode(image, np.array([1, 0]), [0.0, 1.0], terminated=True)])
    batch = transitions(next_action=True)(data).sample(5, generator())
    assert (batch.obs.dtype, batch.action.dtype, batch.next_action.dtype) == (torch.uint8, torch.int64, torch.int64)
    assert torch.equal(batch.next_obs, torch.from_numpy(image)[batch.index + 1])
    window = sequences(3)(data).sample(5, generator())
    assert window.obs.shape == (5, 3, 2, 2, 3)
    assert window.obs.dtype == torch.uint8
    assert not window.obs[~window.mask].any()


@pytest.mark.parametrize(
    "make_view",
    [
        lambda: transitions(n_step=0),
        lambda: sequences(0),
        lambda: skills(0),
        lambda: pairs(-1),
        lambda: goals(p_current=0.5, p_future=0.5, p_random=0.5),
        lambda: goals(p_current=-0.5, p_future=1.0, p_random=0.5),
        lambda: goals(gamma=1.0),
    ],
)
def test_settings_without_meaning(make_view):
    with pytest.raises(ValueError):
        make_view()


# --- replay


def test_a_replay_gives_single_steps_with_the_discount_of_the_view():
    data = make([(3, True), (4, False)])
    replay = Replay(data.spec, 10, extras={"cost": ()})
    rows = data.obs_index
    replay.add(data.obs[rows], data.action, data.reward, data.obs[rows + 1], data.terminated, cost=data.extras["cost"])
    one = transitions(0.9)(data).sample(50, generator())
    other = transitions(0.9)(replay).sample(50, generator())
    for name in ("obs", "action", "reward", "discount", "next_obs", "index"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.equal(one.extra["cost"], other.extra["cost"])
    for view in (transitions(n_step=2), transitions(next_action=True)):
        with pytest.raises(ValueError, match="single steps"):
            view(replay)
    for view in (goals(), sequences(2), skills(2), pairs(2)):
        with pytest.raises(ValueError, match="needs Episodes, not Replay"):
            view(replay)


# --- goals


@settings(max_examples=40)
@given(ENDS, st.booleans(), st.booleans(), st.sampled_from([0.1, 0.9, 0.999]))
def test_future_goals_never_leave_the_episode(ends, geometric, clamp, gamma):
    data = make(ends)
    view = goals(gamma, 0.0, 1.0, 0.0, geometric=geometric, clamp=clamp)(data)
    batch = view.sample(100, generator())
    numbers, times = batch.obs.T
    goal_numbers, goal_times = batch.goal.T
    lengths = torch.from_numpy(data.lengths)[numbers.long()]
    assert torch.equal(numbers, goal_numbers)
    assert (goal_times > times).all()
    assert (goal_times <= lengths).all()
    assert not batch.reached.any()


def shares_of_rows(view, data: Episodes, step: int, draws: int = 40_000) -> np.ndarray:
    rows = view(data).draw_rows(torch.full((draws,), step), generator(5))
    return np.bincount(rows.numpy(), minlength=len(data.obs)) / draws


def near(shares: np.ndarray, expected: list[float]) -> None:
    """Within five standard errors of 40,000 draws, and exactly 0 where nothing may be."""
    expected_shares = np.array(expected)
    assert (np.abs(shares - expected_shares) <= 5 * np.sqrt(expected_shares * (1 - expected_shares) / 40_000)).all()


def test_distribution_of_future_goals():
    """Step 1 of the second episode (rows 3 to 7): the observations after it are rows 5, 6 and 7. gamma = 1/2."""
    data = make([(2, True), (4, True), (2, False)])
    step = 2 + 1
    before, after = [0.0] * 5, [0.0] * 3
    near(shares_of_rows(goals(0.5, 0, 1, 0), data, step), [*before, 4 / 7, 2 / 7, 1 / 7, *after])
    near(shares_of_rows(goals(0.5, 0, 1, 0, clamp=True), data, step), [*before, 1 / 2, 1 / 4, 1 / 4, *after])
    near(shares_of_rows(goals(0.5, 0, 1, 0, geometric=False), data, step), [*before, 1 / 3, 1 / 3, 1 / 3, *after])


def test_shares_of_current_future_and_random_goals():
    data = make([(2, True), (4, True), (2, False)])  # 11 observations; step 5 is the last of the second episode
    shares = shares_of_rows(goals(0.9, 0.2, 0.5, 0.3), data, 5)
    expected = np.full(11, 0.3 / 11)
    expected[6] += 0.2  # its own observation
    expected[7] += 0.5  # the only one after it
    near(shares, expected.tolist())


def test_reward_and_discount_are_those_of_the_goal():
    data = make([(3, True), (2, False)])
    batch = goals(0.9, 0.5, 0.3, 0.2)(data).sample(200, generator())
    at_goal = (batch.obs == batch.goal).all(1)  # observations are all different
    assert torch.equal(batch.reached, at_goal)
    assert 0.4 < at_goal.float().mean() < 0.7
    close(batch.reward, torch.where(at_goal, 0.0, -1.0).tolist())
    close(batch.discount, torch.where(at_goal, 0.0, 0.9).tolist())  # not 0 at the true end of the first episode
    close(batch.next_obs, (batch.obs + torch.tensor([0.0, 1.0])).tolist())
    other = goals(0.9, 0.5, 0.3, 0.2, rewards=(0.0, 1.0))(data).sample(200, generator())
    close(other.reward, at_goal.float().tolist())


def test_goal_of_and_further_goals():
    data = make([(3, True), (2, False)])
    calls = []

    def position(obs: torch.Tensor) -> torch.Tensor:
        calls.append(len(obs))
        return obs[:, 1:] * 10

    view = goals(0.9, 0.0, 1.0, 0.0, goal_of=position)(data)
    batch = view.sample(30, generator())
    assert batch.goal.shape == (30, 1)
    assert (batch.goal[:, 0] / 10 > batch.obs[:, 1]).all()
    goal, reached = view.draw_goals(batch.index, generator(9))
    assert (goal[:, 0] / 10 > batch.obs[:, 1]).all()
    assert not reached.any()
    assert not torch.equal(goal, batch.goal)
    assert calls == [len(data.obs)]
    with pytest.raises(ValueError, match="made 1 goals of 7"):
        goals(goal_of=lambda obs: obs[:1])(data)


# --- windows


@settings(max_examples=40)
@given(ENDS, st.integers(1, 8))
def test_sequences_against_the_definition(ends, length):
    data = make(ends)
    batch = sequences(length, gamma=0.5)(data).sample(20, generator())
    for row, (episode, time) in enumerate(located(data, batch.index)):
        count = min(length, time + 1)
        pad, times = length - count, np.arange(time + 1 - count, time + 1)
        assert batch.mask[row].tolist() == [False] * pad + [True] * count
        ended = episode.terminated & (np.arange(len(episode)) == len(episode) - 1)
        to_go = np.array([episode.reward[t:].sum() for t in range(len(episode))])
        for field, values in (
            (batch.obs, episode.obs[times]),
            (batch.next_obs, episode.obs[times + 1]),
            (batch.action, episode.action[times]),
            (batch.reward, episode.reward[times]),
            (batch.discount, np.where(ended, 0, 0.5)[times]),
            (batch.return_to_go, to_go[times]),
            (batch.timestep, times),
            (batch.extra["cost"], episode.extras["cost"][times]),
        ):
            close(field[row, pad:], values.tolist())
            assert not field[row, :pad].any()


def test_return_to_go_is_left_out_when_not_wanted():
    batch = sequences(2, return_to_go=False)(make([(3, True)])).sample(4, generator())
    assert batch.return_to_go is None
    assert batch.mask.shape == (4, 2)


@settings(max_examples=40)
@given(ENDS, st.integers(1, 4))
def test_segments_against_the_definition(ends, length):
    data = make(ends)
    if max(length for length, _ in ends) < length:
        with pytest.raises(UserError, match=f"no episode has the {length} steps"):
            skills(length)(data)
        return
    one = skills(length, gamma=0.5)(data).sample(30, generator())
    two = pairs(length, gamma=0.5)(data).sample(30, generator())
    assert one.obs.shape == (30, length, 2)
    assert two.obs.shape == (30, 2, length, 2)
    for batch in (one, two):
        flat = batch.index.flatten()
        for row, (episode, time) in enumerate(located(data, flat)):
            times = slice(time, time + length)
            assert time + length <= len(episode)
            close(batch.obs.flatten(0, -3)[row], episode.obs[times].tolist())
            close(batch.next_obs.flatten(0, -3)[row], episode.obs[time + 1 : time + length + 1].tolist())
            close(batch.action.flatten(0, -3)[row], episode.action[times].tolist())
            close(batch.reward.flatten(0, -2)[row], episode.reward[times].tolist())
            close(batch.extra["cost"].flatten(0, -2)[row], episode.extras["cost"][times].tolist())
            at_end = time + length == len(episode) and episode.terminated[-1]
            close(batch.discount.flatten(0, -2)[row], [0.5] * (length - 1) + [0.0 if at_end else 0.5])


def test_segments_are_uniform_over_all_there_are():
    data = make([(5, True), (2, False), (3, True)])
    index = skills(3)(data).sample(8000, generator()).index
    counts = np.bincount(index.numpy(), minlength=len(data))
    assert np.flatnonzero(counts).tolist() == [0, 1, 2, 7]
    assert np.abs(counts[[0, 1, 2, 7]] - 2000).max() < 5 * np.sqrt(2000)
    first, second = pairs(3)(data).sample(8000, generator()).index.T
    assert (first == second).float().mean().item() == pytest.approx(1 / 4, abs=0.03)  # drawn independently

"""Episodes: the T + 1 layout, the two flags, checks of every field, selection, and the recorder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerozoo.control.episodes import ACTION_LIMIT, Episode, Episodes, Recorder
from zerozoo.control.spec import Spec
from zerozoo.runs.errors import UserError

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=6)


def make(lengths: list[int], ended: str = "alternate", **changes: Any) -> Episodes:
    """Episode e observes (e, t); its action is t / 100, its reward e + t / 10; every second one is terminated."""
    items = []
    for number, length in enumerate(lengths):
        time = np.arange(length + 1.0)
        items.append(
            Episode(
                obs=np.stack([np.full(length + 1, float(number)), time], axis=1),
                action=time[:-1, None] / 100,
                reward=number + time[:-1] / 10,
                terminated=ended == "alternate" and number % 2 == 0,
                truncated=ended != "alternate" or number % 2 == 1,
                extras={"cost": time[:-1] * 2, "level": np.full(length, number)},
            )
        )
    return Episodes.from_list(items, **changes)


def arrays(**changes: Any) -> dict[str, Any]:
    """Constructor arguments of two episodes with 2 and 3 steps."""
    given = {
        "obs": np.zeros((7, 4)),
        "action": np.zeros((5, 2)),
        "reward": np.zeros(5),
        "terminated": np.array([0, 1, 0, 0, 0], bool),
        "truncated": np.array([0, 0, 0, 0, 1], bool),
        "lengths": [2, 3],
        "extras": {"cost": np.zeros(5)},
    }
    return {**given, **changes}


def with_value(shape: tuple[int, ...], row: int, value: float) -> np.ndarray:
    array = np.zeros(shape)
    array[row] = value
    return array


# --- layout


def test_layout_by_hand():
    data = make([2, 3])
    assert (len(data), data.episodes) == (5, 2)
    assert data.obs.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [1, 3]]
    assert data.obs_index.tolist() == [0, 1, 3, 4, 5]
    assert data.episode_of.tolist() == [0, 0, 1, 1, 1]
    assert data.starts.tolist() == [0, 2]
    assert data.last.tolist() == [1, 4]
    assert data.terminated.tolist() == [False, True, False, False, False]
    assert data.truncated.tolist() == [False, False, False, False, True]
    assert data.extras["level"].tolist() == [0, 0, 1, 1, 1]
    assert data.spec == Spec((2,), 1, False)
    dtypes = [data.obs.dtype, data.action.dtype, data.reward.dtype, data.extras["cost"].dtype]
    assert dtypes == [np.float32] * 4
    assert data.extras["level"].dtype == np.int64


@given(LENGTHS)
def test_every_step_has_its_own_successor(lengths):
    data = make(lengths)
    here, after = data.obs[data.obs_index], data.obs[data.obs_index + 1]
    np.testing.assert_array_equal(after - here, np.tile([0.0, 1.0], (len(data), 1)))
    np.testing.assert_array_equal(here[:, 0], data.episode_of)


def test_images_stay_bytes_and_discrete_actions_integers():
    image = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
    data = Episodes.from_list([Episode(image, np.array([1, 3], np.int32), [0.0, 1.0], terminated=True)])
    assert data.obs.dtype == np.uint8
    assert data.action.dtype == np.int64
    assert data.spec == Spec((2, 2, 3), 4, True)
    assert Episodes.from_list([data.episode(0)], Spec((2, 2, 3), 9, True)).spec.action_size == 9


def test_mappings_are_episodes_too():
    item = {"obs": np.zeros((3, 1)), "action": np.zeros((2, 1)), "reward": np.zeros(2), "terminated": [False, True]}
    data = Episodes.from_list([item])
    assert data.terminated.tolist() == [False, True]


# --- ends


def test_terminated_wins_and_an_unmarked_end_is_truncated():
    obs, action, reward = np.zeros((3, 1)), np.zeros((2, 1)), np.zeros(2)
    both = Episode(obs, action, reward, terminated=[False, True], truncated=[False, True])
    neither = Episode(obs, action, reward)
    data = Episodes.from_list([both, neither, Episode(obs, action, reward, truncated=True)])
    assert data.terminated.tolist() == [False, True, False, False, False, False]
    assert data.truncated.tolist() == [False, False, False, True, False, True]


@pytest.mark.parametrize(
    ("terminated", "truncated", "sentence"),
    [
        ([0, 1, 0, 0, 0], [0, 1, 0, 0, 1], "both true at step 1 of episode 0"),
        ([0, 1, 1, 0, 0], [0, 0, 0, 0, 1], "an end is recorded, but the episode goes on, at step 0 of episode 1"),
        ([0, 1, 0, 0, 0], [0, 0, 0, 0, 0], "episode 1 ends neither terminated nor truncated"),
        ([0, 2, 0, 0, 0], [0, 0, 0, 0, 1], "terminated must be true or false"),
    ],
)
def test_flat_arrays_must_have_exactly_one_end_per_episode(terminated, truncated, sentence):
    with pytest.raises(UserError, match=sentence):
        Episodes(**arrays(terminated=np.array(terminated), truncated=np.array(truncated)))


# --- checks


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"obs": with_value((7, 4), 3, np.nan)}, "field obs holds NaN or infinity at step 0 of episode 1"),
        ({"obs": with_value((7, 4), 2, np.inf)}, "field obs holds NaN or infinity at step 2 of episode 0"),
        ({"obs": with_value((7, 4), 6, 1e300)}, "field obs holds NaN or infinity at step 3 of episode 1"),
        ({"action": with_value((5, 2), 4, np.nan)}, "field action holds NaN or infinity at step 2 of episode 1"),
        ({"reward": with_value((5,), 1, np.nan)}, "field reward holds NaN or infinity at step 1 of episode 0"),
        ({"extras": {"cost": with_value((5, 3), 2, np.nan)}}, "cost holds NaN or infinity at step 0 of episode 1"),
        ({"obs": np.zeros((5, 4))}, r"field obs has shape \(5, 4\), but 5 steps in 2 episodes need 7 rows"),
        ({"action": np.zeros((4, 2))}, r"field action has shape \(4, 2\), but \(5, ...\) is wanted"),
        ({"action": np.zeros(5)}, r"field action has shape \(5,\) and type float64"),
        ({"action": np.zeros((5, 2), int)}, "field action has shape .* and type int64"),
        ({"action": np.zeros((5, 0))}, r"field action has shape \(5, 0\)"),
        ({"reward": np.zeros((5, 1))}, r"field reward has shape \(5, 1\), but \(5,\) is wanted"),
        ({"terminated": np.zeros(())}, r"field terminated has shape \(\), but \(5,\) is wanted"),
        ({"extras": {"cost": np.zeros(6)}}, r"field cost has shape \(6,\)"),
        ({"extras": {"note": np.array(list("abcde"))}}, "field note does not hold numbers"),
        ({"reward": np.array(list("abcde"))}, "field reward does not hold numbers"),
        ({"lengths": [5, 0]}, "episode 1 is empty"),
        ({"lengths": []}, "no episodes"),
        ({"action": with_value((5, 2), 0, 1.5)}, r"action reaches 1.5, outside \[-1, 1\]"),
        ({"action": with_value((5, 2), 0, -3)}, r"action reaches 3, outside \[-1, 1\]"),
        ({"action": np.array([0, 1, -1, 0, 0])}, "numbers from -1 to 1, but there are 2 actions"),
        ({"action": np.zeros(5, int), "spec": Spec((4,), 2, False)}, r"field action has shape \(5,\)"),
        ({"spec": Spec((4,), 2, True)}, "holds continuous actions, but discrete ones are wanted"),
        ({"spec": Spec((4,), 3, False)}, r"but \(steps, 3\) is wanted"),
        ({"spec": Spec((3,), 2, False)}, r"observations of shape \(4,\), but \(3,\) is wanted"),
        ({"action": np.full(5, 4), "spec": Spec((4,), 4, True)}, "numbers from 4 to 4, but there are 4 actions"),
    ],
)
def test_bad_arrays_are_refused_with_their_field(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        Episodes(**arrays(**changes))


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([], "no episodes"),
        ([Episode(np.zeros((1, 1)), np.zeros((0, 1)), [])], "episode 0 is empty"),
        ([Episode(np.zeros((2, 1)), np.zeros((2, 1)), [0, 0])], "episode 0 has 2 observations for 2 actions"),
        ([Episode(np.zeros((3, 1)), np.zeros((2, 1)), [0, 0], terminated=[True])], "terminated of episode 0 has shape"),
        (
            [Episode(np.zeros((2, k)), np.zeros((1, 1)), [0]) for k in (1, 2)],
            r"field obs of episode 1 has rows of shape \(2,\), that of episode 0 \(1,\)",
        ),
        (
            [Episode(np.zeros((2, 1)), np.zeros((1, 1)), [0], extras={k: [0]}) for k in "ab"],
            "episode 1 has other extra fields",
        ),
    ],
)
def test_bad_episodes_are_refused(items, sentence):
    with pytest.raises(UserError, match=sentence):
        Episodes.from_list(items)


def test_actions_are_kept_inside_the_open_interval():
    """A rounding error outside of [-1, 1] is no reason to refuse; what is inside is not changed."""
    action = np.array([[1.0, -1.0], [1 + 1e-6, 0.5], [0.99, -0.25], [0, 0], [0, 0]])
    data = Episodes(**arrays(action=action))
    limit = np.float32(ACTION_LIMIT)
    expected = np.array([[limit, -limit], [limit, 0.5], [0.99, -0.25], [0, 0], [0, 0]], np.float32)
    np.testing.assert_array_equal(data.action, expected)
    assert action[0, 0] == 1.0  # the caller's array is not touched


# --- sums


@given(LENGTHS, st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_returns_to_go_against_sums_from_the_definition(lengths, gamma):
    data = make(lengths)
    expected = []
    for number in range(data.episodes):
        reward = data.episode(number).reward.astype(float)
        expected += [sum(gamma**k * r for k, r in enumerate(reward[t:])) for t in range(len(reward))]
        assert data.returns()[number] == pytest.approx(reward.sum(), abs=1e-12)
    np.testing.assert_allclose(data.returns_to_go(gamma), expected, rtol=1e-6, atol=1e-6)


# --- parts


def same(one: Episodes, other: Episodes) -> None:
    for name in ("obs", "action", "reward", "terminated", "truncated", "lengths"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype
    assert one.extras.keys() == other.extras.keys()
    for name in one.extras:
        np.testing.assert_array_equal(one.extras[name], other.extras[name])
    assert one.spec == other.spec


@given(LENGTHS, st.data())
def test_select_is_a_list_of_episodes(lengths, data_strategy):
    data = make(lengths)
    numbers = st.lists(st.integers(-len(lengths), len(lengths) - 1), min_size=1, max_size=5)
    chosen = data_strategy.draw(numbers)
    same(data.select(chosen), Episodes.from_list([data.episode(number) for number in chosen], data.spec))


def test_select_by_mask_and_concatenate():
    data = make([2, 3, 1])
    mask = np.array([True, False, True])
    same(data.select(mask), data.select([0, 2]))
    same(Episodes.concatenate([data.select([0]), data.select([1, 2])]), data)
    with pytest.raises(ValueError, match="mask"):
        data.select(mask[:2])
    with pytest.raises(IndexError):
        data.select([3])
    with pytest.raises(IndexError):
        data.episode(3)
    with pytest.raises(UserError, match="no episodes"):
        data.select([False] * 3)


def test_concatenate_joins_what_fits_only():
    one = make([2])
    for other, sentence in [
        (one.replace(obs=np.zeros((3, 5)), spec=None), "part 1 does not fit part 0"),
        (one.replace(action=np.zeros((2, 3)), spec=None), "part 1 does not fit part 0"),
        (one.replace(action=np.zeros(2, int), spec=None), "part 1 does not fit part 0"),
        (one.replace(extras={}), "part 1 has other extra fields"),
    ]:
        with pytest.raises(UserError, match=sentence):
            Episodes.concatenate([one, other])
    few, many = (one.replace(action=np.full(2, number), spec=None) for number in (1, 3))
    assert Episodes.concatenate([few, many]).spec.action_size == 4


def test_split_by_fractions():
    data = make([1, 2, 3, 4, 5])
    train, test = data.split([0.6, 0.4])
    assert train.lengths.tolist() == [1, 2, 3]
    assert test.lengths.tolist() == [4, 5]
    shuffled = [part.lengths.tolist() for part in data.split([0.6, 0.4], np.random.default_rng(1))]
    assert sorted(sum(shuffled, [])) == [1, 2, 3, 4, 5]
    assert shuffled != [[1, 2, 3], [4, 5]]
    assert shuffled == [part.lengths.tolist() for part in data.split([0.6, 0.4], np.random.default_rng(1))]
    with pytest.raises(ValueError, match="sum to 1"):
        data.split([0.6, 0.6])


def test_split_by_predicate():
    data = make([1, 2, 3, 4])
    long, short = data.split(lambda episode: len(episode) > 2)
    assert (long.lengths.tolist(), short.lengths.tolist()) == ([3, 4], [1, 2])
    with pytest.raises(UserError, match="no episodes"):
        data.split(lambda episode: True)


def test_replace_checks_again():
    data = make([2, 3])
    assert data.replace(reward=np.arange(5.0)).returns().tolist() == [1.0, 9.0]
    assert data.reward.tolist() != np.arange(5.0).tolist()
    with pytest.raises(UserError, match="field reward holds NaN"):
        data.replace(reward=np.full(5, np.nan))


# --- recorder


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 10_000))
def test_recorder_against_lists_per_copy(copies, steps, seed):
    """Copies that end at different times; the environment reuses its arrays, as fast ones do."""
    random = np.random.default_rng(seed)
    recorder, obs, episode = Recorder(), np.zeros((copies, 2)), np.zeros(copies, int)
    open_items: list[dict[str, list]] = [{"obs": [], "action": [], "reward": []} for _ in range(copies)]
    finished = []
    obs[:, 0] = np.arange(copies) * 100
    for time in range(steps):
        action, reward = random.uniform(-0.9, 0.9, (copies, 1)), random.normal(size=copies)
        terminated, truncated = random.random(copies) < 0.2, random.random(copies) < 0.2
        next_obs = obs + [0, 1]
        recorder.add(obs, action, reward, terminated, truncated, next_obs, level=episode)
        for copy, item in enumerate(open_items):
            for name, values in (("obs", obs), ("action", action), ("reward", reward)):
                item[name].append(values[copy].copy())
            item.update(final=[next_obs[copy].copy()], ends=[terminated[copy], truncated[copy]], level=[episode[copy]])
            if terminated[copy] or truncated[copy] or time == steps - 1:
                finished.append(item)
                open_items[copy] = {"obs": [], "action": [], "reward": []}
        obs[:] = next_obs
        ended = terminated | truncated
        episode[ended] += 1
        obs[ended, 1] = 0
        action[:], reward[:], next_obs[:] = np.nan, np.nan, np.nan
    expected = [
        Episode(
            np.stack(item["obs"] + item["final"]),
            np.stack(item["action"]),
            item["reward"],
            *item["ends"],
            {"level": item["level"] * len(item["reward"])},
        )
        for item in finished
    ]
    assert len(recorder) == steps * copies
    same(recorder.episodes(), Episodes.from_list(expected))


def test_recorder_refuses_changing_fields_and_nothing():
    recorder = Recorder()
    with pytest.raises(UserError, match="no episodes"):
        recorder.episodes()
    one = (np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(1), np.zeros(1, bool), np.zeros(1, bool), np.ones((1, 1)))
    recorder.add(*one)
    with pytest.raises(ValueError, match="same fields"):
        recorder.add(*one, cost=np.zeros(1))
    assert recorder.episodes().truncated.tolist() == [True]
    assert recorder.episodes().obs.tolist() == [[0.0], [1.0]]

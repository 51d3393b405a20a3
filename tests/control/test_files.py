"""Minari and NPZ files: round trips, the rules of the D4RL schema, and one sentence for every broken file."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from zerozoo.control.episodes import ACTION_LIMIT, Episode, Episodes
from zerozoo.control.files import read_minari, read_npz, write_minari, write_npz
from zerozoo.control.manifest import digest, manifest, manifest_path, read_manifest
from zerozoo.control.spec import Spec
from zerozoo.runs.errors import UserError


def recorded(discrete: bool = False) -> Episodes:
    """A terminated, a truncated and an unfinished episode of 3, 1 and 2 steps; with a cost."""
    items = []
    for number, (length, terminated, truncated) in enumerate([(3, True, False), (1, False, True), (2, False, False)]):
        random = np.random.default_rng(number)
        action = random.integers(0, 3, length) if discrete else random.uniform(-1, 1, (length, 2))
        obs, reward, cost = random.normal(size=(length + 1, 4)), random.normal(size=length), random.random((length, 2))
        items.append(Episode(obs, action, reward, terminated, truncated, {"cost": cost}))
    return Episodes.from_list(items, Spec((4,), 3, True) if discrete else None)


def npz(path: Path, remove: str = "", **changes: Any) -> Path:
    """A file of two rows that time out in row 2 and three that terminate in row 5 (from 0: rows 1 and 4)."""
    given = {
        "observations": np.arange(10.0).reshape(5, 2),
        "next_observations": np.arange(10.0).reshape(5, 2) + 2,
        "actions": np.linspace(-0.5, 0.5, 5)[:, None],
        "rewards": np.arange(5.0),
        "terminals": np.array([0, 0, 0, 0, 1], bool),
        "timeouts": np.array([0, 1, 0, 0, 0], bool),
    }
    given["next_observations"][1] = [100, 101]
    np.savez(path, **{name: values for name, values in {**given, **changes}.items() if name != remove})
    return path


@pytest.fixture
def minari(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return pytest.importorskip("minari")


def make_minari(minari: Any, name: str = "made-v0", **changes: Any) -> Any:
    """A Minari data set of one goal-dict episode with three steps, of which parts can be replaced."""
    from minari.data_collector import EpisodeBuffer

    box = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    parts = {"achieved_goal": box, "desired_goal": box, "observation": spaces.Box(-np.inf, np.inf, (3,), np.float64)}
    given = {
        "observations": {
            "achieved_goal": np.arange(8.0).reshape(4, 2),
            "desired_goal": np.arange(8.0).reshape(4, 2) + 100,
            "observation": np.arange(12.0).reshape(4, 3) + 1000,
        },
        "actions": np.linspace(-0.5, 0.5, 3)[:, None].astype(np.float32),
        "rewards": np.array([1.0, 2.0, 3.0]),
        "terminations": np.array([False, False, True]),
        "truncations": np.array([False, False, False]),
        "infos": {"success": np.array([0, 0, 0, 1]), "nested": {"qpos": np.arange(8.0).reshape(4, 2)}},
    }
    space = {"observation_space": spaces.Dict(parts), "action_space": spaces.Box(-1, 1, (1,), np.float32)}
    space.update({key: changes.pop(key) for key in list(changes) if key in space})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends to name an author and more
        return minari.create_dataset_from_buffers(
            name, [EpisodeBuffer(**{**given, **changes})], jpeg_encoding=False, **space
        )


# --- NPZ


@pytest.mark.parametrize("discrete", [False, True])
def test_npz_round_trip(tmp_path, discrete):
    data = recorded(discrete)
    path = write_npz(tmp_path / "new" / "data.npz", data)
    back = read_npz(path, extras=["cost"])
    assert digest(back) == digest(data)
    assert (back.spec.discrete, back.truncated.tolist()) == (discrete, data.truncated.tolist())
    assert read_npz(path).extras == {}
    assert manifest_path(path).exists() is False


def test_npz_with_next_observations_by_hand(tmp_path):
    data = read_npz(npz(tmp_path / "data.npz"))
    assert data.lengths.tolist() == [2, 3]
    assert data.obs.tolist() == [[0, 1], [2, 3], [100, 101], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert data.reward.tolist() == [0, 1, 2, 3, 4]
    assert data.terminated.tolist() == [False, False, False, False, True]
    assert data.truncated.tolist() == [False, True, False, False, False]


def test_the_last_row_of_an_unfinished_file_is_truncated(tmp_path):
    data = read_npz(npz(tmp_path / "data.npz", terminals=np.zeros(5)))
    assert data.truncated.tolist() == [False, True, False, False, True]


def test_without_next_observations_a_timed_out_row_becomes_the_final_observation(tmp_path):
    """Its successor is unknown: the row of the next episode is not it, and neither are zeros."""
    path = npz(tmp_path / "data.npz", remove="next_observations", terminals=np.zeros(5))
    data = read_npz(path)
    assert data.lengths.tolist() == [1, 2]
    assert data.obs.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert data.reward.tolist() == [0, 2, 3]
    assert data.truncated.tolist() == [True, False, True]
    assert not data.terminated.any()


def test_without_next_observations_a_true_end_is_not_lost(tmp_path):
    path = npz(tmp_path / "data.npz", remove="next_observations")
    with pytest.raises(UserError, match="terminals is true in row 4, but without next_observations .*'repeat'"):
        read_npz(path)
    data = read_npz(path, terminal_successor="repeat")
    assert data.lengths.tolist() == [1, 3]
    assert data.obs.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [8, 9]]
    assert data.reward.tolist() == [0, 2, 3, 4]
    assert data.terminated.tolist() == [False, False, False, True]
    with pytest.raises(ValueError, match="'refuse' or 'repeat'"):
        read_npz(path, terminal_successor="zeros")


def test_a_single_row_that_timed_out_is_no_episode(tmp_path):
    timeouts = np.array([1, 0, 0, 0, 1], bool)
    path = npz(tmp_path / "data.npz", remove="next_observations", timeouts=timeouts, terminals=np.zeros(5))
    assert read_npz(path).obs.tolist() == [[2, 3], [4, 5], [6, 7], [8, 9]]
    path = npz(tmp_path / "data.npz", remove="next_observations", timeouts=np.ones(5), terminals=np.zeros(5))
    with pytest.raises(UserError, match="data.npz: there are no episodes in the data"):
        read_npz(path)


def test_images_in_npz(tmp_path):
    image = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2, 1)
    following = np.concatenate([image[1:], image[:1]])
    path = npz(tmp_path / "data.npz", observations=image, next_observations=following, timeouts=np.zeros(5))
    data = read_npz(path)
    assert data.obs.dtype == np.uint8
    assert np.array_equal(data.obs[:5], image)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        *[
            ({"remove": name}, f"the field {name} is missing; the file has: ")
            for name in ("observations", "actions", "rewards", "terminals", "timeouts")
        ],
        ({"observations": np.full((5, 2), np.nan), "remove": "next_observations"}, "terminals is true in row 4"),
        ({"observations": np.full((5, 2), np.nan), "next_observations": np.full((5, 2), np.nan)}, "obs holds NaN"),
        ({"rewards": np.array([0, 0, np.inf, 0, 0])}, "reward holds NaN or infinity at step 0 of episode 1"),
        ({"rewards": np.zeros((5, 1))}, r"rewards has shape \(5, 1\) for 5 observations"),
        ({"rewards": np.zeros(4)}, r"rewards has shape \(4,\) for 5 observations"),
        ({"timeouts": np.zeros(6)}, r"timeouts has shape \(6,\) for 5 observations"),
        ({"timeouts": np.full(5, 0.5)}, "timeouts must be true or false"),
        ({"next_observations": np.zeros((5, 3))}, r"next_observations has shape \(5, 3\), but observations \(5, 2\)"),
        ({"actions": np.zeros((5, 1), int)}, r"action has shape \(5, 1\) and type int64"),
        ({"actions": np.full((5, 1), 2.0)}, r"action reaches 2, outside \[-1, 1\]"),
        ({"actions": np.array(list("abcde"))}, "actions does not hold numbers"),
        ({"observations": np.zeros((0, 2))}, "observations is empty"),
        ({"timeouts": np.array([0, 1, 0, 0, 1])}, "both true in row 4"),
        ({"timeouts": np.zeros(5)}, "next_observations of row 1 is not the observation of row 2"),
        ({"actions": np.array([{}] * 5)}, "cannot be read as an .npz file: Object arrays"),
    ],
)
def test_broken_npz_files(tmp_path, changes, sentence):
    path = npz(tmp_path / "data.npz", **changes)
    with pytest.raises(UserError, match=f"data.npz: .*{sentence}"):
        read_npz(path)


def test_files_that_are_no_npz(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "single.npy", np.zeros(3))
    whole = npz(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name, sentence in [
        ("nowhere.npz", "there is no such file"),
        ("text.npz", "cannot be read as an .npz file"),
        ("single.npy", "a single array"),
        ("cut.npz", "cannot be read as an .npz file"),
        ("", "cannot be read as an .npz file"),
    ]:
        with pytest.raises(UserError, match=sentence) as raised:
            read_npz(tmp_path / name)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="infos/cost is missing"):
        read_npz(tmp_path / "whole.npz", extras=["cost"])


# --- actions in other bounds


def test_actions_are_rescaled_with_explicit_bounds(tmp_path):
    actions = np.array([[-2.0, 0.0], [2.0, 3.0], [0.0, 1.5], [1.0, 0.75], [0.0, 3.0]])
    path = npz(tmp_path / "data.npz", actions=actions)
    with pytest.raises(UserError, match="action reaches 3, outside"):
        read_npz(path)
    data = read_npz(path, action_bounds=([-2, 0], [2, 3]))
    expected = np.array([[-1, -1], [1, 1], [0, 0], [0.5, -0.5], [0, 1]]).clip(-ACTION_LIMIT, ACTION_LIMIT)
    np.testing.assert_allclose(data.action, expected, atol=1e-7)
    assert read_npz(path, action_bounds=(-5, 5)).action[1].tolist() == pytest.approx([0.4, 0.6])
    for bounds, sentence in [
        ((-1, 1), "action reaches 3, outside"),
        ((2, -2), "finite with low < high"),
        ((-np.inf, np.inf), "finite with low < high"),
        (([-1, -1, -1], [1, 1, 1]), "do not fit actions of shape"),
    ]:
        with pytest.raises(UserError, match=sentence):
            read_npz(path, action_bounds=bounds)
    with pytest.raises(UserError, match="do not fit actions of shape"):
        read_npz(npz(tmp_path / "data.npz", actions=np.zeros(5, int)), action_bounds=(-2, 2))


def test_minari_actions_in_other_bounds_are_never_taken_as_they_are(minari):
    """All of them happen to lie within [-1, 1], but they are torques of up to 2."""
    dataset = make_minari(minari, action_space=spaces.Box(-2, 2, (1,), np.float32))
    with pytest.raises(UserError, match=r"give action_bounds, which it says are \(\[-2.0\], \[2.0\]\)"):
        read_minari(dataset)
    np.testing.assert_allclose(read_minari(dataset, action_bounds=(-2, 2)).action, [[-0.25], [0], [0.25]])


def test_files_that_say_that_their_actions_are_in_the_unit_box_are_not_rescaled_again(tmp_path, minari):
    """Whoever reads data for an environment passes the bounds of that environment, also for what we wrote."""
    data = recorded()
    for path in (write_npz(tmp_path / "data.npz", data), write_minari(data, "toy-v0")):
        read = read_npz if path.suffix == ".npz" else read_minari
        assert digest(read(path, extras=["cost"], action_bounds=(-2, 2))) == digest(data)


# --- Minari


@pytest.mark.parametrize("discrete", [False, True])
def test_minari_round_trip(minari, discrete):
    data = recorded(discrete)
    folder = write_minari(data, "zerozoo/toy-v0")
    back = read_minari("zerozoo/toy-v0", extras=["cost"])
    assert digest(back) == digest(data)
    assert back.spec == data.spec
    for source in (folder, str(folder), folder / "data", minari.load_dataset("zerozoo/toy-v0")):
        assert digest(read_minari(source, extras=["cost"])) == digest(data)
    assert read_minari(folder).extras == {}


def test_minari_itself_reads_what_we_write(minari):
    data = recorded()
    write_minari(data, "toy-v0")
    dataset = minari.load_dataset("toy-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (3, 6)
    assert dataset.observation_space == spaces.Box(-np.inf, np.inf, (4,), np.float32)
    assert dataset.action_space == spaces.Box(-1, 1, (2,), np.float32)
    for number, episode in enumerate(dataset):
        ours = data.episode(number)
        np.testing.assert_array_equal(episode.observations, ours.obs)
        np.testing.assert_array_equal(episode.actions, ours.action)
        np.testing.assert_array_equal(episode.rewards, ours.reward)
        np.testing.assert_array_equal(episode.terminations, ours.terminated)
        np.testing.assert_array_equal(episode.truncations, ours.truncated)
        np.testing.assert_array_equal(episode.infos["cost"][1:], ours.extras["cost"])


def test_minari_images_are_kept_exactly(minari):
    image = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    data = Episodes.from_list([Episode(image, np.array([0, 1]), [0.0, 1.0], terminated=True)])
    back = read_minari(write_minari(data, "images-v0"))
    assert back.obs.dtype == np.uint8
    assert digest(back) == digest(data)


def test_goal_observations_are_flattened_in_the_documented_order(minari):
    dataset = make_minari(minari)
    data = read_minari(dataset)
    assert data.obs[0].tolist() == [1000, 1001, 1002, 0, 1, 100, 101]
    assert data.obs[3].tolist() == [1009, 1010, 1011, 6, 7, 106, 107]
    assert data.spec == Spec((7,), 1, False, goal_size=2)
    assert data.spec == Spec.of_spaces(dataset.observation_space, dataset.action_space)
    assert data.terminated.tolist() == [False, False, True]
    chosen = read_minari(dataset, keys=("desired_goal", "observation"))
    assert chosen.obs[0].tolist() == [100, 101, 1000, 1001, 1002]
    assert chosen.spec.goal_size == 0
    assert read_minari(dataset, keys=("achieved_goal",)).obs[1].tolist() == [2, 3]


def test_minari_infos_become_extras(minari):
    """Minari's infos start with that of the reset, which belongs to no step."""
    data = read_minari(make_minari(minari), extras=("success", "nested/qpos"))
    assert data.extras["success"].tolist() == [0, 0, 1]
    assert data.extras["nested/qpos"].tolist() == [[2, 3], [4, 5], [6, 7]]
    steps_only = make_minari(minari, "steps-v0", infos={"cost": np.array([1.0, 2.0, 3.0])})
    assert read_minari(steps_only, extras=("cost",)).extras["cost"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rewards": np.array([1.0, np.nan, 1.0])}, "reward holds NaN or infinity at step 1 of episode 0"),
        ({"actions": np.full((3, 1), 1.5, np.float32)}, r"action reaches 1.5, outside"),
        ({"truncations": np.array([0, 0, 1], bool)}, "both true in step 2 of episode 0"),
        ({"terminations": np.array([0, 1, 0], bool)}, "an end is recorded, but the episode goes on, at step 1"),
        ({"rewards": np.zeros(2)}, r"reward has shape \(2,\)"),
        ({"terminations": np.zeros(2, bool), "truncations": np.zeros(2, bool)}, r"terminated of episode 0 has shape"),
        ({"actions": np.zeros((4, 1), np.float32)}, "episode 0 has 4 observations for 4 actions"),
        (
            {"action_space": spaces.MultiDiscrete([2, 2]), "actions": np.zeros((3, 2), np.int64)},
            "action has shape .* and type int64",
        ),
        ({"action_space": spaces.Discrete(2, start=1), "actions": np.ones(3, np.int64)}, "start at 1, not at 0"),
        ({"action_space": spaces.Discrete(2), "actions": np.full(3, 2)}, "numbers from 2 to 2, but there are 2"),
    ],
)
def test_broken_minari_data_sets(minari, changes, sentence):
    dataset = make_minari(minari, **changes)
    with pytest.raises(UserError, match=f"the Minari data set made-v0: .*{sentence}"):
        read_minari(dataset)


def test_minari_files_with_missing_and_empty_fields(minari, tmp_path):
    import h5py

    dataset = make_minari(minari)
    with h5py.File(Path(dataset.spec.data_path) / "main_data.hdf5", "a") as file:
        for name in ("actions", "rewards", "terminations", "truncations"):
            values = file["episode_0"][name][:0]
            del file["episode_0"][name]
            file["episode_0"][name] = values
    with pytest.raises(UserError, match="made-v0: episode 0 is empty"):
        read_minari("made-v0")
    with h5py.File(Path(dataset.spec.data_path) / "main_data.hdf5", "a") as file:
        del file["episode_0/rewards"]
    with pytest.raises(UserError, match="made-v0: it cannot be read: .*rewards") as raised:
        read_minari("made-v0")
    assert "\n" not in str(raised.value)


def test_minari_keys_and_infos_that_are_not_there(minari):
    dataset = make_minari(minari)
    for given, sentence in [
        ({"keys": ("image",)}, "has the keys|have the keys .*'achieved_goal', 'desired_goal', 'observation'"),
        ({"extras": ("cost",)}, "episode 0 has no info 'cost'; it has: nested, success"),
        ({"extras": ("nested/qvel",)}, "episode 0 has no info 'nested/qvel'"),
    ]:
        with pytest.raises(UserError, match=sentence):
            read_minari(dataset, **given)
    write_minari(recorded(), "flat-v0")
    with pytest.raises(UserError, match="single arrays, which have no keys"):
        read_minari("flat-v0", keys=("observation",))
    with pytest.raises(UserError, match="it has: none"):
        read_minari(write_minari(recorded().replace(extras={}), "bare-v0"), extras=("cost",))
    parts = {"image": spaces.Box(0, 1, (2,)), "mission": spaces.Text(5)}
    texts = {"image": np.zeros((4, 2), np.float32), "mission": ["go"] * 4}
    odd = make_minari(minari, "odd-v0", observation_space=spaces.Dict(parts), observations=texts)
    with pytest.raises(UserError, match="choose from them with keys"):
        read_minari(odd)
    with pytest.raises(UserError, match="'mission' is not an array"):
        read_minari(odd, keys=("image", "mission"))
    assert read_minari(odd, keys=("image",)).spec.obs_shape == (2,)


def test_minari_data_sets_that_cannot_be_opened(minari, tmp_path):
    with pytest.raises(UserError, match="'nobody/nothing-v0': there is neither such a folder nor a data set"):
        read_minari("nobody/nothing-v0")
    folder = write_minari(recorded(), "toy-v0")
    (folder / "data" / "main_data.hdf5").write_bytes(b"not HDF5")
    with pytest.raises(UserError, match="toy-v0: it cannot be read"):
        read_minari("toy-v0")
    (folder / "data" / "metadata.json").write_text("{")
    for source in ("toy-v0", folder):
        with pytest.raises(UserError, match="toy-v0': it cannot be read"):
            read_minari(source)


def test_write_minari_refuses_bad_and_taken_ids(minari):
    write_minari(recorded(), "toy-v0")
    with pytest.raises(UserError, match="'toy-v0' cannot be written: .*already exists"):
        write_minari(recorded(), "toy-v0")
    for name in ("no version", "toy"):
        with pytest.raises(UserError, match=f"'{name}' cannot be written"):
            write_minari(recorded(), name)


def test_minari_is_not_needed_until_it_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    for call in (lambda: read_minari("toy-v0"), lambda: write_minari(recorded(), "toy-v0")):
        with pytest.raises(UserError, match=r"pip install 'zerozoo\[environments\]'"):
            call()


# --- manifests


def test_manifest_beside_the_data(tmp_path, minari):
    data = recorded()
    record = manifest(data, "toy", {"noise": 0.5, "sizes": (1, 2)}, seed=3, reference=(-1.0, 1.0))
    assert (record["maker"], record["config"], record["seed"]) == ("toy", {"noise": 0.5, "sizes": [1, 2]}, 3)
    assert (record["episodes"], record["steps"], record["terminated"]) == (3, 6, 1)
    assert record["return"]["mean"] == pytest.approx(data.returns().mean())
    assert record["sha256"] == digest(data)
    assert record["versions"]["numpy"] == np.__version__
    path = write_npz(tmp_path / "toy.npz", data, record)
    assert read_manifest(path) == record
    folder = write_minari(data, "toy-v0", record)
    assert read_manifest(folder) == record
    assert digest(read_minari(folder, extras=["cost"])) == record["sha256"]
    manifest_path(path).write_text("[")
    with pytest.raises(UserError, match="toy.npz.manifest.json is not a manifest"):
        read_manifest(path)
    assert read_manifest(tmp_path / "other.npz") is None


def test_digest_tells_any_change():
    data = recorded()
    cost = data.extras["cost"].copy()
    cost[0, 0] += 1e-3
    changed = [
        data.replace(reward=data.reward + np.eye(1, 6, 2)[0] * 1e-3),
        data.replace(extras={"cost": cost}),
        data.replace(extras={"price": data.extras["cost"]}),
        data.replace(extras={"cost": data.extras["cost"][..., None]}),
        data.select([1, 0, 2]),
    ]
    digests = {digest(data), *map(digest, changed)}
    assert len(digests) == 6
    assert digest(data.select([0, 1, 2])) == digest(data)

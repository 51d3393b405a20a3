"""Data files: Minari data sets and NPZ files in the D4RL schema, read into and written from `Episodes`.

What a file holds is taken as it is or refused with one sentence that names file and field: nothing is invented, no
end is guessed, no successor is made up. Continuous actions in other units than [-1, 1] need `action_bounds`, low and
high of the action space that the recording was made in; a file that says itself that its actions lie in [-1, 1], such
as one of ours, is never rescaled.
"""

from __future__ import annotations

import importlib
import io
import math
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from zerozoo.control.episodes import Array, Episode, Episodes, as_flags
from zerozoo.control.manifest import write_manifest
from zerozoo.control.spec import GOAL_KEYS, Spec, unit_box
from zerozoo.runs.checkpoints import replace_file
from zerozoo.runs.errors import UserError

Bounds = tuple[Any, Any]  # low and high of the action space: numbers or (m,)
NPZ_FIELDS = ("observations", "actions", "rewards", "terminals", "timeouts")
ACTION_BOUNDS = "metadata/action_bounds"  # [-1, 1] in the files we write, so that nobody rescales them again


def read_minari(
    source: Any,
    keys: Sequence[str] | None = None,
    extras: Sequence[str] = (),
    action_bounds: Bounds | None = None,
) -> Episodes:
    """Episodes of a local Minari data set: a MiniariDataset, its folder, or its id (nothing is downloaded).

    Dict observations are flattened and joined in the order of `keys`; without keys a goal observation is joined as
    observation, achieved_goal, desired_goal, and spec.goal_size is the size of the last. A single key keeps its shape
    (such as an image). extras: names of infos that become extra fields, "a/b" for nested ones; where a data set
    records infos for the reset too, its first row is left out. An episode that ends with neither flag is truncated.

    Raises UserError if the package is missing, if there is no such data set, or if it is broken or does not fit.
    """
    dataset = _open_minari(source)
    with _named(f"the Minari data set {dataset.id}"):
        keys, goal_size = _observation_keys(dataset.observation_space, keys)
        action_space, actions = dataset.action_space, None
        if isinstance(action_space, spaces.Discrete):
            actions = int(action_space.n)
            if action_space.start != 0:
                raise UserError(f"its discrete actions start at {action_space.start}, not at 0")
        elif isinstance(action_space, spaces.Box) and unit_box(action_space):
            action_bounds = None
        elif isinstance(action_space, spaces.Box) and action_bounds is None:
            low, high = action_space.low.tolist(), action_space.high.tolist()
            raise UserError(f"its actions are not in [-1, 1]: give action_bounds, which it says are ({low}, {high})")
        items = [
            _minari_episode(episode, number, keys, extras, action_bounds)
            for number, episode in enumerate(_minari_episodes(dataset))
        ]
        episodes = Episodes.from_list(items)
        size = episodes.spec.action_size if actions is None else actions
        return episodes.replace(spec=Spec(episodes.spec.obs_shape, size, episodes.spec.discrete, goal_size))


def write_minari(episodes: Episodes, dataset_id: str, manifest: Mapping[str, Any] | None = None) -> Path:
    """Writes a Minari data set, "name-v0" or "group/name-v0", to Minari's own folder; returns its folder.

    The folder is that of MINARI_DATASETS_PATH, else ~/.minari/datasets. Extra fields become infos, after a first row of
    zeros for the reset. Images are kept exactly. The manifest is written beside the data set. UserError if there
    is one of that id or the id is malformed.
    """
    minari = _import_minari()
    from minari.data_collector import EpisodeBuffer

    obs, spec = episodes.obs, episodes.spec
    low, high = (0, 255) if obs.dtype == np.uint8 else (-np.inf, np.inf)
    buffers = []
    for number in range(episodes.episodes):
        item = episodes.episode(number)
        infos = {name: np.concatenate([np.zeros_like(values[:1]), values]) for name, values in item.extras.items()}
        buffers.append(
            EpisodeBuffer(
                observations=item.obs,
                actions=item.action,
                rewards=item.reward,
                terminations=item.terminated,
                truncations=item.truncated,
                infos=infos or None,
            )
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it recommends author, e-mail and more; the manifest says what counts
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                observation_space=spaces.Box(low, high, spec.obs_shape, obs.dtype.type),
                action_space=spaces.Discrete(spec.action_size)
                if spec.discrete
                else spaces.Box(-1, 1, (spec.action_size,), np.float32),
                jpeg_encoding=False,
            )
    except (ValueError, TypeError) as error:
        raise UserError(f"the Minari data set {dataset_id!r} cannot be written: {_first_line(error)}") from error
    folder = Path(dataset.spec.data_path).parent
    if manifest is not None:
        write_manifest(folder, manifest)
    return folder


def read_npz(
    path: Path | str,
    extras: Sequence[str] = (),
    action_bounds: Bounds | None = None,
    terminal_successor: str = "refuse",
) -> Episodes:
    """Episodes of an .npz file in the D4RL schema, one row per step; extras name arrays "infos/<name>".

    observations (N, *), actions (N, m) or (N,) integers, rewards (N,), terminals (N,) and timeouts (N,), of which one
    at most is true in a row, and next_observations (N, *), which may be missing. A row with either flag ends an
    episode, and so does the last row. With next_observations, they must continue in the next row wherever an episode
    goes on. Without them, the successor of an episode's last row is unknown: a row that timed out (or is the file's
    last) is dropped, so that its observation becomes the episode's final one; one whose terminal is true must not be
    lost, so the file is refused, unless terminal_successor="repeat": then the row's own observation stands in, which
    no bootstrapped target looks at (but a model of the dynamics would).

    Raises UserError, naming file and field, for anything missing, broken or contradictory.
    """
    if terminal_successor not in ("refuse", "repeat"):
        raise ValueError(f"terminal_successor must be 'refuse' or 'repeat', not {terminal_successor!r}")
    names = [f"infos/{name}" for name in extras]
    with _named(str(path)):
        data = _load_npz(Path(path), names)
        terminated, truncated = (as_flags(name, data[name]) for name in ("terminals", "timeouts"))
        _refuse_both(terminated, truncated, "row {}")
        obs, successors = data["observations"], data.get("next_observations")
        in_unit = np.array_equal(data.get(ACTION_BOUNDS, ()), (-1, 1))
        action = _rescaled(data["actions"], None if in_unit else action_bounds)
        ends = np.flatnonzero(terminated | truncated)
        if len(ends) == 0 or ends[-1] != len(obs) - 1:
            ends = np.append(ends, len(obs) - 1)
        starts = np.append(0, ends[:-1] + 1)
        if successors is not None:
            _check_successors(obs, successors, ends)
        items = []
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            final, end = _final_obs(obs, successors, bool(terminated[end]), end, terminal_successor)
            if end < start:  # a single row that timed out
                continue
            steps = slice(start, end + 1)
            items.append(
                Episode(
                    np.concatenate([obs[steps], final[None]]),
                    action[steps],
                    data["rewards"][steps],
                    terminated[steps],
                    truncated[steps],
                    {name: data[f"infos/{name}"][steps] for name in extras},
                )
            )
        return Episodes.from_list(items)


def write_npz(path: Path | str, episodes: Episodes, manifest: Mapping[str, Any] | None = None) -> Path:
    """Writes an .npz file in the D4RL schema with next_observations, and the manifest, if given, beside it."""
    path = Path(path)
    arrays = {
        "observations": episodes.obs[episodes.obs_index],
        "next_observations": episodes.obs[episodes.obs_index + 1],
        "actions": episodes.action,
        "rewards": episodes.reward,
        "terminals": episodes.terminated,
        "timeouts": episodes.truncated,
        **({} if episodes.spec.discrete else {ACTION_BOUNDS: np.array([-1.0, 1.0])}),
        **{f"infos/{name}": values for name, values in episodes.extras.items()},
    }
    content = io.BytesIO()
    np.savez(content, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content.getvalue())
    if manifest is not None:
        write_manifest(path, manifest)
    return path


def _load_npz(path: Path, wanted: Sequence[str]) -> dict[str, Array]:
    """The arrays of the schema and the wanted others, all with as many rows as there are observations."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise UserError("this is a single array, not an .npz file")
        with loaded as file:
            for name in (*NPZ_FIELDS, *wanted):
                if name not in file:
                    found = ", ".join(sorted(file)) or "nothing"
                    raise UserError(f"the field {name} is missing; the file has: {found}")
            optional = [name for name in ("next_observations", ACTION_BOUNDS) if name in file]
            data = {name: file[name] for name in (*NPZ_FIELDS, *wanted, *optional)}
    except FileNotFoundError:
        raise UserError("there is no such file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:  # a pickle is a ValueError
        raise UserError(f"this cannot be read as an .npz file: {_first_line(error)}") from error
    obs = data["observations"]
    if obs.ndim == 0 or len(obs) == 0:
        raise UserError("the field observations is empty")
    for name, values in ((name, values) for name, values in data.items() if name != ACTION_BOUNDS):
        flat = name in ("rewards", "terminals", "timeouts")
        if values.shape[:1] != obs.shape[:1] or (flat and values.ndim != 1):
            raise UserError(f"the field {name} has shape {values.shape} for {len(obs)} observations")
        if values.dtype.kind not in "fiub":
            raise UserError(f"the field {name} does not hold numbers but {values.dtype}")
    if data.get("next_observations", obs).shape != obs.shape:
        raise UserError(f"next_observations has shape {data['next_observations'].shape}, but observations {obs.shape}")
    return data


def _final_obs(
    obs: Array, successors: Array | None, terminated: bool, end: int, terminal_successor: str
) -> tuple[Array, int]:
    """(final observation, last row kept) of an episode that ends in row `end`; see `read_npz` for the rule."""
    if successors is not None:
        return successors[end], end
    if not terminated:
        return obs[end], end - 1
    if terminal_successor == "repeat":
        return obs[end], end
    raise UserError(
        f"terminals is true in row {end}, but without next_observations what came after is unknown:"
        " add them, or choose terminal_successor='repeat' to let the row's own observation stand in"
    )


def _check_successors(obs: Array, successors: Array, ends: Array) -> None:
    """Refuses next_observations that do not continue inside an episode: then ends are missing or rows were shuffled."""
    inside = np.ones(len(obs), bool)
    inside[ends] = False
    rows = np.flatnonzero(inside)
    same = np.isclose(successors[rows], obs[rows + 1], rtol=1e-5, atol=1e-5, equal_nan=True)
    same = same.all(axis=tuple(range(1, same.ndim)))
    if not same.all():
        row = int(rows[np.argmin(same)])
        raise UserError(
            f"next_observations of row {row} is not the observation of row {row + 1}, though no terminal or timeout"
            " ends the episode there: mark the ends, or keep the rows in the order in which they were recorded"
        )


def _import_minari() -> Any:
    try:
        importlib.import_module("h5py")  # Minari's usual format needs it, but Minari only says so when it reads
        return importlib.import_module("minari")
    except ImportError:
        raise UserError("Minari data sets need the package minari: pip install 'zerozoo[environments]'") from None


def _open_minari(source: Any) -> Any:
    minari = _import_minari()
    if isinstance(source, minari.MinariDataset):
        return source
    folders = [path for path in (Path(source) / "data", Path(source)) if (path / "metadata.json").is_file()]
    with _named(f"the Minari data set {str(source)!r}"):
        if folders:
            return _guarded(lambda: minari.MinariDataset(folders[0]))
        try:
            return minari.load_dataset(str(source), download=False)
        except FileNotFoundError:
            raise UserError("there is neither such a folder nor a data set of this id in Minari's own") from None
        except Exception as error:
            raise UserError(f"it cannot be read: {_first_line(error)}") from error


def _guarded(read: Any) -> Any:
    """Runs a reader of Minari, which raises whatever its storage does when a file is broken."""
    try:
        return read()
    except Exception as error:
        raise UserError(f"it cannot be read: {_first_line(error)}") from error


def _minari_episodes(dataset: Any) -> Iterator[Any]:
    iterator = iter(dataset)
    while (episode := _guarded(lambda: next(iterator, None))) is not None:
        yield episode


def _observation_keys(space: spaces.Space, keys: Sequence[str] | None) -> tuple[Sequence[str] | None, int]:
    """(keys to join, size of the goal at the end); (None, 0) for observations that are one array."""
    if isinstance(space, spaces.Box):
        if keys is not None:
            raise UserError(f"its observations are single arrays, which have no keys {list(keys)}")
        return None, 0
    if not isinstance(space, spaces.Dict):
        raise UserError(f"its observations are neither arrays nor dicts of arrays: {space}")
    if keys is None and set(space.spaces) == set(GOAL_KEYS):
        keys = GOAL_KEYS
    if not keys or not set(keys) <= set(space.spaces):
        raise UserError(f"its observations have the keys {sorted(space.spaces)}: choose from them with keys=(...)")
    for key in keys:
        if not isinstance(space[key], spaces.Box):
            raise UserError(f"its observation {key!r} is not an array: {space[key]}")
    goal = space["desired_goal"].shape if keys[-1] == "desired_goal" and len(keys) > 1 else None
    return keys, 0 if goal is None else math.prod(goal)


def _minari_episode(
    episode: Any, number: int, keys: Sequence[str] | None, extras: Sequence[str], bounds: Bounds | None
) -> Episode:
    obs = episode.observations
    if keys is not None:
        parts = [np.asarray(obs[key]) for key in keys]
        obs = parts[0] if len(parts) == 1 else np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    action = np.asarray(episode.actions)
    terminated, truncated = np.asarray(episode.terminations), np.asarray(episode.truncations)
    _refuse_both(terminated.astype(bool), truncated.astype(bool), f"step {{}} of episode {number}")
    fields = {name: _info(episode.infos, name, number, len(action)) for name in extras}
    return Episode(obs, _rescaled(action, bounds), episode.rewards, terminated, truncated, fields)


def _info(infos: Any, name: str, number: int, steps: int) -> Array:
    value = infos
    for part in name.split("/"):
        if not isinstance(value, Mapping) or part not in value:
            found = ", ".join(sorted(infos or {})) or "none"
            raise UserError(f"episode {number} has no info {name!r}; it has: {found}")
        value = value[part]
    values = np.asarray(value)
    if values.shape[:1] not in ((steps,), (steps + 1,)):
        raise UserError(f"the info {name!r} of episode {number} has shape {values.shape} for {steps} steps")
    return values[len(values) - steps :]


def _refuse_both(terminated: Array, truncated: Array, place: str) -> None:
    both = terminated & truncated
    if both.any():
        raise UserError(
            f"terminated and truncated are both true in {place.format(int(np.argmax(both)))}: keep the one that"
            " ended the episode (terminated, if the task was over)"
        )


def _rescaled(action: Array, bounds: Bounds | None) -> Array:
    """Continuous actions (T, m) from [low, high] to [-1, 1]; without bounds and for discrete ones nothing changes."""
    if bounds is None:
        return action
    low, high = np.asarray(bounds[0], np.float64), np.asarray(bounds[1], np.float64)
    sizes = {side.shape for side in (low, high)} - {()}
    if action.dtype.kind != "f" or action.ndim != 2 or not sizes <= {action.shape[1:]}:
        raise UserError(f"action_bounds {bounds} do not fit actions of shape {action.shape} and type {action.dtype}")
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise UserError(f"action_bounds must be finite with low < high, not {bounds}")
    return 2 * (action - low) / (high - low) - 1


@contextmanager
def _named(place: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

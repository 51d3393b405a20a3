from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from zerozoo.environments import data
from zerozoo.environments.batched.comb_lock import CombLock
from zerozoo.environments.batched.hazards import Hazards, constraint
from zerozoo.environments.batched.pendulum import Pendulum
from zerozoo.environments.batched.point_maze import PointMaze
from zerozoo.environments.batched.world import BatchedWorld
from zerozoo.environments.controllers import expert, random_actor
from zerozoo.environments.mazes import Maze
from zerozoo.runs.errors import UserError

Episode = dict[str, Any]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


MAKERS: dict[str, Callable[[np.random.Generator], list[Episode]]] = {
    "narrow": lambda rng: data.narrow(rng, 3000, goal_cells=[(1, 1)], copies=20),
    "undirected": lambda rng: data.undirected(rng, 3000, goal_cell=(1, 1), copies=20),
    "continuing": lambda rng: data.undirected(rng, 3000, goal_cell=(1, 1), copies=20, terminal=False),
    "partial": lambda rng: data.partial_coverage(rng, 3000, start_cell=(1, 1), goal_cell=(7, 10), copies=20),
    "mixed": lambda rng: data.mixed_quality(rng, 15),
    "sticky": lambda rng: data.mixed_quality(rng, 15, sticky=0.3),
    "epsilon": lambda rng: data.epsilon_expert(rng, 3000, world=CombLock(100, horizon=7), epsilon=1 / 7),
    "hazards": lambda rng: data.hazard_mixture(rng, 3000, copies=10),
    "half-random": lambda rng: data.half_random(rng, goal_cell=(1, 1)),
    "imitation": lambda rng: data.imitation(rng, goal_cell=(1, 1)),
    "medium-expert": lambda rng: data.medium_expert(rng, 16),
}
every_maker = pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)


@every_maker
def test_episodes_have_the_agreed_form(maker: Callable[[np.random.Generator], list[Episode]]) -> None:
    episodes = maker(rng())
    assert sum(len(episode["reward"]) for episode in episodes) >= 3000
    for episode in episodes:
        length = len(episode["reward"])
        assert length > 0
        assert episode["obs"].shape[0] == length + 1
        assert episode["obs"].dtype == episode["action"].dtype == episode["reward"].dtype == np.float32
        assert np.abs(episode["action"]).max() <= 1
        for name in ("obs", "action", "reward"):
            assert np.isfinite(episode[name]).all()
        for name in ("action", "terminated", "truncated", *episode["extras"]):
            values = episode["extras"].get(name, episode.get(name))
            assert len(values) == length
        ended = episode["terminated"] | episode["truncated"]
        assert ended.tolist() == [False] * (length - 1) + [True]
        assert not (episode["terminated"] & episode["truncated"]).any()


@every_maker
def test_the_generator_alone_decides(maker: Callable[[np.random.Generator], list[Episode]]) -> None:
    first, again, other = maker(rng(1)), maker(rng(1)), maker(rng(2))
    assert len(first) == len(again)
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a["obs"], b["obs"])
        assert np.array_equal(a["action"], b["action"])
    assert not np.array_equal(first[0]["obs"][0], other[0]["obs"][0])


@pytest.mark.parametrize(
    "world", [Pendulum(3, time_limit=40), PointMaze(30, "umaze", time_limit=40), Hazards(30, time_limit=40)]
)
def test_a_recording_is_what_the_world_did(world: BatchedWorld) -> None:
    """Every transition, played again from its own observation's state, gives the recorded successor and reward."""
    episodes = data.record(world, random_actor(world), rng(3), 100)
    assert sum(len(episode["reward"]) for episode in episodes) == 100 * world.copies
    episode = max(episodes, key=lambda episode: len(episode["reward"]))
    single = type(world)(1, time_limit=1000)
    single.reset(rng())
    obs = episode["obs"][0].astype(np.float64)
    state = {**single.state()}
    if isinstance(world, Pendulum):
        state |= {"angle": np.arctan2(obs[1:2], obs[:1]), "velocity": obs[2:3]}
    elif isinstance(world, Hazards):
        state |= {"x": obs[:1], "y": obs[1:2], "speed": obs[2:3], "heading": np.arctan2(obs[4:5], obs[3:4])}
    else:
        state |= {"x": obs[:1], "y": obs[1:2], "vx": obs[2:3], "vy": obs[3:4]}
        state |= {"goal_x": np.array([9.0])}  # far away: this episode never came there
        assert not episode["terminated"].any()
    single.load_state(state)
    for step, action in enumerate(episode["action"][:20]):
        outcome = single.step(action[None])
        assert outcome.next_obs[0] == pytest.approx(episode["obs"][step + 1], abs=1e-4)
        assert outcome.reward[0] == pytest.approx(episode["reward"][step], abs=1e-4)


def test_recording_counts_and_cuts() -> None:
    episodes = data.record(Pendulum(3, time_limit=40), random_actor(Pendulum(3)), rng(), 100)
    assert [len(episode["reward"]) for episode in episodes] == [40, 40, 20] * 3
    assert all(episode["truncated"][-1] for episode in episodes)
    assert not np.array_equal(episodes[0]["obs"][-1], episodes[1]["obs"][0])  # the reset is not in the data


def test_narrow_data_goes_to_the_goal() -> None:
    episodes = data.narrow(rng(), 10_000, goal_cells=[(1, 1)], copies=20)
    whole = [episode for episode in episodes if episode["terminated"][-1]]
    assert len(whole) > len(episodes) - 40  # one cut episode per copy and batch
    goal = Maze("umaze").centre((1, 1))
    for episode in whole:
        assert episode["reward"].tolist() == [0] * (len(episode["reward"]) - 1) + [1]
        assert np.linalg.norm(episode["obs"][-1, :2] - goal) <= 0.45 + 1e-6


def test_stitching_policies_stay_in_their_cells() -> None:
    maze = Maze("umaze")
    region = [(3, 1), (3, 2), (3, 3)]
    episodes = data.narrow(
        rng(), 2000, goal_cells=region, start_cells=region, noise=0.5, successful_only=True, copies=20
    )
    assert sum(len(episode["reward"]) for episode in episodes) >= 2000
    assert all(episode["terminated"][-1] for episode in episodes)
    cells = np.unique(np.concatenate([maze.cell_of(episode["obs"][:, :2]) for episode in episodes]), axis=0)
    assert {tuple(cell) for cell in cells.tolist()} <= {*region, (2, 3)}


def test_undirected_data_covers_the_maze_and_is_relabelled() -> None:
    maze, goal = Maze("medium"), (1, 1)
    episodes = data.undirected(rng(), 20_000, layout="medium", goal_cell=goal, copies=50)
    visited = np.concatenate([maze.number_of(episode["obs"][:, :2]) for episode in episodes])
    assert np.array_equal(np.unique(visited), np.arange(len(maze.cells)))
    centre = maze.centre(goal)
    rewarded = 0
    for episode in episodes:
        distance = np.linalg.norm(episode["obs"][:, :2].astype(np.float64) - centre, axis=-1)
        assert np.array_equal(episode["reward"], (distance[1:] <= 0.45).astype(np.float32))
        assert np.array_equal(episode["terminated"], distance[1:] <= 0.45)
        assert np.array_equal(episode["extras"]["success"], distance[1:] <= 0.45)
        assert (distance[:-1] > 0.45).all()  # nobody acts at the goal
        rewarded += int(episode["reward"].sum())
    assert rewarded > 5
    # Speeds and directions are many: the target changes on the way.
    assert len(episodes) > 20_000 / 300


def test_continuing_data_keep_every_step() -> None:
    kept = data.undirected(rng(), 6000, goal_cell=(1, 1), copies=20, terminal=False)
    assert sum(len(episode["reward"]) for episode in kept) == 6000
    assert not any(episode["terminated"].any() for episode in kept)
    assert sum(int(episode["reward"].sum()) for episode in kept) > 100  # a stay at the goal pays every step


def test_relabel_ends_episodes_by_the_new_goal_alone() -> None:
    episodes = data.narrow(rng(), 2000, goal_cells=[(1, 1)], copies=20)
    other = Maze("umaze").centre((3, 1))
    for episode in data.relabel(episodes, other):
        reached = np.linalg.norm(episode["obs"][-1, :2] - other) <= 0.45
        assert episode["terminated"][-1] == reached
        assert episode["truncated"][-1] == (not reached)
    dense = data.relabel(episodes, other, kind="dense", terminal=False)
    distance = np.linalg.norm(dense[0]["obs"][1:, :2].astype(np.float64) - other, axis=-1)
    assert dense[0]["reward"] == pytest.approx(np.exp(-distance))
    assert np.array_equal(dense[0]["terminated"], episodes[0]["terminated"])


def test_partial_coverage_leaves_the_second_half_out() -> None:
    maze = Maze("large")
    start, goal = maze.indices([(1, 1), (7, 10)])
    episodes = data.partial_coverage(rng(), 20_000, start_cell=(1, 1), goal_cell=(7, 10), copies=50)
    visited = np.unique(np.concatenate([maze.number_of(episode["obs"][:, :2]) for episode in episodes]))
    near = maze.distances[start] <= maze.distances[start, goal] / 2
    assert visited.tolist() == np.flatnonzero(near).tolist()
    assert not any(episode["reward"].any() for episode in episodes)
    jumps = [np.abs(np.diff(episode["obs"][:, :2], axis=0)).max() for episode in episodes]
    assert max(jumps) < 0.06  # nothing is glued together where steps were left out
    with pytest.raises(UserError, match="not a part of the way"):
        data.partial_coverage(rng(), 100, start_cell=(1, 1), goal_cell=(7, 10), share=1.0)
    with pytest.raises(UserError, match="not a part of the way"):
        data.partial_coverage(rng(), 100, start_cell=(1, 1), goal_cell=(7, 10), share=0.01)


def test_mixed_quality_grows_with_c() -> None:
    returns = {}
    for quality in (0.0, 0.5, 1.0):
        episodes = data.mixed_quality(rng(), 100, quality=quality)
        assert [len(episode["reward"]) for episode in episodes] == [200] * 100
        assert {float(episode["extras"]["quality"][0]) for episode in episodes} == {quality}
        returns[quality] = np.mean([episode["reward"].sum() for episode in episodes])
    assert returns[0.0] < -900 < returns[0.5] - 200
    assert returns[0.5] < returns[1.0]
    mixed = data.mixed_quality(rng(), 300)
    quality = np.array([episode["extras"]["quality"][0] for episode in mixed])
    total = np.array([episode["reward"].sum() for episode in mixed])
    assert quality.min() < 0.05
    assert quality.max() > 0.95
    assert np.corrcoef(quality, total)[0, 1] > 0.6
    ladder = data.mixed_quality(rng(), world=Pendulum(3, time_limit=5), quality=np.array([0.0, 0.5, 1.0]))
    assert [float(episode["extras"]["quality"][0]) for episode in ladder] == [0.0, 0.5, 1.0]


def test_sticky_actions_repeat() -> None:
    def repeated(sticky: float) -> float:
        episodes = data.mixed_quality(rng(), 50, quality=0.5, sticky=sticky)
        return float(np.mean([(np.diff(episode["action"], axis=0) == 0).mean() for episode in episodes]))

    assert repeated(0.0) == 0.0
    assert repeated(0.3) == pytest.approx(0.3, abs=0.02)


def test_first_episodes_of_a_world_that_terminates() -> None:
    episodes = data.mixed_quality(rng(), world=PointMaze(40, "umaze"), quality=1.0)
    assert len(episodes) == 40
    assert all(episode["terminated"][-1] for episode in episodes)
    assert len({len(episode["reward"]) for episode in episodes}) > 10


def test_epsilon_expert_on_the_comb_lock() -> None:
    world = CombLock(500, horizon=5, lock=2)
    clean = data.epsilon_expert(rng(), 5000, world=world, epsilon=0.0)
    assert np.mean([episode["reward"].sum() for episode in clean]) > 0.98
    assert [len(episode["reward"]) for episode in clean] == [5] * 1000
    noisy = data.epsilon_expert(rng(), 5000, world=world, epsilon=0.2)
    corner = np.mean([(np.abs(episode["action"]) == 1).all(axis=1).mean() for episode in noisy])
    assert corner == pytest.approx(0.8, abs=0.02)


def test_hazard_mixture_has_its_three_parts() -> None:
    episodes = data.hazard_mixture(rng(), 30_000, copies=50)
    sources = np.concatenate([episode["extras"]["source"] for episode in episodes])
    assert np.bincount(sources) / len(sources) == pytest.approx([0.4, 0.3, 0.3], abs=0.03)
    cost = [
        np.mean(np.concatenate([e["extras"]["cost"] for e in episodes if e["extras"]["source"][0] == s]))
        for s in (0, 1)
    ]
    assert cost[1] < cost[0]
    for episode in episodes[:50]:
        violated = constraint(episode["obs"][1:]) > 0
        clear = np.abs(constraint(episode["obs"][1:])) > 1e-5
        assert np.array_equal(episode["extras"]["cost"][clear] > 0, violated[clear])
    only = data.hazard_mixture(rng(), 1000, shares=(0.0, 1.0, 0.0), copies=10)
    assert {int(episode["extras"]["source"][0]) for episode in only} == {1}
    with pytest.raises(UserError, match="three numbers that sum to 1"):
        data.hazard_mixture(rng(), 1000, shares=(0.5, 0.5))


def test_hidden_actions_are_gone_and_marked() -> None:
    episodes = data.mixed_quality(rng(), 40)
    labelled = data.choose_labelled(episodes, rng(1))
    assert labelled.sum() == 4
    order = np.argsort([episode["reward"].sum() for episode in episodes])
    assert set(np.flatnonzero(labelled)) <= set(order[:20])
    hidden = data.hide_actions(episodes, labelled)
    for before, after, known in zip(episodes, hidden, labelled, strict=True):
        assert (after["extras"]["is_labelled"] == known).all()
        assert np.array_equal(after["action"], before["action"] if known else np.zeros_like(before["action"]))
        assert np.array_equal(after["obs"], before["obs"])
        assert "is_labelled" not in before["extras"]
    best = data.choose_labelled(episodes, rng(1), share=0.3, pool=(0.7, 1.0))
    assert set(np.flatnonzero(best)) == set(order[28:])
    with pytest.raises(UserError, match="24 episodes cannot be labelled from a pool of 20"):
        data.choose_labelled(episodes, rng(), share=0.6)


def test_reference_returns_are_random_and_expert() -> None:
    low, high = data.reference_returns(Pendulum(200), rng())
    assert -1400 < low < -1000
    assert -200 < high < -100
    low, high = data.reference_returns(PointMaze(100, "umaze", goal_cells=[(1, 1)]), rng())
    assert low < 0.5
    assert high == 1.0


def test_what_cannot_be_made_is_named() -> None:
    with pytest.raises(UserError, match="transitions must be at least 1"):
        data.narrow(rng(), 0, goal_cells=[(1, 1)])
    with pytest.raises(UserError, match="no episode that can be kept"):
        data._until(10, 5, lambda steps: [])
    world = Pendulum(2)
    assert expert(world)(world.reset(rng()), rng()).shape == (2, 1)


def test_steps_outside_the_chosen_cells_are_cut_out() -> None:
    """The way between two of these cells leads through others: its steps go, and no episode jumps over the gap."""
    maze, cells = Maze("umaze"), [(1, 1), (1, 2), (3, 1)]
    episodes = data.undirected(rng(), 4000, goal_cell=(1, 1), cells=cells, copies=20, terminal=False)
    visited = np.unique(np.concatenate([maze.number_of(episode["obs"][:, :2]) for episode in episodes]))
    assert visited.tolist() == sorted(maze.indices(cells).tolist())
    assert max(np.abs(np.diff(episode["obs"][:, :2], axis=0)).max() for episode in episodes) < 0.06
    lengths = [len(episode["reward"]) for episode in episodes]
    assert min(lengths) < 100  # cut
    assert all(episode["truncated"][-1] for episode in episodes)

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from zerozoo.control.networks import Pixels, initialise
from zerozoo.environments import data
from zerozoo.environments.controllers import expert
from zerozoo.environments.levels import ACTIONS, CHANNELS, GridLevels, minigrid_environment
from zerozoo.environments.make import make
from zerozoo.runs.errors import UserError

KINDS = ("SimpleCrossing-S9N2", "LavaCrossing-S9N2", "MultiRoom-N2-S4", "FourRooms", "MiniGrid-LavaGapS6-v0")
kinds = pytest.mark.parametrize("kind", KINDS)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def picture(env: object) -> np.ndarray:
    """The observation that the state of a minigrid environment should give, cell by cell."""
    obs = np.zeros((env.height, env.width, len(CHANNELS)), dtype=np.uint8)
    for column in range(env.width):
        for row in range(env.height):
            thing = env.grid.get(column, row)
            if thing is not None:
                name = {"door": "open door" if getattr(thing, "is_open", False) else "closed door"}.get(
                    thing.type, thing.type
                )
                obs[row, column, CHANNELS.index(name)] = 255
    column, row = env.agent_pos
    obs[row, column, CHANNELS.index("right") + env.agent_dir] = 255
    return obs


@kinds
def test_levels_equal_minigrid_step_for_step(kind: str) -> None:
    seeds = [3, 14, 159, 265, 10_007, 10_008]
    world = GridLevels(6, kind, seeds, cycle=True)
    environments = [minigrid_environment(kind) for _ in seeds]
    obs = world.reset(rng())
    for env, seed, seen in zip(environments, seeds, obs, strict=True):
        env.reset(seed=seed)
        assert np.array_equal(seen, picture(env))
    assert (obs.dtype, set(np.unique(obs))) == (np.uint8, {0, 255})
    generator, wins = rng(1), 0
    for _ in range(600):
        action = np.where(generator.random(6) < 0.4, world.expert_action(), generator.integers(4, size=6))
        outcome = world.step(action)
        over = outcome.terminated | outcome.truncated
        for copy, env in enumerate(environments):
            _, reward, terminated, truncated, _ = env.step({3: 5}.get(int(action[copy]), int(action[copy])))
            assert np.array_equal(outcome.next_obs[copy], picture(env))
            assert outcome.reward[copy] == pytest.approx(reward)
            assert outcome.terminated[copy] == terminated
            assert outcome.truncated[copy] == (truncated and not terminated)
            assert outcome.info["level"][copy] == seeds[copy]
            assert outcome.info["success"][copy] == (terminated and reward > 0)
            if over[copy]:
                env.reset(seed=seeds[copy])
        wins += int(outcome.info["success"].sum())
        world.reset(generator, over)
    assert wins > 5


@kinds
def test_the_expert_takes_a_shortest_way(kind: str) -> None:
    """Against a plain breadth-first search over the states of minigrid."""
    world = GridLevels(20, kind, range(20), cycle=True)
    world.reset(rng())
    expected = world.distances[np.arange(20), world.arrays["state"]]
    assert np.isfinite(expected).all()
    steps = np.zeros(20)
    over = np.zeros(20, dtype=bool)
    actor = expert(world)
    for _ in range(int(expected.max())):
        outcome = world.step(actor(np.zeros((20, 1)), rng()))
        steps += ~over
        over |= outcome.info["success"]
        assert (outcome.terminated <= over).all()  # never into lava
    assert over.all()
    assert np.array_equal(steps, expected)
    for level in range(3):
        assert expected[level] == breadth_first(kind, level)


def breadth_first(kind: str, seed: int) -> int:
    """Fewest steps by searching minigrid itself."""
    env = minigrid_environment(kind)
    env.reset(seed=seed)
    doors = [thing for thing in env.grid.grid if thing is not None and thing.type == "door"]
    start = (tuple(int(value) for value in env.agent_pos), env.agent_dir, False)
    steps, frontier = {start: 0}, [start]
    while frontier:
        state = frontier.pop(0)
        for action in (0, 1, 2, 5):
            env.agent_pos, env.agent_dir, env.step_count = np.array(state[0]), state[1], 0
            for door in doors:
                door.is_open = state[2]
            _, reward, terminated, _, _ = env.step(action)
            if reward > 0:
                return steps[state] + 1
            after = (
                tuple(int(value) for value in env.agent_pos),
                env.agent_dir,
                any(door.is_open for door in doors),
            )
            if not terminated and after not in steps:
                steps[after] = steps[state] + 1
                frontier.append(after)
    raise AssertionError("no way")


def test_a_network_reads_the_channels_as_channels() -> None:
    """All three sides of these observations are 9, so that no shape would tell."""
    world = GridLevels(4, "SimpleCrossing-S9N2", range(4), cycle=True)
    network = initialise(Pixels(world.observation_space.shape), torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    network.convolutions[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    network(torch.from_numpy(world.reset(rng())))
    for channel, thing in (("wall", 2), ("goal", 8)):
        plane = seen[0][:, CHANNELS.index(channel)].reshape(4, -1).numpy()
        assert np.array_equal(plane, world.objects == thing)


def test_levels_of_minigrid_by_their_gymnasium_id() -> None:
    world = GridLevels(2, "MiniGrid-FourRooms-v0", [3, 4], cycle=True)
    assert world.observation_space.shape == (19, 19, len(CHANNELS))
    env = minigrid_environment("MiniGrid-FourRooms-v0")
    env.reset(seed=3)
    assert np.array_equal(world.reset(rng())[0], picture(env))
    for kind in ("MiniGrid-DoorKey-5x5-v0", "MiniGrid-MultiRoom-N4-S5-v0"):  # a key, three doors
        with pytest.raises(UserError, match=f"one door that is closed and not locked; those of {kind} are different"):
            GridLevels(1, kind, [0])


def test_levels_are_drawn_or_cycled() -> None:
    drawn = GridLevels(3000, "FourRooms", [7, 8, 9])
    drawn.reset(rng())
    assert np.bincount(drawn.arrays["level"]).tolist() == pytest.approx([1000] * 3, abs=120)
    cycled = GridLevels(5, "FourRooms", [7, 8, 9], cycle=True)
    cycled.reset(rng())
    cycled.step(np.zeros(5, dtype=np.int64))
    cycled.reset(rng(), np.array([False, True, False, False, True]))
    assert cycled.arrays["level"].tolist() == [0, 1, 2, 0, 1]
    assert cycled.arrays["elapsed"].tolist() == [1, 0, 1, 1, 0]


def test_level_data_say_their_level() -> None:
    world = GridLevels(50, "SimpleCrossing-S9N2", range(10))
    episodes = data.epsilon_expert(rng(), 4000, world=world, epsilon=0.1)
    assert {int(level) for episode in episodes for level in np.unique(episode["extras"]["level"])} == set(range(10))
    for episode in episodes:
        assert len(np.unique(episode["extras"]["level"])) == 1
        assert (episode["obs"].dtype, episode["action"].dtype) == (np.uint8, np.int64)
        goal = episode["obs"][..., CHANNELS.index("goal")]
        assert (goal == goal[0]).all()
    assert np.mean([episode["terminated"][-1] for episode in episodes]) > 0.8
    with pytest.raises(UserError, match="SimpleCrossing-S9N2 cannot be mixed: use epsilon_expert"):
        data.mixed_quality(rng(), world=world)


def test_state_and_single_copy() -> None:
    world = GridLevels(8, "MultiRoom-N2-S4", range(4))
    world.reset(rng())
    for _ in range(12):
        seen = world.step(world.expert_action()).next_obs
    assert np.array_equal(GridLevels(8, "MultiRoom-N2-S4", range(4)).load_state(world.state()), seen)
    env = make("levels", kind="FourRooms", seeds=range(5))
    check_env(env, skip_render_check=True)
    with pytest.raises(ValueError, match=r"must be in 0\.\.3"):
        env.step(len(ACTIONS))


def test_what_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Doors", "MiniGrid-Doors-v0"):
        with pytest.raises(UserError, match=f"Unknown levels '{name}'; choose from: SimpleCrossing-S9N2"):
            GridLevels(1, name, [0])
    with pytest.raises(UserError, match="at least one level seed"):
        GridLevels(1, "FourRooms", [])
    monkeypatch.setitem(sys.modules, "minigrid.envs", None)
    with pytest.raises(UserError, match=r"need the package minigrid: pip install 'zerozoo\[environments\]'"):
        GridLevels(1, "FourRooms", [0])

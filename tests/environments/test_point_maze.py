from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerozoo.environments.batched.point_maze import MASS, RADIUS, PointMaze, goal_reward
from zerozoo.environments.mazes import LAYOUTS, TIME_LIMITS, Maze
from zerozoo.runs.errors import UserError

IDS = {"umaze": "UMaze", "open": "Open", "medium": "Medium", "large": "Large"}


def moved_to(world: PointMaze, **arrays: float) -> PointMaze:
    world.reset(np.random.default_rng(0))
    world.load_state({**world.state(), **{name: np.full(world.copies, value) for name, value in arrays.items()}})
    return world


@pytest.mark.parametrize("layout", LAYOUTS)
def test_geometry_is_that_of_gymnasium_robotics(layout: str) -> None:
    import gymnasium
    import gymnasium_robotics as robotics

    gymnasium.register_envs(robotics)
    spec = gymnasium.spec(f"PointMaze_{IDS[layout]}-v3")
    maze = Maze(layout)
    assert maze.walls.tolist() == [[cell == 1 for cell in row] for row in spec.kwargs["maze_map"]]
    assert spec.max_episode_steps == TIME_LIMITS[layout]
    from gymnasium_robotics.envs.maze.maze_v4 import Maze as Original

    original = Original(spec.kwargs["maze_map"], maze_size_scaling=1, maze_height=0.4)
    for cell in maze.cells:
        centre = original.cell_rowcol_to_xy(cell)
        assert maze.centre(cell).tolist() == centre.tolist()
        position = centre + [0.3, -0.4]
        assert maze.cell_of(position).tolist() == original.cell_xy_to_rowcol(position).tolist() == cell.tolist()


def test_free_motion_equals_mujoco_step_for_step() -> None:
    import gymnasium
    import gymnasium_robotics as robotics

    gymnasium.register_envs(robotics)
    env = gymnasium.make("PointMaze_Open-v3", disable_env_checker=True)
    obs, _ = env.reset(seed=0, options={"reset_cell": [2, 3], "goal_cell": [1, 1]})
    assert env.unwrapped.model.body_mass[-1] == pytest.approx(MASS)
    x, y, vx, vy = obs["observation"]
    goal_x, goal_y = obs["desired_goal"]
    world = moved_to(PointMaze(1, "open"), x=x, y=y, vx=vx, vy=vy, goal_x=goal_x, goal_y=goal_y)
    rng = np.random.default_rng(1)
    for step in range(60):
        action = rng.uniform(-1, 1, size=2) if step < 25 else np.array([-1.0, 0.2])  # up to the speed limit
        obs, reward, *_, info = env.step(action)
        outcome = world.step(action[None])
        state = [world.arrays[name][0] for name in ("x", "y", "vx", "vy")]
        assert np.abs(np.array(state) - obs["observation"]).max() < 1e-9
        assert outcome.reward[0] == reward
        assert outcome.info["success"][0] == info["success"]
    assert world.arrays["vx"][0] < -4.9


def test_a_wall_stops_one_axis_and_lets_the_other_slide() -> None:
    # Cell (1, 1) of the U maze has its centre at (-1, 1) and walls to the left (x = -1.5), above and below (y = 0.5).
    world = moved_to(PointMaze(1, "umaze", start_noise=0), x=-1.39, y=0.7, vx=-4.0, vy=1.0)
    outcome = world.step(np.zeros((1, 2)))
    assert world.arrays["x"][0] == pytest.approx(-1.4, abs=1e-8)  # half side 0.1 away from the wall
    assert world.arrays["vx"][0] == 0
    assert world.arrays["vy"][0] == pytest.approx(1.0 * (1 - 0.01 / (MASS + 0.01)))
    assert world.arrays["y"][0] == pytest.approx(0.7 + 0.01 * world.arrays["vy"][0])
    assert outcome.reward[0] == 0
    # A wall that only the corner touches stops as well: below cell (1, 3) is free, below (1, 2) is a wall.
    world = moved_to(PointMaze(1, "umaze", start_noise=0), x=0.55, y=0.61, vx=0.0, vy=-2.0)
    world.step(np.zeros((1, 2)))
    assert world.arrays["y"][0] == pytest.approx(0.6, abs=1e-8)


def inside_walls(world: PointMaze) -> np.ndarray:
    """Copies of which a corner of the body lies in a wall, by the map alone."""
    position = np.stack([world.arrays["x"], world.arrays["y"]], axis=-1)
    corners = position[:, None] + RADIUS * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    return (world.maze.number_of(corners) < 0).any(axis=1)


@settings(max_examples=25, deadline=None)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    seed=st.integers(0, 2**32 - 1),
    hold=st.integers(1, 60),
    noise=st.sampled_from([0.0, 0.25, 0.399]),
)
def test_no_copy_ever_enters_a_wall(layout: str, seed: int, hold: int, noise: float) -> None:
    """Random forces, held long enough to reach the speed limit, from every cell."""
    rng = np.random.default_rng(seed)
    world = PointMaze(200, layout, start_noise=noise, continuing=True, time_limit=10**6)
    world.reset(rng)
    assert not inside_walls(world).any()
    for step in range(120):
        if step % hold == 0:
            action = rng.choice([-1.0, 0.0, 1.0], size=(200, 2)) * rng.choice([1.0, 0.37])
        outcome = world.step(action)
        assert not inside_walls(world).any()
    assert all(row in world.observation_space for row in outcome.next_obs)
    assert np.isfinite(outcome.next_obs).all()


def test_starts_and_goals_are_chosen_cells() -> None:
    world = PointMaze(500, "umaze", start_cells=[(3, 1), (1, 1)], goal_cells=[(1, 1)], observe_goal=True)
    obs = world.reset(np.random.default_rng(0))
    assert np.unique(world.maze.cell_of(obs[:, :2]), axis=0).tolist() == [[3, 1]]  # never the goal's own cell
    assert np.abs(obs[:, :2] - world.maze.centre((3, 1))).max() == pytest.approx(0.25, abs=0.01)
    assert np.array_equal(obs[:, 4:], np.tile(world.maze.centre((1, 1)), (500, 1)).astype(np.float32))
    assert (obs[:, 2:4] == 0).all()
    assert np.array_equal(world.goal, obs[:, 4:])
    anywhere = PointMaze(2000, "umaze", observe_goal=True, goal_noise=0.25).reset(np.random.default_rng(0))
    maze = Maze("umaze")
    pairs = np.stack([maze.number_of(anywhere[:, :2]), maze.number_of(anywhere[:, 4:])], axis=1)
    assert len(np.unique(pairs, axis=0)) == 7 * 6
    assert (pairs[:, 0] != pairs[:, 1]).all()


def test_rewards_and_ends() -> None:
    close = {"x": 0.0, "y": 1.0, "goal_x": 0.4499, "goal_y": 1.0}
    for options, reward, terminated in (
        ({}, 1.0, True),
        ({"continuing": True}, 1.0, False),
        ({"reach": 0.4}, 0.0, False),
        ({"reward": "dense"}, np.exp(-0.4499), True),
    ):
        outcome = moved_to(PointMaze(1, "umaze", **options), **close).step(np.zeros((1, 2)))
        assert outcome.reward[0] == pytest.approx(reward)
        assert outcome.terminated[0] == terminated
        assert outcome.info["success"][0] == (options.get("reach") is None)
    assert goal_reward(np.array([0.45, 0.4501])).tolist() == [1.0, 0.0]


def test_mazes_of_ones_own() -> None:
    world = PointMaze(3, ["####", "#..#", "####"], time_limit=7)
    assert (world.name, world.time_limit) == ("point-maze-custom", 7)
    assert PointMaze(1, ["####", "#..#", "####"]).time_limit == 300
    assert world.maze.distances.tolist() == [[0, 1], [1, 0]]
    for layout, message in (
        ("tiny", "Unknown maze 'tiny'"),
        (["####", "#.#"], "rows of the same length"),
        (["####", "#ab#", "####"], "only # and"),
        (["####", "#...", "####"], "walls all around"),
        (["###", "#.#", "###"], "at least two free cells"),
        (["#####", "#.#.#", "#####"], "cannot be reached"),
    ):
        with pytest.raises(UserError, match=message):
            Maze(layout)


def test_bad_options_are_named() -> None:
    with pytest.raises(UserError, match=r"\[\(0, 0\)\] must be free cells"):
        PointMaze(1, "umaze", goal_cells=[(0, 0)])
    with pytest.raises(UserError, match="must be free cells"):
        PointMaze(1, "umaze", start_cells=[(9, 1)])
    with pytest.raises(UserError, match="must be free cells"):
        PointMaze(1, "umaze", start_cells=[])
    with pytest.raises(UserError, match="is its goal cell"):
        PointMaze(1, "umaze", start_cells=[(1, 1)], goal_cells=[(1, 1)])
    with pytest.raises(UserError, match="'sparse' or 'dense', not 'step'"):
        PointMaze(1, "umaze", reward="step")
    with pytest.raises(UserError, match="start_noise"):
        PointMaze(1, "umaze", start_noise=0.4)


def test_distances_are_shortest_ways() -> None:
    """Against a plain breadth-first search."""
    maze = Maze("large")
    free = {tuple(cell) for cell in maze.cells}
    for start in ((1, 1), (7, 10)):
        steps, frontier = {start: 0}, [start]
        while frontier:
            row, column = frontier.pop(0)
            for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if cell in free and cell not in steps:
                    steps[cell] = steps[row, column] + 1
                    frontier.append(cell)
        assert maze.distances[maze.number[start]].tolist() == [steps[tuple(cell)] for cell in maze.cells]
    following = maze.next_cells
    everything = np.arange(len(maze.cells))
    gained = maze.distances - maze.distances[following, everything]  # one step nearer, none at the target
    assert np.array_equal(gained, 1 - np.eye(len(everything)))

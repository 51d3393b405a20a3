from __future__ import annotations

import numpy as np
import pytest

from zerozoo.environments.batched.hazards import Hazards
from zerozoo.environments.batched.pendulum import Pendulum
from zerozoo.environments.batched.point_maze import PointMaze
from zerozoo.environments.batched.world import BatchedWorld
from zerozoo.environments.controllers import (
    Actor,
    PendulumExpert,
    WaypointController,
    drive_to_goal,
    expert,
    noisy,
    random_actor,
    wandering,
)
from zerozoo.environments.data import record
from zerozoo.environments.mazes import LAYOUTS, Maze


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_waypoint_controller_reaches_every_cell_from_every_cell(layout: str, noise: float) -> None:
    maze = Maze(layout)
    count = len(maze.cells)
    start, goal = np.divmod(np.arange(count**2), count)
    different = start != goal
    world = PointMaze(int(different.sum()), layout)
    rng = np.random.default_rng(0)
    world.reset(rng)
    state = world.state()
    state["x"], state["y"] = maze.centre(maze.cells[start[different]]).T
    state["goal_x"], state["goal_y"] = maze.centre(maze.cells[goal[different]]).T
    obs = world.load_state(state)
    actor = noisy(expert(world), noise)
    arrived = np.zeros(world.copies, dtype=bool)
    for _ in range(world.time_limit):
        outcome = world.step(actor(obs, rng))
        obs = outcome.next_obs
        arrived |= outcome.terminated
        if arrived.all():
            break
    assert arrived.all()


def test_the_waypoint_controller_is_the_law_it_says() -> None:
    controller = WaypointController(Maze("umaze"))
    # From (3, 1) to (1, 1) the next cell is (3, 2), whose centre is (0, -1); within the goal's cell the goal itself.
    obs = np.array([[-0.95, -1.05, 0.3, -0.2], [-1.02, 1.01, 0.1, 0.0]], dtype=np.float32)
    action = controller(obs, np.array([-1.0, 1.0]))
    assert action[0].tolist() == pytest.approx([1.0, 10 * 0.05 + 0.2], abs=1e-5)
    assert action[1].tolist() == pytest.approx([10 * 0.02 - 0.1, -10 * 0.01], abs=1e-5)


@pytest.mark.parametrize(
    "parameters", [{}, {"gravity": 5.0, "mass": 0.5}, {"gravity": 9.8, "mass": 1.2, "length": 0.9}]
)
def test_the_pendulum_expert_swings_up_and_holds(parameters: dict[str, float]) -> None:
    world = Pendulum(500, **parameters)
    rng = np.random.default_rng(1)
    obs = world.reset(rng)
    actor = expert(world)
    total = np.zeros(500)
    for _ in range(200):
        outcome = world.step(actor(obs, rng))
        obs, total = outcome.next_obs, total + outcome.reward
    assert (obs[:, 0] > 0.99).mean() > 0.99  # upright
    assert total.mean() > -170  # random actions: -1200


def test_the_pendulum_expert_starts_from_rest_at_the_bottom() -> None:
    action = PendulumExpert()(np.array([[-1.0, 0.0, 0.0]], dtype=np.float32))
    assert action.tolist() == [[1.0]]


def test_the_regulator_solves_the_riccati_equation() -> None:
    """Against scipy's solution for the step linearised by hand: angle'' = 15 angle + 3 torque."""
    from scipy import linalg

    dt = 0.05
    step = np.array([[1 + 15 * dt**2, dt], [15 * dt, 1.0]])
    force = np.array([[3 * dt**2], [3 * dt]])
    cost = linalg.solve_discrete_are(step, force, np.diag([1.0, 0.1]), np.array([[0.001]]))
    gain = np.linalg.solve(0.001 + force.T @ cost @ force, force.T @ cost @ step)
    assert PendulumExpert().gain == pytest.approx(gain, rel=1e-6)


def episodes_of(world: BatchedWorld, actor: Actor) -> list[dict[str, np.ndarray]]:
    return record(world, actor, np.random.default_rng(2), world.time_limit)


def test_hazard_drivers() -> None:
    """Both arrive; the one that avoids hazards spends far less time in them."""
    arrived, cost = {}, {}
    for avoid in (False, True):
        world = Hazards(300)
        rng = np.random.default_rng(3)
        obs = world.reset(rng)
        # Starts below the hazards, slow and outside of them; the straight way leads through the first one.
        state = {**world.state(), "x": rng.uniform(-1.2, -0.6, 300), "y": rng.uniform(-2.8, -2.3, 300)}
        obs = world.load_state({**state, "speed": np.full(300, 0.5)})
        success, violations, over = np.zeros(300, bool), np.zeros(300), np.zeros(300, bool)
        for _ in range(world.time_limit):
            outcome = world.step(drive_to_goal(obs, avoid))
            obs = outcome.next_obs
            violations += outcome.info["cost"] * ~over
            success |= outcome.info["success"] & ~over
            over |= outcome.terminated
        arrived[avoid], cost[avoid] = success.mean(), violations.mean()
    assert min(arrived.values()) > 0.95
    assert cost[True] < 0.1 * cost[False]
    assert cost[False] > 3


def test_noise_and_random_actions_stay_in_the_box() -> None:
    world = Pendulum(2000)
    obs, rng = world.reset(np.random.default_rng(4)), np.random.default_rng(5)
    zero: Actor = lambda obs, rng: np.zeros((len(obs), 1))  # noqa: E731
    assert noisy(zero, 0.3)(obs, rng).std() == pytest.approx(0.3, rel=0.05)
    assert np.abs(noisy(zero, 3.0)(obs, rng)).max() == 1.0
    assert noisy(zero, 0) is zero
    uniform = random_actor(world)(obs, rng)
    assert uniform.std() == pytest.approx(1 / np.sqrt(3), rel=0.05)
    assert np.abs(uniform).max() <= 1


def test_wandering_has_the_deviation_and_memory_it_says() -> None:
    actor, rng = wandering(std=0.3, memory=0.8), np.random.default_rng(6)
    obs = np.zeros((4000, 11))
    path = np.stack([actor(obs, rng) for _ in range(12)])
    assert path.shape == (12, 4000, 2)
    assert path.std(axis=(1, 2)) == pytest.approx(np.full(12, 0.3), rel=0.05)
    assert (path[0] * path[1]).mean() / 0.09 == pytest.approx(0.8, abs=0.03)
    assert (path[0] * path[5]).mean() / 0.09 == pytest.approx(0.8**5, abs=0.04)


def test_there_is_no_expert_for_an_unknown_world() -> None:
    class Other(Pendulum):
        pass

    world = Other(1)
    expert(world)  # a kind of pendulum
    with pytest.raises(ValueError, match="no expert for thing"):
        expert(type("Thing", (), {"name": "thing"})())  # type: ignore[arg-type]

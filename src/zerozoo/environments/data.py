"""Makers of offline data: scripted controllers in batched worlds, recorded as episodes.

An episode is a dict: obs (T + 1, *), action (T, m) float32 or (T,) int64, reward (T,) float32, terminated and truncated
(T,) bool (false but for the last step, where exactly one of them is true), extras: name -> (T, ...), what the world
reports of each step. A recording that stops within an episode marks its last step as truncated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from zerozoo.environments.batched.hazards import Hazards
from zerozoo.environments.batched.pendulum import Pendulum
from zerozoo.environments.batched.point_maze import REACH, PointMaze, goal_reward
from zerozoo.environments.batched.world import BatchedWorld
from zerozoo.environments.controllers import (
    Actor,
    WaypointController,
    drive_to_goal,
    expert,
    noisy,
    random_actor,
    wandering,
)
from zerozoo.environments.mazes import Cell, Maze
from zerozoo.runs.errors import UserError

Episode = dict[str, Any]
_STEPWISE = ("action", "reward", "terminated", "truncated")


def record(world: BatchedWorld, actor: Actor, rng: np.random.Generator, steps: int) -> list[Episode]:
    """`steps` steps of every copy from a fresh reset, ended copies reset at once; episodes in the order of the copies.

    Together the episodes have copies * steps transitions.
    """
    obs = world.reset(rng)
    seen = np.empty((world.copies, steps, *obs.shape[1:]), dtype=obs.dtype)
    following = np.empty_like(seen)
    rows, infos = [], []
    for step in range(steps):
        action = actor(obs, rng)
        outcome = world.step(action)
        seen[:, step], following[:, step] = obs, outcome.next_obs
        rows.append((action, outcome.reward, outcome.terminated, outcome.truncated))
        infos.append(outcome.info)
        ended = outcome.terminated | outcome.truncated
        obs = world.reset(rng, ended) if ended.any() else outcome.next_obs

    def flat(column: Sequence[np.ndarray]) -> np.ndarray:  # the steps of one copy together
        return np.stack(column, axis=1).reshape(-1, *column[0].shape[1:])

    log: dict[str, Any] = dict(zip(_STEPWISE, (flat(column) for column in zip(*rows, strict=True)), strict=True))
    log["action"] = log["action"].astype(np.float32 if log["action"].dtype.kind == "f" else np.int64)
    log["reward"] = log["reward"].astype(np.float32)
    log["truncated"][steps - 1 :: steps] |= ~log["terminated"][steps - 1 :: steps]
    log["obs"], log["next_obs"] = (part.reshape(-1, *obs.shape[1:]) for part in (seen, following))
    log["extras"] = {name: flat([info[name] for info in infos]) for name in infos[0]}
    return _split(log, np.ones(len(log["reward"]), dtype=bool))


def _split(log: dict[str, Any], keep: np.ndarray) -> list[Episode]:
    """Cuts transitions (n, ...) into episodes after every end, and around those that `keep` (n,) leaves out."""
    ended = log["terminated"] | log["truncated"]
    last = keep & (ended | ~np.append(keep[1:], False))
    first = keep & np.append(True, (last | ~keep)[:-1])
    episodes = []
    for start, stop in zip(np.flatnonzero(first), np.flatnonzero(last) + 1, strict=True):
        episode = {name: log[name][start:stop].copy() for name in _STEPWISE}
        episode["truncated"][-1] = not episode["terminated"][-1]
        episode["obs"] = np.concatenate([log["obs"][start:stop], log["next_obs"][stop - 1 : stop]])
        episode["extras"] = {name: values[start:stop].copy() for name, values in log["extras"].items()}
        episodes.append(episode)
    return episodes


def _without(episode: Episode, keep: np.ndarray) -> list[Episode]:
    """What is left of one episode (none, one or several) when only the transitions `keep` (T,) stay."""
    return _split({**episode, "obs": episode["obs"][:-1], "next_obs": episode["obs"][1:]}, keep)


def _until(transitions: int, copies: int, batch: Callable[[int], list[Episode]]) -> list[Episode]:
    """Episodes of as many batches(steps a copy) as it takes, up to the one that completes `transitions`."""
    if transitions < 1:
        raise UserError(f"transitions must be at least 1, not {transitions}.")
    episodes: list[Episode] = []
    total = 0
    while total < transitions:
        fresh = batch(-(-transitions // copies))
        if not fresh:
            raise UserError("The controller made no episode that can be kept: change the cells or the noise.")
        for episode in fresh:
            if total < transitions:
                episodes.append(episode)
                total += len(episode["reward"])
    return episodes


def narrow(
    rng: np.random.Generator,
    transitions: int,
    *,
    layout: str | Sequence[str] = "umaze",
    goal_cells: Sequence[Cell],
    start_cells: Sequence[Cell] | None = None,
    noise: float = 0.1,
    successful_only: bool = False,
    copies: int = 100,
) -> list[Episode]:
    """Maze data of the way-point controller on its way to the goal, at least `transitions` steps.

    One goal cell gives D4RL's narrow data; a set of cells as starts and goals gives one data policy of the stitching
    data sets, with `successful_only` (no episode that ends without the goal).
    """
    world = PointMaze(copies, layout, start_cells=start_cells, goal_cells=goal_cells)
    actor = noisy(expert(world), noise)

    def batch(steps: int) -> list[Episode]:
        if not successful_only:
            return record(world, actor, rng, steps)
        made = record(world, actor, rng, max(steps, world.time_limit))
        return [episode for episode in made if episode["terminated"][-1]]

    return _until(transitions, copies, batch)


def undirected(
    rng: np.random.Generator,
    transitions: int,
    *,
    layout: str | Sequence[str] = "umaze",
    goal_cell: Cell,
    cells: Sequence[Cell] | None = None,
    noise: float = 0.5,
    horizon: int = 300,
    terminal: bool = True,
    copies: int = 100,
) -> list[Episode]:
    """Maze data of the way-point controller towards ever new random targets, relabelled for one goal cell.

    Copies draw a new target whenever one is reached and begin anew every `horizon` steps. Starts and targets are
    `cells`, and transitions that touch other cells are left out (None: the whole maze). `terminal`: see `relabel`.
    """
    world = PointMaze(copies, layout, start_cells=cells, continuing=True, time_limit=horizon)
    maze, controller, allowed = world.maze, WaypointController(world.maze), world.maze.indices(cells)
    goal = maze.centre(maze.cells[maze.indices([goal_cell])[0]])

    def draw(count: int) -> np.ndarray:
        return maze.centre(maze.cells[allowed[rng.integers(len(allowed), size=count)]])

    targets = draw(copies)

    def wander(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        reached = ((obs[:, :2] - targets) ** 2).sum(axis=1) <= REACH**2
        targets[reached] = draw(int(reached.sum()))
        return controller(obs, targets)

    def batch(steps: int) -> list[Episode]:
        episodes = []
        for episode in record(world, noisy(wander, noise), rng, steps):
            inside = np.isin(maze.number_of(episode["obs"]), allowed)
            episodes += [episode] if inside.all() else _without(episode, inside[:-1] & inside[1:])
        return relabel(episodes, goal, terminal=terminal)

    return _until(transitions, copies, batch)


def partial_coverage(
    rng: np.random.Generator,
    transitions: int,
    *,
    layout: str | Sequence[str] = "large",
    start_cell: Cell,
    goal_cell: Cell,
    share: float = 0.5,
    noise: float = 0.5,
    copies: int = 100,
) -> list[Episode]:
    """Undirected data of the cells whose way from the start is at most `share` of the way to the goal, no others."""
    maze = Maze(layout)
    start, goal = maze.indices([start_cell, goal_cell])
    near = maze.cells[maze.distances[start] <= share * maze.distances[start, goal]]
    if len(near) < 2 or share >= 1:
        raise UserError(f"A share of {share} is not a part of the way from {start_cell} to {goal_cell}.")
    cells = [(int(row), int(column)) for row, column in near]
    return undirected(rng, transitions, layout=layout, goal_cell=goal_cell, cells=cells, noise=noise, copies=copies)


def half_random(rng: np.random.Generator, *, goal_cell: Cell) -> list[Episode]:
    """60,000 steps of the U maze, half undirected (noise 0.5), half uniformly random, rewarded for one goal cell."""
    world = PointMaze(100, goal_cells=[goal_cell])
    return undirected(rng, 30_000, goal_cell=goal_cell) + record(world, random_actor(world), rng, 300)


def imitation(rng: np.random.Generator, *, goal_cell: Cell) -> list[Episode]:
    """2 expert episodes of the U maze; 60,000 random steps, and 20 other expert episodes that nobody marked.

    Every episode has 300 steps, and none ends at the goal. extras["is_expert"] is true in the first two alone.
    """

    def play(copies: int, steps: int, best: bool) -> list[Episode]:
        world = PointMaze(copies, goal_cells=[goal_cell], continuing=True)
        return record(world, expert(world) if best else random_actor(world), rng, steps)

    episodes = play(2, 300, best=True) + play(100, 600, best=False) + play(20, 300, best=True)
    for number, episode in enumerate(episodes):
        episode["extras"] = {"is_expert": np.full(len(episode["reward"]), number < 2)}
    return episodes


def relabel(
    episodes: Sequence[Episode], goal: np.ndarray, *, kind: str = "sparse", reach: float = REACH, terminal: bool = True
) -> list[Episode]:
    """Maze episodes rewarded for another goal position (2,), by the same function as the world's.

    With `terminal` an episode ends where it reaches the goal, and steps that begin at the goal are left out: the world
    has no such steps. Without, only rewards and "success" change.
    """
    made = []
    for episode in episodes:
        distance = np.linalg.norm(episode["obs"][:, :2].astype(np.float64) - goal, axis=-1)  # (T + 1,)
        reached = distance[1:] <= reach
        changed = {
            **episode,
            "reward": goal_reward(distance[1:], kind, reach).astype(np.float32),
            "extras": {**episode["extras"], "success": reached},
        }
        if terminal:  # the ends of another goal no longer count
            changed["terminated"], changed["truncated"] = reached, np.zeros_like(reached)
            made += _without(changed, distance[:-1] > reach)
        else:
            made.append(changed)
    return made


def mixed_quality(
    rng: np.random.Generator,
    episodes: int = 300,
    *,
    world: BatchedWorld | None = None,
    quality: float | np.ndarray | None = None,
    sticky: float = 0.0,
) -> list[Episode]:
    """One episode per copy of `world` (a pendulum of `episodes` copies) with action c expert + (1 - c) U(-1, 1).

    The quality c is one number, one for each copy, or drawn from U(0, 1) for each (None); it is extras["quality"].
    With probability `sticky` a step repeats the action of the step before instead.
    """
    world = Pendulum(episodes) if world is None else world
    if world.action_space.shape == ():
        raise UserError(f"Actions of {world.name} cannot be mixed: use epsilon_expert.")
    drawn = rng.random(world.copies) if quality is None else np.broadcast_to(quality, world.copies)
    best, uniform, share = expert(world), random_actor(world), drawn[:, None]
    previous: np.ndarray | None = None

    def act(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        nonlocal previous
        action = share * best(obs, rng) + (1 - share) * uniform(obs, rng)
        if sticky and previous is not None:
            action = np.where(rng.random((len(obs), 1)) < sticky, previous, action)
        previous = action
        return action

    made = _first_episodes(world, act, rng)
    for episode, value in zip(made, drawn, strict=True):
        episode["extras"]["quality"] = np.full(len(episode["reward"]), value, dtype=np.float32)
    return made


def medium_expert(rng: np.random.Generator, episodes: int = 300) -> list[Episode]:
    """Pendulum data, the first half of the episodes by the half random controller, the others by the expert."""
    return mixed_quality(rng, episodes, quality=np.repeat([0.5, 1.0], [episodes // 2, episodes - episodes // 2]))


def epsilon_expert(
    rng: np.random.Generator,
    transitions: int,
    *,
    world: BatchedWorld,
    epsilon: float = 0.1,
    actor: Actor | None = None,
) -> list[Episode]:
    """The world's expert, or another actor, each action replaced by a uniform one with probability `epsilon`."""
    best, uniform = actor or expert(world), random_actor(world)

    def act(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        action = best(obs, rng)
        chance = rng.random((len(obs), *(1 for _ in action.shape[1:]))) < epsilon
        return np.where(chance, uniform(obs, rng), action)

    return _until(transitions, world.copies, lambda steps: record(world, act, rng, steps))


def hazard_mixture(
    rng: np.random.Generator,
    transitions: int = 100_000,
    *,
    shares: Sequence[float] = (0.4, 0.3, 0.3),
    copies: int = 100,
) -> list[Episode]:
    """PointRobot data: shares of steps by a goal seeker that ignores hazards, one that avoids them, and at random.

    extras["source"] is 0, 1 or 2 for the three.
    """
    if len(shares) != 3 or abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
        raise UserError(f"shares must be three numbers that sum to 1, not {list(shares)}.")
    world, wander = Hazards(copies), wandering()
    episodes: list[Episode] = []
    for source, share in enumerate(shares):

        def act(obs: np.ndarray, rng: np.random.Generator, source: int = source) -> np.ndarray:
            return wander(obs, rng) if source == 2 else drive_to_goal(obs, avoid=source == 1)

        if wanted := round(share * transitions):
            made = _until(wanted, copies, lambda steps, act=act: record(world, act, rng, steps))  # type: ignore[misc]
            for episode in made:
                episode["extras"]["source"] = np.full(len(episode["reward"]), source, dtype=np.int64)
            episodes += made
    return episodes


def choose_labelled(
    episodes: Sequence[Episode], rng: np.random.Generator, share: float = 0.1, pool: tuple[float, float] = (0.0, 0.5)
) -> np.ndarray:
    """(E,) bool: `share` of all episodes, drawn from those whose rank by return lies in the fractions `pool`."""
    order = np.argsort([episode["reward"].sum(dtype=np.float64) for episode in episodes], kind="stable")
    candidates = order[round(pool[0] * len(order)) : round(pool[1] * len(order))]
    wanted = max(1, round(share * len(order)))
    if wanted > len(candidates):
        raise UserError(f"{wanted} episodes cannot be labelled from a pool of {len(candidates)}.")
    return np.isin(np.arange(len(order)), rng.choice(candidates, size=wanted, replace=False))


def hide_actions(episodes: Sequence[Episode], labelled: np.ndarray) -> list[Episode]:
    """The episodes with extras["is_labelled"] (T,), and actions 0 where `labelled` (E,) is false. Order unchanged."""
    return [
        {
            **episode,
            "action": episode["action"] if known else np.zeros_like(episode["action"]),
            "extras": {**episode["extras"], "is_labelled": np.full(len(episode["reward"]), bool(known))},
        }
        for episode, known in zip(episodes, labelled, strict=True)
    ]


def reference_returns(world: BatchedWorld, rng: np.random.Generator) -> tuple[float, float]:
    """Mean return of the random actor and of the expert, one episode per copy: the pair of a normalised score."""
    low, high = (
        float(np.mean([episode["reward"].sum(dtype=np.float64) for episode in _first_episodes(world, actor, rng)]))
        for actor in (random_actor(world), expert(world))
    )
    return low, high


def _first_episodes(world: BatchedWorld, actor: Actor, rng: np.random.Generator) -> list[Episode]:
    """The first episode of every copy, whole."""
    episodes = record(world, actor, rng, world.time_limit)
    starts = np.cumsum([0, *(len(episode["reward"]) for episode in episodes)])[:-1]
    return [episode for episode, start in zip(episodes, starts, strict=True) if start % world.time_limit == 0]

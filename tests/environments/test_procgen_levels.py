"""Procgen by level: against a made-up envpool whose games are counted by hand, and against the real one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from zerozoo.control.level_splits import LevelEvaluator
from zerozoo.environments.data import record
from zerozoo.environments.levels import GridLevels
from zerozoo.environments.make import make, make_levels
from zerozoo.environments.procgen import GAMES, IMAGE, ProcgenLevels, task_name
from zerozoo.environments.vector import VecEnv
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

COIN, LEFT, STAY, RIGHT = "procgen:coinrun", 1, 4, 7
LIMIT = 20  # of the made-up games


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def distance(level: int) -> int:
    """Steps to the right up to the coin; to the left of the start is lava."""
    return 2 + level % 4 if level < 100 else LIMIT - 1


def frame(level: int, place: int, steps: int) -> np.ndarray:
    return np.broadcast_to(np.array([level % 256, place, steps], dtype=np.uint8), IMAGE)


class Game:
    """As envpool: resets itself in the step after an end, keeps its last frame until then, says who ended it.

    And as dodgeball there: what was played before lets something into the next episode, here one step to the right.
    """

    made: list[Game]

    def __init__(self, task: str, **options: Any) -> None:
        self.task, self.options = task, options
        self.config = {"max_episode_steps": LIMIT}
        self.random = np.random.default_rng(options["seed"])
        self.episodes, self.over = 0, True
        Game.made.append(self)

    def reset(self) -> tuple[np.ndarray, dict[str, Any]]:
        self.level = self.options["start_level"] + int(self.random.integers(self.options["num_levels"]))
        self.place, self.steps, self.over = min(self.episodes, 1), 0, False
        self.episodes += 1
        return self._state()[0], {"level_seed": np.array([self.level])}

    def send(self, action: np.ndarray) -> None:
        assert (action.dtype, action.shape) == (np.int32, (1,))
        self.action = int(action[0])

    def recv(self) -> tuple[Any, ...]:
        if self.over:
            self.reset()
            return self._state()
        self.place += {LEFT: -1, RIGHT: 1}.get(self.action, 0)
        self.steps += 1
        return self._state()

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        self.send(action)
        return self.recv()

    def _state(self) -> tuple[Any, ...]:
        complete = self.place == distance(self.level)
        cut = self.steps == LIMIT  # then the game tells nothing else
        self.over = complete or self.place < 0 or cut
        info = {"level_seed": self.level, "prev_level_seed": self.level, "prev_level_complete": int(complete)}
        return (
            frame(self.level, self.place % 256, self.steps)[None],
            np.array([10.0 * complete], dtype=np.float32),
            np.array([self.over and not cut]),
            np.array([cut]),
            {name: np.array([value]) for name, value in info.items()},
        )


@pytest.fixture
def games(monkeypatch: pytest.MonkeyPatch) -> list[Game]:
    """A made-up envpool; the games that were made."""
    Game.made = []
    known = ["CoinrunEasy-v0", "CoinrunHard-v0", "MazeMemory-v0"]
    package = SimpleNamespace(make=Game, list_all_envs=lambda: known)
    monkeypatch.setitem(sys.modules, "envpool", package)
    return Game.made


# --- what a step gives


def test_steps_ends_successors_and_successes_by_hand(games: list[Game]) -> None:
    """Levels 5, 6 and 9 have their coin after 3, 4 and 3 steps."""
    world = ProcgenLevels(4, COIN, [5, 6, 9], cycle=True)
    assert world.time_limit == LIMIT - 1
    obs = world.reset(rng())
    levels = np.array([5, 6, 9, 5])
    assert np.array_equal(obs, [frame(level, 0, 0) for level in levels])
    places = np.zeros(4, dtype=np.int64)
    for step in range(1, 4):
        action = np.array([RIGHT, RIGHT, STAY, LEFT if step == 2 else RIGHT])
        outcome = world.step(action)
        places += [1, 1, 0, -1 if step == 2 else 1]
        assert np.array_equal(
            outcome.next_obs, [frame(n, place, step) for n, place in zip(levels, places, strict=True)]
        )
        assert outcome.info["level"].tolist() == levels.tolist()
        complete = places == [3, 4, 3, 3]
        assert np.array_equal(outcome.info["success"], complete)
        assert np.array_equal(outcome.terminated, complete)
        assert outcome.reward.tolist() == (10.0 * complete).tolist()
        assert not outcome.truncated.any()
    assert outcome.terminated.tolist() == [True, False, False, False]
    obs = world.reset(rng(), outcome.terminated)
    assert np.array_equal(obs[0], frame(5, 0, 0))  # the same level again, without what the game remembers
    assert np.array_equal(obs[1:], outcome.next_obs[1:])
    dies = world.step(np.array([LEFT, RIGHT, STAY, STAY]))
    assert dies.terminated.tolist() == [True, True, False, False]
    assert dies.info["success"].tolist() == [False, True, False, False]
    assert np.array_equal(dies.next_obs[1], frame(6, 4, 4))


def test_the_time_limit_truncates_and_a_coin_in_the_last_step_counts(games: list[Game]) -> None:
    """In its own last step a game says no more than that its time is over; the step before it tells both apart."""
    world = ProcgenLevels(3, COIN, [3, 100, 100], cycle=True)
    world.reset(rng())
    for step in range(1, LIMIT):
        action = [STAY, RIGHT, STAY]
        outcome = world.step(np.array(action))
        last = step == LIMIT - 1
        assert outcome.truncated.tolist() == [last, False, last]
        assert outcome.terminated.tolist() == [False, last, False]
        assert outcome.info["success"].tolist() == [False, last, False]
    assert np.array_equal(outcome.next_obs[0], frame(3, 0, LIMIT - 1))  # a true successor, to bootstrap from


def test_every_episode_has_a_game_of_its_own_for_its_level(games: list[Game]) -> None:
    world = ProcgenLevels(2, "procgen:coinrun:hard", [30, 41])
    generator = rng(3)
    obs = world.reset(generator)
    started = [obs[:, 0, 0, 0].tolist()]
    for _ in range(40):
        obs = world.reset(generator, np.array([True, False]))
        started.append(obs[:, 0, 0, 0].tolist())
    firsts = [first for first, _ in started]
    assert set(firsts) == {30, 41}
    assert 10 < firsts.count(30) < 31  # drawn, each as likely
    assert len({second for _, second in started}) == 1
    chosen = {name: {game.options[name] for game in games} for name in games[0].options}
    assert chosen["start_level"] == {30, 41}
    assert (chosen["num_levels"], chosen["num_envs"], chosen["channel_first"]) == ({1}, {1}, {False})
    assert {game.task for game in games} == {"CoinrunHard-v0"}
    assert all(game.episodes <= 1 for game in games)
    again = ProcgenLevels(2, "procgen:coinrun:hard", [30, 41])
    assert again.reset(rng(3))[:, 0, 0, 0].tolist() == started[0]  # the same stream, the same levels


def test_a_copy_goes_on_from_its_level_and_its_actions(games: list[Game]) -> None:
    def play(environment: VecEnv, steps: int, seed: int) -> list[Any]:
        generator, seen = rng(seed), []
        for _ in range(steps):
            step = environment.step(generator.choice([LEFT, STAY, RIGHT, RIGHT], size=3))
            seen.append(
                (step.obs[:, 0, 0].tolist(), step.returns.tolist(), step.lengths.tolist(), step.info["level"].tolist())
            )
        return seen

    one, two = (VecEnv(ProcgenLevels(3, COIN, range(8)), generator, ["level"]) for generator in (rng(1), rng(1)))
    one.reset()
    play(one, 7, seed=5)
    assert len(set(one._lengths)) > 1  # the copies are at different steps
    two._generator.bit_generator.state = one._generator.bit_generator.state
    saved = one.state()
    obs = two.load_state(saved)
    assert np.array_equal(obs, saved["obs"])
    assert play(one, 30, seed=6) == play(two, 30, seed=6)
    two.load_state(saved)  # also from the middle of other episodes
    assert np.array_equal(two._obs, saved["obs"])
    with pytest.raises(UserError, match="does not belong to the world 'procgen:coinrun' with 2 copies"):
        ProcgenLevels(2, COIN, range(8)).load_state(two._source.state())


# --- in the library


def test_recordings_say_their_level_and_keep_true_successors(games: list[Game]) -> None:
    world = make_levels(3, COIN, range(6))
    episodes = record(world, lambda obs, rng: rng.choice([STAY, RIGHT, RIGHT], size=len(obs)), rng(), 30)
    assert sum(len(episode["reward"]) for episode in episodes) == 90
    assert sum(bool(episode["terminated"][-1]) for episode in episodes) > 10
    for episode in episodes:
        level, steps = int(episode["extras"]["level"][0]), len(episode["reward"])
        assert (episode["extras"]["level"] == level).all()
        assert (episode["obs"].shape, episode["obs"].dtype) == ((steps + 1, *IMAGE), np.uint8)
        places = np.cumsum([0, *(episode["action"] == RIGHT)])
        assert np.array_equal(episode["obs"], [frame(level, place, step) for step, place in enumerate(places)])
        assert episode["terminated"][-1] == (places[-1] == distance(level)) == episode["extras"]["success"][-1]
        assert episode["reward"].tolist() == [*[0.0] * (steps - 1), 10.0 * episode["terminated"][-1]]


class Runner:
    """Runs to the coin in levels that are even and stays where it is in the others."""

    def act(self, obs: Tensor, explore: bool) -> Tensor:
        return torch.where(obs[:, 0, 0, 0] % 2 == 0, RIGHT, STAY).long()


def test_the_evaluator_plays_each_level_of_procgen_once(games: list[Game], tmp_path: Path) -> None:
    evaluator, run = LevelEvaluator(COIN, 50, 3, 4), Run(tmp_path / "run")
    metrics = evaluator(Runner(), run, 0)
    # Levels 9000, 9001, ... are 40, 41, ... in the frame, 10000 is 16; their coins are 19 steps away.
    assert {name: metrics[f"success/{name}"] for name in evaluator.splits} == {
        "train": 0.5,
        "validation": pytest.approx(2 / 3),
        "test": 0.5,
    }
    assert metrics["return/train"] == 5.0
    assert metrics["gap"] == 0.0
    rows = run.samples()
    assert [row["level"] for row in rows] == [0, 1, 2, 3, 9000, 9001, 9002, 10_000, 10_001, 10_002, 10_003]
    wanted = [distance(row["level"]) if row["level"] % 2 == 0 else LIMIT - 1 for row in rows]
    assert [row["length"] for row in rows] == wanted


def test_one_factory_for_both_kinds_of_levels(games: list[Game]) -> None:
    assert isinstance(make_levels(1, "procgen:maze:memory", [0]), ProcgenLevels)
    env = make("levels", kind=COIN, seeds=range(5))
    assert env.reset(seed=3)[0].shape == IMAGE
    with pytest.raises(ValueError, match=r"must be in 0\.\.14"):
        env.step(15)
    pytest.importorskip("minigrid")
    assert isinstance(make_levels(1, "FourRooms", [0]), GridLevels)


def test_what_cannot_be_made_is_one_sentence(games: list[Game], monkeypatch: pytest.MonkeyPatch) -> None:
    assert task_name("procgen:coinrun") == "CoinrunEasy-v0"
    for kind in ("procgen", "procgen:", "procgen:doors", "procgen:maze:hard", "procgen:coinrun:vast", "procgen:a:b:c"):
        with pytest.raises(UserError, match=f"Unknown levels '{kind}'; write procgen:GAME or procgen:GAME:MODE"):
            make_levels(1, kind, [0])
    with pytest.raises(UserError, match="procgen:coinrun needs at least one level seed"):
        make_levels(1, COIN, [])

    def without_qt(*args: Any, **options: Any) -> None:
        raise ImportError("EnvPool Procgen requires the system Qt 5 runtime on Linux.")

    monkeypatch.setattr(sys.modules["envpool"], "make", without_qt)
    with pytest.raises(UserError, match="needs the Qt 5 libraries of the system: apt-get install libqt5gui5"):
        make_levels(1, COIN, [0])
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(UserError, match=r"need the package envpool: pip install 'zerozoo\[procgen\]'"):
        make_levels(1, COIN, [0])


# --- the real one


@pytest.fixture(scope="module")
def installed() -> None:
    """Skips where envpool or Qt is missing."""
    pytest.importorskip("envpool")
    try:
        make_levels(1, COIN, [0])
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("installed")
def test_all_games_of_envpool_are_known_and_make_images() -> None:
    for game in GAMES:
        world = make_levels(1, f"procgen:{game}", [3])
        assert world.reset(rng()).shape == (1, *IMAGE)
        assert world.time_limit in (499, 999, 3999, 5999)


@pytest.mark.usefixtures("installed")
def test_a_level_is_the_same_in_every_episode_and_its_last_frame_is_its_own() -> None:
    """Level 10,001 of dodgeball is another one in envpool's second episode of the same game."""
    for kind, seeds in (("procgen:dodgeball", [10_001, 10_001]), (COIN, [1, 1])):
        world, actions = make_levels(2, kind, seeds, cycle=True), rng(1)
        episodes: list[list[np.ndarray]] = []
        pressed = actions.integers(15, size=400) if kind != COIN else actions.choice([5, 7, 8], size=400)
        for _ in range(3):
            frames = [world.reset(rng())]
            for action in pressed:
                outcome = world.step(np.array([action, action]))
                frames.append(outcome.next_obs)
                if outcome.terminated.any():
                    break
            assert outcome.terminated.all()
            episodes.append(frames)
        assert len({len(frames) for frames in episodes}) == 1
        assert all(np.array_equal(frames, episodes[0]) for frames in episodes)
        first, last = episodes[0][0], episodes[0][-1]
        assert np.array_equal(first[0], first[1])
        # The camera moves with the agent: a frame of the next episode would be the first one again.
        changes = [np.abs(other.astype(int) - last).mean() for other in (first, episodes[0][-2])]
        assert changes[0] > changes[1] > 0


@pytest.mark.usefixtures("installed")
def test_the_real_game_goes_on_from_its_actions_and_passes_gymnasiums_check() -> None:
    world, other = (make_levels(3, "procgen:leaper", range(20)) for _ in range(2))
    world.reset(rng(2))
    generator = rng(5)
    for _ in range(25):
        outcome = world.step(generator.integers(15, size=3))
        obs = world.reset(generator, outcome.terminated) if outcome.terminated.any() else outcome.next_obs
    assert np.array_equal(other.load_state(world.state()), obs)
    for _ in range(5):
        action = generator.integers(15, size=3)
        assert np.array_equal(world.step(action).next_obs, other.step(action).next_obs)
    check_env(make("levels", kind=COIN, seeds=range(5)), skip_render_check=True)

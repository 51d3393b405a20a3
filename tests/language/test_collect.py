"""Tasks that are drawn and answered ahead of their step: by which weights, in which order, and what a kill leaves."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import make_loop, make_tasks, odd, one_some_all, weights, without_clock

from zerozoo.language.algorithm import Algorithm
from zerozoo.language.models import LanguageModel
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import AsyncSampler, Decoding, Pending, Samples
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.staleness import written_by
from zerozoo.language.turns import TurnSampler
from zerozoo.language.zero_rl import ZeroRL
from zerozoo.runs.errors import UserError


def watched(loop: ZeroRL) -> list[tuple[Rollouts, torch.Tensor]]:
    """The rollouts of every update from now on, and the weights before it."""
    seen: list[tuple[Rollouts, torch.Tensor]] = []
    update = loop.updater.update

    def watch(rollouts: Rollouts, *arguments: Any) -> dict[str, float]:
        seen.append((rollouts, weights(loop)))
        return update(rollouts, *arguments)

    loop.updater.update = watch
    return seen


def questions(rollouts: Rollouts) -> list[str]:
    return [task.question for task in rollouts.tasks]


# --- which weights write what


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_responses_are_those_of_the_weights_so_many_updates_before(tmp_path: Path, lag: int) -> None:
    """Recomputed with a copy of every version of the weights."""
    loop = make_loop(tmp_path, rule=odd, tasks=make_tasks(7), steps=6, max_lag=lag)
    seen, models = watched(loop), [copy.deepcopy(loop.policy.model)]
    save = loop.collector.publish

    def publish(version: int) -> None:
        models[version : version + 1] = [copy.deepcopy(loop.policy.model)]
        save(version)

    loop.collector.publish = publish  # type: ignore[method-assign]
    loop.train()
    for step, (rollouts, _) in enumerate(seen, start=1):
        version = max(0, step - 1 - lag)
        written = rollouts.written()
        assert (rollouts.samples.versions[written] == version).all()
        assert not rollouts.samples.versions[~written].any()
        distances = [
            (loop.updater.scores(model, rollouts) - rollouts.samples.logprobs).abs().max() for model in models[:step]
        ]
        assert distances[version] < 1e-4
        assert all(distance > 1e-3 for other, distance in enumerate(distances) if other != version)
    rows = loop.run.history()[1:]
    if lag:
        assert [row["staleness/mean"] for row in rows] == [min(step, lag) for step in range(6)]
        assert [row["staleness/highest"] for row in rows] == [min(step, lag) for step in range(6)]
        assert [row["staleness/older_tokens"] for row in rows] == [0.0] + [1.0] * 5
        assert {row["staleness/dropped"] for row in rows} == {row["staleness/mixed_rows"] for row in rows} == {0.0}
    else:
        assert not [name for row in rows for name in row if name.startswith("staleness/")]


def test_without_updates_the_lag_changes_no_number(tmp_path: Path) -> None:
    """The same tasks, random numbers, responses and metrics; also the deck and the streams at the end."""
    results = []
    for lag in (0, 2, 50):
        loop = make_loop(tmp_path / str(lag), rule=odd, tasks=make_tasks(7), steps=5, max_lag=lag)
        loop.base_rates = [0.0]
        loop.train()
        rows = [
            {name: value for name, value in row.items() if not name.startswith("staleness/")}
            for row in without_clock(loop.run.history())
        ]
        results.append((rows, loop.run.samples(), loop.run.load().state, loop.run.streams.state()))
    assert results[0] == results[1] == results[2]
    assert results[0][2]["deck"]["passes"] == 3  # two steps make a pass


def test_a_lag_trains_otherwise_and_always_in_the_same_way(tmp_path: Path) -> None:
    loops = []
    for name, lag in (("a", 2), ("b", 2), ("c", 0)):
        loops.append(make_loop(tmp_path / name, rule=odd, tasks=make_tasks(7), steps=5, max_lag=lag))
        loops[-1].train()
    first, again, none = ((weights(loop), without_clock(loop.run.history())) for loop in loops)
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert not torch.equal(first[0], none[0])
    assert loops[0].run.samples()[0]["response"] == loops[2].run.samples()[0]["response"]


# --- a sampler that writes beside the loop


class Noting:
    """An asynchronous sampler that notes what it is asked for; the responses are made when they are fetched."""

    def __init__(self, policy: LanguageModel) -> None:
        self.native, self.version = NativeSampler(policy), -1
        self.events: list[str] = []
        self.batches = 0

    def publish(self, version: int) -> None:
        self.version = version
        self.events.append(f"publish {version}")

    def sample(
        self, prompts: Sequence[Sequence[int]], samples: int, decoding: Decoding, generator: torch.Generator
    ) -> Samples:
        self.events.append("sample")
        return written_by(self.native.sample(prompts, samples, decoding, generator), self.version)

    def submit(
        self, prompts: Sequence[Sequence[int]], samples: int, decoding: Decoding, generator: torch.Generator
    ) -> Pending:
        self.batches += 1
        number, version = self.batches, self.version
        self.events.append(f"submit {number}")
        uniforms = self.native.uniforms(len(prompts) * samples, decoding, generator)

        class Later:
            def result(_) -> Samples:  # noqa: N805
                self.events.append(f"result {number}")
                return written_by(self.native.write(prompts, samples, decoding, uniforms), version)

        return Later()


def asynchronous(directory: Path, **options: Any) -> ZeroRL:
    loop = make_loop(directory, rule=odd, tasks=make_tasks(7), evaluate_every=100, **options)
    loop.sampler = loop.collector.sampler = Noting(loop.policy)
    loop.evaluation_sampler = NativeSampler(loop.policy)
    return loop


def test_an_asynchronous_sampler_is_given_work_before_its_results_are_awaited(tmp_path: Path) -> None:
    loop = asynchronous(tmp_path, steps=4, max_lag=2)
    assert isinstance(loop.sampler, AsyncSampler)
    loop.train()
    wanted = """publish 0, submit 1, submit 2, submit 3, result 1, publish 1, submit 4, result 2, publish 2, result 3,
        publish 3, result 4, publish 4"""
    assert loop.sampler.events == [event.strip() for event in wanted.split(",")]
    assert not loop.collector.under_way
    assert loop.deck.passes == 2
    assert loop.deck.dealt == 6
    assert {"seconds/publish", "seconds/sample"} <= set(loop.run.history()[-1])


def test_without_a_lag_an_asynchronous_sampler_gives_the_numbers_of_a_plain_one(tmp_path: Path) -> None:
    plain = make_loop(tmp_path / "plain", rule=odd, tasks=make_tasks(7), evaluate_every=100, steps=4)
    loop = asynchronous(tmp_path / "asynchronous", steps=4)
    for one in (plain, loop):
        one.train()
    assert without_clock(plain.run.history()) == without_clock(loop.run.history())
    assert torch.equal(weights(plain), weights(loop))
    assert loop.sampler.events[:4] == ["publish 0", "submit 1", "result 1", "publish 1"]


# --- kill and resume


class Killed(BaseException):
    """Ends a run from inside as a kill does: nothing catches it."""


def killed_in(loop: ZeroRL, step: int) -> None:
    """Train, and die in the middle of `step`."""
    credit = loop._credit

    def dying(rollouts: Rollouts) -> Any:
        if rollouts.step == step:
            raise Killed
        return credit(rollouts)

    loop._credit = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        loop.train()


@pytest.mark.parametrize("make", [make_loop, asynchronous], ids=["plain", "asynchronous"])
@pytest.mark.parametrize(("lag", "killed"), [(1, 3), (2, 5), (4, 6), (4, 8)])
def test_a_resumed_run_trains_the_tasks_of_an_unbroken_one_each_once(
    tmp_path: Path, make: Any, lag: int, killed: int
) -> None:
    """With checkpoints every two steps. What was under way is drawn again, by the same random numbers."""
    options = {"steps": 8, "max_lag": lag, "checkpoint_every": 2}
    if make is make_loop:
        options |= {"rule": odd, "tasks": make_tasks(7)}
    unbroken = make(tmp_path / "unbroken", **options)
    seen = watched(unbroken)
    unbroken.train()
    begun = make(tmp_path / "run", **options)
    before = watched(begun)
    killed_in(begun, killed)
    resumed = make(tmp_path / "run", **options)
    after = watched(resumed)
    resumed.train()
    kept = (killed - 1) // 2 * 2  # the last checkpoint
    assert len(before) == killed - 1
    assert len(after) == 8 - kept
    trained = before[:kept] + after
    assert [questions(rollouts) for rollouts, _ in trained] == [questions(rollouts) for rollouts, _ in seen]
    assert [row["step"] for row in resumed.run.history()] == list(range(9))
    assert sum(row["phase"] == "train" for row in resumed.run.samples()) == 8 * 12
    assert torch.equal(after[0][1], seen[kept][1])  # the weights of the checkpoint
    # All that is drawn anew is by these, also what the unbroken run drew by older ones.
    assert int(after[0][0].samples.versions.max()) == kept
    states = [loop.run.load().state for loop in (unbroken, resumed)]
    assert states[0] == states[1]
    assert resumed.run.streams.state() == unbroken.run.streams.state()


def test_the_random_numbers_of_a_resumed_run_are_those_of_an_unbroken_one(tmp_path: Path) -> None:
    """Without updates the responses are the same, too."""
    texts = []
    for name in ("unbroken", "broken"):
        options: dict[str, Any] = {"rule": odd, "tasks": make_tasks(7), "steps": 6, "max_lag": 3, "checkpoint_every": 2}
        frozen = {"frozen_steps": 6, **options}
        if name == "broken":
            killed_in(make_loop(tmp_path / name, **frozen), 4)
        loop = make_loop(tmp_path / name, **frozen)
        loop.train()
        texts.append([(row["step"], row["task"], row["response"]) for row in loop.run.samples()])
    assert texts[0] == texts[1]


def test_a_checkpoint_knows_nothing_of_what_was_drawn_ahead(tmp_path: Path) -> None:
    """It is the one of a run without a lag; the run itself goes on undisturbed."""
    states = []
    for lag in (0, 3):
        loop = make_loop(
            tmp_path / str(lag), rule=odd, tasks=make_tasks(7), steps=6, max_lag=lag, checkpoint_every=1, frozen_steps=6
        )
        for step in (1, 2):
            loop.step(step)
            now = loop.deck.state(), loop.run.streams.state()
            loop._save(step)
            assert (loop.deck.state(), loop.run.streams.state()) == now
        assert len(loop.collector.under_way) == lag
        states.append(loop.run.load().state)
    assert states[0] == states[1]


def test_the_same_loop_can_go_on_after_it_was_broken_off(tmp_path: Path) -> None:
    loop = asynchronous(tmp_path, steps=4, max_lag=2, checkpoint_every=2)
    credit = loop._credit
    killed_in(loop, 3)
    loop._credit = credit  # type: ignore[method-assign]
    loop.train()
    assert [row["step"] for row in loop.run.history()] == list(range(5))
    wanted = "publish 2, submit 5, submit 6, result 5, publish 3, result 6, publish 4"  # 3 and 4 are lost
    assert ", ".join(loop.sampler.events).endswith(wanted)


# --- what cannot be drawn ahead


def test_choices_that_exclude_a_lag_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set refill_rounds or max_lag to 0"):
        make_loop(tmp_path, algorithm=Algorithm(refill_rounds=1), max_lag=1)
    with pytest.raises(ValueError, match="must not be negative: -1"):
        make_loop(tmp_path, max_lag=-1)
    loop = make_loop(tmp_path, answer=one_some_all, max_lag=1)
    episodes = TurnSampler(loop.policy, loop.sampler, loop.verifier, loop.reward, loop.decoding, ("Again.",))
    with pytest.raises(UserError, match="cannot be written ahead of their step: set max_lag to 0"):
        replace(loop, episodes=episodes)

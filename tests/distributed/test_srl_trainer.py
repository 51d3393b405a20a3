"""The trainer: the same numbers as the on-policy loop, staleness, what is counted, exact resume."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from srl_parts import assert_same_run, killed_and_resumed, setup

from zerozoo.control.on_policy import OnPolicyLoop
from zerozoo.control.sources import RewardTransform
from zerozoo.distributed.actors import Actor
from zerozoo.distributed.messages import Message
from zerozoo.distributed.policy_worker import acting_weights
from zerozoo.distributed.sample_buffer import Batch, Entry, Intake, SampleBuffer
from zerozoo.distributed.streams import InlineSamples, InlineWeights, Publisher
from zerozoo.distributed.trainer import TrainerLoop, check_rows
from zerozoo.distributed.workers import InlineWorkers, Setup
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.runs.streams import Streams

FIELDS: dict[str, Any] = {"steps": 120, "evaluate_every": 1000, "log_every": 40, "checkpoint_every": 60}
LEARNING: dict[str, Any] = {"epochs": 2, "batch_size": 5, "gamma": 0.9, "lam": 0.7}
REWARD = RewardTransform(scale=2.0, shift=0.5)


def trainer(directory: Path, parts: Setup, **changes: Any) -> TrainerLoop:
    run = Run(directory, seed=parts.seed)
    samples, weights = InlineSamples(), InlineWeights()
    buffer = SampleBuffer(changes.pop("buffer_size", 16), changes.pop("reuses", 1))
    preemption = changes.pop("preemption_steps", math.inf)
    intake = Intake(samples, buffer, changes.pop("batch_samples", 1), preemption)
    return TrainerLoop(
        run=run,
        agent=parts.agent(parts.world.spec(), parts.config, run.stream("agent")),
        intake=intake,
        publisher=Publisher(weights, changes.pop("publish_delay", 0)),
        workers=InlineWorkers(parts, run.streams, samples, weights),
        reward=REWARD,
        target_return=changes.pop("target_return", 1e9),
        **{**LEARNING, **FIELDS, **changes},
    )


@pytest.mark.parametrize("environment", ["CartPole-v1", "pendulum"])
def test_inline_with_one_actor_and_one_slot_is_the_on_policy_loop(environment: str, tmp_path: Path) -> None:
    """Bit for bit: the same steps, the same updates, with one generator's numbers for the actions."""
    parts = setup(environment, {"normalise": True})
    run = Run(tmp_path / "plain", seed=parts.seed)
    plain = OnPolicyLoop(
        agent=parts.agent(parts.world.spec(), parts.config, run.stream("agent")),
        run=run,
        environment=parts.world.vector(parts.copies, run.streams.numpy("environment")),
        rollout=parts.sample_steps,
        reward=REWARD,
        **LEARNING,
        **FIELDS,
    )
    ours = trainer(tmp_path / "ours", parts)
    workers: Any = ours.workers
    actions = torch.Generator().manual_seed(ours.run.stream("agent").initial_seed())
    world = parts.world.vector(parts.copies, ours.run.streams.numpy("environment"))
    stream = ours.intake.receiver
    assert isinstance(stream, InlineSamples)
    workers.actors = [Actor([world], parts.world.spec(), workers.inference_stream, stream, actions, parts.sample_steps)]
    plain.train()
    ours.train()
    assert ours.totals.version == 12
    expected, found = plain.agent.state(), ours.agent.state()
    for name in expected:
        if name != "random":  # there the agent draws, here the actor
            assert torch.equal(expected[name], found[name]), name
    logged = ("policy_loss", "value_loss", "episode/return", "policy/kl")
    for one, other in zip(plain.run.history(), ours.run.history(), strict=True):
        assert {name: one.get(name) for name in logged} == {name: other.get(name) for name in logged}


def sampled(parts: Setup, count: int = 1) -> list[Message]:
    """The first samples of an untrained policy."""
    samples, weights = InlineSamples(), InlineWeights()
    workers = InlineWorkers(parts, Streams(parts.seed), samples, weights)
    weights.publish(0, acting_weights(workers.policy.agent))
    pulled: list[Message] = []
    while len(pulled) < count:
        workers.work(0.0)
        pulled += samples.pull()
    return pulled


def test_the_loss_against_sums_in_double_precision(tmp_path: Path) -> None:
    """Advantages by recursion over each copy, the clipped ratio and the entropy by their formulas."""
    parts = setup("CartPole-v1", {"normalise_advantage": False}, sample_steps=40)
    (content,) = sampled(parts)
    loop = trainer(tmp_path / "run", parts)
    agent: Any = loop.agent
    with torch.no_grad():  # the policy has moved since: ratios are not 1
        for parameter in agent.policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    flat = [torch.from_numpy(content[name]).flatten(0, 1) for name in ("obs", "next_obs")]
    value, next_value = (agent.values(obs).double().view(40, 2).numpy() for obs in flat)
    reward = 2.0 * content["reward"] + 0.5
    advantage, after = np.zeros((40, 2)), np.zeros(2)
    for t in reversed(range(40)):
        delta = reward[t] + 0.9 * next_value[t] * ~content["terminated"][t] - value[t]
        after = advantage[t] = delta + 0.9 * 0.7 * ~content["ended"][t] * after
    log_probs = agent.policy.log_probs(torch.from_numpy(content["obs"]).flatten(0, 1)).double().detach().numpy()
    chosen = log_probs[np.arange(80), content["action"].flatten()]
    ratio = np.exp(chosen - content["log_prob"].flatten())
    assert np.abs(ratio - 1).max() > 0.01
    gain = np.minimum(ratio * advantage.flatten(), ratio.clip(0.8, 1.2) * advantage.flatten())
    entropy = -(np.exp(log_probs) * log_probs).sum(1)
    rows = loop.rows({name: content[name] for name in content if name != "origin"})
    assert agent.policy_loss(rows).item() == pytest.approx(float((-gain - 0.01 * entropy).mean()), abs=1e-5)
    assert agent.value_loss(rows).item() == pytest.approx(float((advantage**2).mean()), rel=1e-5)


def test_staleness_is_the_trainers_version_minus_the_samples(tmp_path: Path) -> None:
    """Weights come two versions late: 0, 1, 2, 2, 2, 2."""
    loop = trainer(tmp_path / "run", setup(), publish_delay=2, steps=60)
    results = loop.train()
    assert loop.totals.version == 6
    assert (results["mean_staleness"], results["worst_staleness"]) == (9 / 6, 2.0)
    assert results["stale_samples"] == 0


@pytest.mark.parametrize(("bound", "dropped"), [(0, 6), (1, 0), (math.inf, 0)])
def test_samples_that_are_too_old_are_dropped_and_counted(bound: float, dropped: int, tmp_path: Path) -> None:
    """Two slots are answered together; when the first one's sample was learned from, the second one's is one behind."""
    parts = setup(ring_size=2, copies=1)
    loop = trainer(tmp_path / "run", parts, preemption_steps=bound, steps=30)
    places: list[int] = []
    learn = loop._learn

    def watched(batch: Batch) -> None:
        places.extend(int(entry.sample["origin"][1]) for entry in batch.entries)
        learn(batch)

    loop._learn = watched  # type: ignore[method-assign]
    results = loop.train()
    assert results["frames"] == 30
    assert places == ([0] * 6 if bound == 0 else [0, 1] * 3)
    # What the last update left behind was not looked at any more.
    assert results["stale_samples"] == max(dropped - 1, 0)


def test_nothing_is_learned_with_no_epochs(tmp_path: Path) -> None:
    loop = trainer(tmp_path / "run", setup(), epochs=0)
    before = {name: value.clone() for name, value in loop.agent.state().items()}
    results = loop.train()
    assert results["frames"] == 120
    assert results["frames_per_second"] > 0
    assert loop.totals.version == 0
    assert all(torch.equal(value, before[name]) for name, value in loop.agent.state().items())


def test_every_sample_is_learned_from_as_often_as_it_should_be(tmp_path: Path) -> None:
    loop = trainer(tmp_path / "run", setup(), reuses=3, steps=50)
    used: dict[int, int] = {}
    learn = loop._learn

    def watched(batch: Batch) -> None:
        for entry in batch.entries:
            number = int(entry.sample["origin"][2])
            used[number] = used.get(number, 0) + 1
        learn(batch)

    loop._learn = watched  # type: ignore[method-assign]
    loop.train()
    assert loop.totals.frames == 50
    assert used[0] == used[1] == 3
    assert max(used.values()) == 3


def test_episodes_are_counted_where_they_end_and_the_clock_is_read_once(tmp_path: Path) -> None:
    loop = trainer(tmp_path / "run", setup(), steps=1000, target_return=10.0)
    loop.totals.frames, loop.totals.seconds = 500, 7.0

    def episodes(value: float, count: int, end: int) -> None:
        ended = np.zeros((count, 2), dtype=bool)
        ended[:, 1] = True
        returns = np.full((count, 2), -1e6)
        returns[:, 1] = value
        loop._count_episodes({"ended": ended, "returns": returns, "lengths": np.ones((count, 2))}, end, math.inf)

    episodes(10.0, 99, end=10)
    assert math.isnan(loop.totals.target_frames)
    episodes(0.0, 1, end=900)  # the mean of 100 is 9.9
    assert math.isnan(loop.totals.target_frames)
    assert loop.totals.final_episodes == 0
    episodes(20.0, 1, end=901)  # one 10 leaves, a 20 comes: 10
    assert loop.totals.target_frames == 500
    loop.totals.frames = 600
    episodes(100.0, 1, end=1000)
    assert loop.totals.target_frames == 500
    assert loop.results()["final_return"] == 60.0


def test_a_run_that_was_killed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """With everything under way at the checkpoint: half samples, requests, held weights, samples left to be reused."""
    parts = setup("pendulum", {"normalise": True}, actors=2, ring_size=3, copies=1, sample_steps=7)
    options: dict[str, Any] = {"batch_samples": 2, "batch_size": 7, "reuses": 2, "publish_delay": 1, "buffer_size": 5}
    options |= {"steps": 280, "checkpoint_every": 70, "log_every": 28, "preemption_steps": 100}
    whole = trainer(tmp_path / "whole", parts, **options)
    whole.train()
    under_way = ("/rows/obs", "inference/requests/", "inference/replies/", "buffer/entries/0/", "publisher/weights/1/")
    resumed = killed_and_resumed(lambda: trainer(tmp_path / "killed", parts, **options), 182, 140, under_way)
    assert_same_run(whole, resumed)
    assert whole.totals.samples > whole.totals.frames / 7  # some were used twice


def test_a_finished_run_gives_its_numbers_again(tmp_path: Path) -> None:
    parts = setup()
    first = trainer(tmp_path / "run", parts)
    results = first.train()
    first.run.close()
    again = trainer(tmp_path / "run", parts).train()
    inference = ("rows_per_inference", "inference_milliseconds")  # of this start of the workers
    assert {k: v for k, v in again.items() if k not in inference} == pytest.approx(
        {k: v for k, v in results.items() if k not in inference}, nan_ok=True
    )


def test_minibatches_have_to_fill_an_update() -> None:
    check_rows(20, 5)
    with pytest.raises(UserError, match="batch_size 6 does not divide the 20 steps"):
        check_rows(20, 6)


def test_an_entry_knows_its_oldest_version_and_its_frames() -> None:
    entry = Entry(1, 0, {"version": np.array([[5, 6], [2, 9], [7, 7]])})
    assert (entry.oldest, entry.frames) == (2, 6)
    assert replace(entry, used=3) == entry

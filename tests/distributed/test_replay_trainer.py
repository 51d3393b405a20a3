"""SAC on the streams: answers of a squashed policy, what is kept and when it is learned from, exact resume."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from srl_parts import assert_same_run, killed_and_resumed, setup

from zerozoo.control.agents import SAC
from zerozoo.control.online import OnlineLoop
from zerozoo.control.policies import Gaussian
from zerozoo.control.replay import Replay
from zerozoo.control.sources import RewardTransform
from zerozoo.control.spec import Spec
from zerozoo.control.views import transitions
from zerozoo.distributed.actors import Actor
from zerozoo.distributed.messages import Message
from zerozoo.distributed.policy_worker import acting_weights, draw_noise, respond, respond_uniformly
from zerozoo.distributed.replay_trainer import ReplayTrainer
from zerozoo.distributed.sample_buffer import Batch, Intake, SampleBuffer
from zerozoo.distributed.streams import InlineInference, InlineSamples, InlineWeights, Publisher
from zerozoo.distributed.workers import InlineWorkers, Setup
from zerozoo.runs.run import Run

SPEC = Spec((3,), 2, discrete=False)
SETTINGS: dict[str, Any] = {
    "hidden": (8,),
    "learning_rate": 0.003,
    "tau": 0.01,
    "temperature": 1.0,
    "learn_temperature": True,
    "entropy_per_dimension": -1.0,
}
FIELDS: dict[str, Any] = {"steps": 60, "evaluate_every": 1000, "log_every": 20, "checkpoint_every": 40}
REWARD = RewardTransform(scale=2.0, shift=0.5)


def parts_of(environment: str = "pendulum", **changes: Any) -> Setup:
    """Two copies, samples of five steps."""
    given = setup(environment, **changes)
    return Setup(**{**vars(given), "agent": SAC, "config": SimpleNamespace(**SETTINGS)})


def trainer(directory: Path, parts: Setup, **changes: Any) -> ReplayTrainer:
    run = Run(directory, seed=parts.seed)
    samples, weights = InlineSamples(), InlineWeights()
    buffer = SampleBuffer(100, changes.pop("reuses", 1))
    intake = Intake(samples, buffer, changes.pop("batch_samples", 1), changes.pop("preemption_steps", math.inf))
    return ReplayTrainer(
        run=run,
        agent=parts.agent(parts.world.spec(), parts.config, run.stream("agent")),
        intake=intake,
        publisher=Publisher(weights, changes.pop("publish_delay", 0)),
        workers=InlineWorkers(parts, run.streams, samples, weights),
        replay=Replay(parts.world.spec(), changes.pop("capacity", 1000)),
        reward=REWARD,
        gamma=0.9,
        batch_size=16,
        target_return=1e9,
        **{**FIELDS, **changes},
    )


# --- answers


def squashed(seed: int = 0) -> Gaussian:
    return Gaussian(SPEC, True, (8,), generator=torch.Generator().manual_seed(seed))


def test_the_answer_of_a_squashed_policy_is_its_own_draw() -> None:
    """Bit for bit, with the numbers of the same generator."""
    policy = squashed()
    obs = 3 * torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    action, log_prob = policy.sample(obs, torch.Generator().manual_seed(5))
    again, same = respond(policy, obs, torch.from_numpy(draw_noise(SPEC, 500, torch.Generator().manual_seed(5))))
    assert torch.equal(action, again)
    assert torch.equal(log_prob, same)
    inside = (again.abs() < 0.999).all(1)  # beyond it atanh loses what single precision has lost
    assert 400 < inside.sum() < 500
    assert torch.allclose(policy.log_prob(obs, again)[inside], same[inside], atol=2e-3)


def test_the_log_prob_of_a_squashed_answer_against_a_change_of_variables_in_double_precision() -> None:
    """log N(u; mean, std) - log |d tanh(u) / du|, with the derivative as 1 / cosh(u)^2."""
    policy = squashed(2)
    obs = 3 * torch.randn(500, 3, generator=torch.Generator().manual_seed(3))
    noise = draw_noise(SPEC, 500, torch.Generator().manual_seed(4))
    action, log_prob = respond(policy, obs, torch.from_numpy(noise))
    mean, log_std = (part.detach().double().numpy() for part in policy.distribution(obs))
    std = np.exp(log_std)
    before = mean + std * noise
    density = -(((before - mean) / std) ** 2) / 2 - np.log(std) - np.log(2 * np.pi) / 2
    expected = (density + 2 * np.log(np.cosh(before))).sum(1)
    assert np.allclose(action, np.tanh(before), atol=1e-6)
    assert np.allclose(log_prob, expected, atol=1e-4)


@pytest.mark.parametrize("discrete", [True, False])
def test_uniform_answers_are_uniform(discrete: bool) -> None:
    spec = Spec((3,), 4, discrete)
    noise = torch.from_numpy(draw_noise(spec, 20_000, torch.Generator().manual_seed(0)))
    action, log_prob = respond_uniformly(spec, noise)
    if discrete:
        assert (action.bincount(minlength=4) / 20_000).tolist() == pytest.approx([0.25] * 4, abs=0.01)
        assert log_prob.tolist() == pytest.approx([-math.log(4)] * 20_000)
        return
    for one in action.T:
        shares = torch.histc(one, 8, -1, 1) / 20_000
        assert shares.tolist() == pytest.approx([0.125] * 8, abs=0.01)
    assert torch.corrcoef(action.T).fill_diagonal_(0).abs().max() < 0.03
    assert log_prob.tolist() == pytest.approx([-4 * math.log(2)] * 20_000)
    assert respond_uniformly(SPEC, torch.tensor([[0.0, 1.0]]))[0].tolist() == [[0.0, pytest.approx(0.6826895)]]


@pytest.mark.parametrize("uniform_first", [True, False])
def test_only_version_0_is_answered_uniformly(uniform_first: bool) -> None:
    parts = parts_of(uniform_first=uniform_first)
    inference, weights = InlineInference(), InlineWeights()
    worker = parts.policy_worker(inference, weights, 0.0)
    spec = parts.world.spec()
    request = {"obs": np.ones((2, 3), np.float32), "noise": draw_noise(spec, 2, torch.Generator().manual_seed(0))}
    obs, noise = torch.from_numpy(request["obs"]), torch.from_numpy(request["noise"])
    of_policy = respond(worker.agent.policy, obs, noise)[0]
    for version in (0, 1):
        weights.publish(version, acting_weights(worker.agent))
        inference.post(0, request)
        worker.poll()
        reply = inference.poll(0)
        assert reply is not None
        uniform = uniform_first and version == 0
        assert (reply["action"] == (respond_uniformly(spec, noise)[0] if uniform else of_policy).numpy()).all()
        assert reply["version"].tolist() == [version] * 2


# --- what is kept


def made_sample() -> Message:
    """T = 3, N = 2, observations that tell step and copy; copy 0 is terminated at t = 1, copy 1 truncated at t = 0."""
    place = np.arange(3)[:, None] * 10 + np.arange(2)  # (3, 2)
    obs = np.repeat(place[..., None], 3, 2).astype(np.float32)
    terminated = np.array([[False, False], [True, False], [False, False]])
    ended = terminated | np.array([[False, True], [False, False], [False, False]])
    return {
        "obs": obs,
        "next_obs": obs + np.where(ended, 500, 10).astype(np.float32)[..., None],  # across an end: the true successor
        "action": (place[..., None] / 100).astype(np.float32),
        "log_prob": np.zeros((3, 2), np.float32),
        "reward": place.astype(np.float64),
        "terminated": terminated,
        "ended": ended,
        "returns": np.array([[1.0, 7.0], [3.0, 2.0], [4.0, 5.0]]),
        "lengths": np.array([[1, 200], [2, 1], [1, 2]]),
        "version": np.zeros((3, 2), np.int32),
        "origin": np.array([0, 0, 0]),
    }


def test_the_steps_of_a_sample_are_the_rows_of_the_replay_buffer(tmp_path: Path) -> None:
    loop = trainer(tmp_path / "run", parts_of())
    loop.keep(made_sample())
    kept = loop.replay.state()
    assert kept["obs"][:, 0].tolist() == [0, 1, 10, 11, 20, 21]
    assert kept["next_obs"][:, 0].tolist() == [10, 501, 510, 21, 30, 31]
    assert kept["action"][:, 0].tolist() == pytest.approx([0, 0.01, 0.1, 0.11, 0.2, 0.21])
    assert kept["reward"].tolist() == [0.5, 2.5, 20.5, 22.5, 40.5, 42.5]  # 2 r + 0.5
    assert kept["terminated"].tolist() == [False, False, True, False, False, False]  # the truncated step bootstraps
    batch = loop.replay.sample(200, torch.Generator().manual_seed(0), loop.gamma)
    assert {(int(index), round(float(value), 6)) for index, value in zip(batch.index, batch.discount, strict=True)} == {
        (index, 0.0 if index == 2 else 0.9) for index in range(6)
    }


def test_every_sample_is_kept_once_whole_and_in_order(tmp_path: Path) -> None:
    """Over time limits, from two actors with rings of two; also where the stream's buffer serves samples twice."""
    loop = trainer(
        tmp_path / "run", parts_of(actors=2, ring_size=2, sample_steps=7), steps=2000, reuses=2, warmup=10**6
    )
    seen: list[Message] = []
    put = loop.intake.buffer.put

    def watched(sample: Message) -> None:
        seen.append(sample)
        put(sample)

    loop.intake.buffer.put = watched  # type: ignore[method-assign]
    loop.replay = Replay(loop.agent.spec, 10_000)
    results = loop.train()
    kept = loop.replay.state()
    assert results["frames"] == int(kept["added"])
    assert len({tuple(sample["origin"]) for sample in seen}) == len(seen)
    rows = {row.tobytes(): place for place, row in enumerate(kept["obs"].view(-1, 14, 3).numpy())}
    found = 0
    for sample in seen:
        place = rows.pop(sample["obs"].tobytes(), None)
        if place is None:
            continue  # it was still waiting when the run ended
        found += 1
        own = {name: values.view(-1, 14, *values.shape[1:])[place] for name, values in kept.items() if values.dim()}
        for name in ("action", "next_obs", "terminated"):
            assert (own[name].numpy() == sample[name].reshape(own[name].shape)).all()
        assert (own["reward"].numpy() == (2 * sample["reward"] + 0.5).astype(np.float32).reshape(-1)).all()
    assert not rows
    assert found * 14 == results["frames"]
    ended = np.concatenate([sample["ended"].ravel() for sample in seen])
    assert ended.any()
    assert not kept["terminated"].any()  # the pendulum never ends by itself


def test_nothing_waits_in_the_stream_longer_than_it_must(tmp_path: Path) -> None:
    """Eight slots in one process make samples faster than they are taken: nothing piles up and nothing is dropped."""
    loop = trainer(tmp_path / "run", parts_of(actors=4, ring_size=2, copies=1, sample_steps=1), steps=400)
    waiting = []
    learn = loop._learn

    def watched(batch: Batch) -> None:
        waiting.append(len(loop.intake.buffer))
        learn(batch)

    loop._learn = watched  # type: ignore[method-assign]
    results = loop.train()
    assert results["frames"] == 400
    assert results["overflow_samples"] == 0
    assert max(waiting) == 3  # of four that came together, one is being learned from
    assert results["worst_staleness"] == 11  # answered, used a turn of the rings (8 samples) later, behind 3 others


# --- updates and versions


@pytest.mark.parametrize(
    ("sample_steps", "warmup", "ratio", "due"),
    [
        (5, 15, 1.0, [0, 5, 15, 25, 35, 45]),  # 10 frames a sample
        (5, 15, 0.25, [0, 1, 3, 6, 8, 11]),  # int((f - 15) / 4)
        (1, 0, 0.3, [int(2 * (i + 1) * 0.3) for i in range(30)]),  # 2 frames a sample
        (5, 100, 1.0, [0] * 6),
        (5, 0, 2.5, [25, 50, 75, 100, 125, 150]),
    ],
)
def test_updates_are_made_when_they_are_due_and_versions_count_batches_with_updates(
    sample_steps: int, warmup: int, ratio: float, due: list[int], tmp_path: Path
) -> None:
    parts = parts_of(sample_steps=sample_steps)
    loop = trainer(tmp_path / "run", parts, warmup=warmup, updates_per_step=ratio)
    made: list[tuple[int, int, int]] = []
    published: list[int] = []
    advance, publish = loop.advance, loop.publisher.stream.publish

    def watched(step: int) -> int:
        step = advance(step)
        made.append((step, loop.agent.updates, loop.totals.version))
        return step

    def noted(version: int, weights: Message) -> None:
        published.append(version)
        publish(version, weights)

    loop.advance = watched  # type: ignore[method-assign]
    loop.publisher.stream.publish = noted  # type: ignore[method-assign]
    results = loop.train()
    assert [step for step, _, _ in made] == [2 * sample_steps * (i + 1) for i in range(len(due))]
    assert [updates for _, updates, _ in made] == due
    changed = [after > before for before, after in zip([0, *due], due, strict=False)]
    assert [version for _, _, version in made] == np.cumsum(changed).tolist()
    assert published == list(range(sum(changed) + 1))
    assert results["updates"] == due[-1]


def test_staleness_is_the_trainers_version_minus_the_samples(tmp_path: Path) -> None:
    """Six samples of which the first two bring no update; weights come two versions late."""
    loop = trainer(tmp_path / "run", parts_of(), warmup=20, publish_delay=2)
    results = loop.train()
    # Version when it is learned from: 0 0 0 1 2 3; of the actions: 0 0 0 0 0 1.
    assert loop.totals.version == 4
    assert (results["mean_staleness"], results["worst_staleness"]) == (5 / 6, 2.0)
    assert results["stale_samples"] == 0


def test_samples_that_are_too_old_are_dropped_counted_and_not_kept(tmp_path: Path) -> None:
    """Two slots are answered together; when the first one's sample was learned from, the second one's is one behind."""
    loop = trainer(tmp_path / "run", parts_of(ring_size=2, copies=1), preemption_steps=0, steps=30)
    results = loop.train()
    assert results["frames"] == int(loop.replay.state()["added"]) == 30
    assert results["worst_staleness"] == 0
    assert results["stale_samples"] > 0


def test_episodes_are_counted_as_the_environment_gives_them(tmp_path: Path) -> None:
    loop = trainer(tmp_path / "run", parts_of(), steps=6)
    loop.intake.receiver.push(made_sample())  # type: ignore[attr-defined]
    loop.totals.version = 2
    loop._count(loop._wait_for_batch(), 0, 0.0)
    means = loop.meter.means()
    assert means["episode/return"] == (7.0 + 3.0) / 2
    assert means["episode/length"] == (200 + 2) / 2
    assert means["staleness"] == 2
    assert (loop.totals.frames, loop.totals.final_episodes) == (6, 2)


# --- beside the plain loop, and resumed


class Acting(SAC):
    """Draws its actions in the environment from a stream of its own, as an actor does."""

    actions: torch.Generator

    def act(self, obs: torch.Tensor, explore: bool, generator: torch.Generator | None = None) -> torch.Tensor:
        return super().act(obs, explore, generator or self.actions)


def test_inline_with_one_slot_and_samples_of_one_step_is_the_online_loop(tmp_path: Path) -> None:
    """Bit for bit: the same steps, the same updates, with the same numbers for actions and environment."""
    parts = parts_of(copies=2, sample_steps=1)
    run = Run(tmp_path / "plain", seed=parts.seed)
    agent = Acting(parts.world.spec(), parts.config, run.stream("agent"))
    agent.actions = torch.Generator().manual_seed(11)
    plain = OnlineLoop(
        agent=agent,
        run=run,
        environment=parts.world.vector(2, run.streams.numpy("environment")),
        replay=Replay(agent.spec, 1000),
        view=transitions(0.9),
        batch_size=16,
        updates_per_step=0.7,
        reward=REWARD,
        **FIELDS,
    )
    ours = trainer(tmp_path / "ours", parts, updates_per_step=0.7)
    workers: Any = ours.workers
    world = parts.world.vector(2, ours.run.streams.numpy("environment"))
    actions = torch.Generator().manual_seed(11)
    stream = ours.intake.receiver
    assert isinstance(stream, InlineSamples)
    workers.actors = [Actor([world], parts.world.spec(), workers.inference_stream, stream, actions, 1)]
    plain.train()
    ours.train()
    assert ours.agent.updates == plain.agent.updates == 42
    for states in ((plain.agent.state(), ours.agent.state()), (plain.replay.state(), ours.replay.state())):
        for name, value in states[0].items():
            assert torch.equal(value, states[1][name]), name
    for one, other in zip(plain.run.history(), ours.run.history(), strict=True):
        for name in ("critic_loss", "policy_loss", "policy/entropy", "temperature"):
            assert one[name] == other[name]


def test_a_run_that_was_killed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """With everything under way at the checkpoint: half samples, requests, held weights, a replay buffer that is full,
    samples that wait, a fraction of an update."""
    parts = parts_of(actors=2, ring_size=3, copies=1, sample_steps=7, uniform_first=True)
    options: dict[str, Any] = {"publish_delay": 1, "capacity": 60, "warmup": 20, "updates_per_step": 0.3}
    options |= {"steps": 280, "checkpoint_every": 105, "log_every": 28}
    whole = trainer(tmp_path / "whole", parts, **options)
    whole.train()
    under_way = ("/rows/obs", "inference/requests/", "buffer/entries/0/", "publisher/weights/1/", "replay/terminated")
    resumed = killed_and_resumed(lambda: trainer(tmp_path / "killed", parts, **options), 168, 105, under_way)
    assert_same_run(whole, resumed)
    expected, found = whole.replay.state(), resumed.replay.state()
    assert int(found["added"]) == 280  # at the checkpoint of step 105 the buffer of 60 was full
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert whole.agent.updates == int(260 * 0.3)

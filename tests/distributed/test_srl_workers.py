"""Actors and policy workers: the ring, what a sample holds, dynamic batches, versions, draws."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from srl_parts import SETTINGS, setup

from zerozoo.control.agents import PPO
from zerozoo.control.policies import Categorical, Deterministic, Gaussian
from zerozoo.control.spec import Spec
from zerozoo.distributed.actors import Actor
from zerozoo.distributed.messages import Message
from zerozoo.distributed.policy_worker import PolicyWorker, acting_weights, draw_noise, load_acting_weights, respond
from zerozoo.distributed.streams import InlineInference, InlineSamples, InlineWeights
from zerozoo.environments.batched.synthetic import Synthetic
from zerozoo.environments.vector import Step, VecEnv
from zerozoo.runs.errors import UserError

SPEC = Spec((3,), 2, discrete=False)


def agent(spec: Spec = SPEC, seed: int = 0, **settings: Any) -> PPO:
    return PPO(spec, SimpleNamespace(**{**SETTINGS, **settings}), torch.Generator().manual_seed(seed))


class Answers:
    """An inference stream that answers only where it was told to, with action 0."""

    def __init__(self, copies: int = 1) -> None:
        self.posted: list[int] = []
        self.ready: set[int] = set()
        self.copies = copies

    def post(self, place: int, request: Message) -> None:
        self.posted.append(place)

    def poll(self, place: int, wait: float = 0.0) -> Message | None:
        if place not in self.ready:
            return None
        self.ready.remove(place)
        zeros = np.zeros(self.copies)
        return {"action": zeros.astype(np.int64), "log_prob": zeros, "version": zeros.astype(np.int32)}


class Room(InlineSamples):
    """A sample stream that may be full."""

    full = False

    def push(self, sample: Message, wait: float = 0.0) -> bool:
        return not self.full and super().push(sample)


def ring(answers: Answers, samples: InlineSamples, slots: int = 3, sample_steps: int = 2, first: int = 6) -> Actor:
    environments = [VecEnv(Synthetic(answers.copies), np.random.default_rng(place)) for place in range(slots)]
    spec = Spec.of_spaces(environments[0].observation_space, environments[0].action_space)
    return Actor(environments, spec, answers, samples, torch.Generator(), sample_steps, number=2, first_place=first)


# --- the ring


def test_the_ring_goes_round_whatever_is_answered_first() -> None:
    answers, samples = Answers(), InlineSamples()
    actor = ring(answers, samples)
    assert not actor.poll()
    assert answers.posted == [6, 7, 8]
    answers.ready |= {7, 8}
    assert not actor.poll()  # place 6 is at the head and waits
    answers.ready.add(6)
    assert [actor.poll() for _ in range(4)] == [True, True, True, False]
    assert answers.posted == [6, 7, 8] * 2
    answers.ready |= {6, 7, 8}
    assert [actor.poll() for _ in range(3)] == [True] * 3
    assert [sample["origin"].tolist() for sample in samples.pull()] == [[2, 6, 0], [2, 7, 0], [2, 8, 0]]


def test_an_actor_waits_with_a_sample_that_finds_no_room() -> None:
    answers, samples = Answers(), Room()
    actor = ring(answers, samples, slots=1, sample_steps=1)
    actor.poll()
    samples.full = True
    phases: list[str] = []
    actor.phase = phases.append
    answers.ready.add(6)
    assert actor.poll()
    answers.ready.add(6)
    assert not actor.poll()
    assert phases == ["stepping its environments", "waiting for room in the sample stream"]
    samples.full = False
    assert actor.poll()
    assert [sample["origin"][2] for sample in samples.pull()] == [0, 1]


@pytest.mark.parametrize("environment", ["CartPole-v1", "pendulum"])
def test_a_sample_is_what_the_environment_did(environment: str) -> None:
    """True successors, no step across a reset, versions, and the clipped action for the environment only."""
    parts = setup(environment, {"hidden": (4,)}, sample_steps=60, copies=3)
    inference, samples, weights = InlineInference(), InlineSamples(), InlineWeights()
    worker = parts.policy_worker(inference, weights, 0.0)
    weights.publish(4, acting_weights(worker.agent))
    inference.serve = worker.poll
    actor = parts.actor(0, inference, samples)
    environment_ = actor.ring[0].environment
    seen: list[tuple[np.ndarray, Step]] = []
    step = environment_.step

    def watched(action: np.ndarray) -> Step:
        seen.append((action, step(action)))
        return seen[-1][1]

    environment_.step = watched  # type: ignore[method-assign]
    for _ in range(60):
        assert actor.poll()
    (sample,) = samples.pull()
    assert sample["obs"].shape[:2] == sample["action"].shape[:2] == sample["version"].shape == (60, 3)
    assert (sample["version"] == 4).all()
    for t, (action, done) in enumerate(seen):
        drawn = sample["action"][t]
        assert (action == (drawn if parts.world.spec().discrete else drawn.clip(-1, 1))).all()
        for name in ("reward", "next_obs", "terminated", "ended", "returns", "lengths"):
            assert (sample[name][t] == getattr(done, name)).all()
        if t + 1 < len(seen):
            assert (sample["obs"][t + 1] == done.obs).all()
    if environment == "CartPole-v1":
        assert sample["ended"].any()
    else:
        assert np.abs(sample["action"]).max() > 1
    log_prob = worker.agent.policy.log_prob(
        torch.from_numpy(sample["obs"]).flatten(0, 1), torch.from_numpy(sample["action"]).flatten(0, 1)
    )
    assert torch.allclose(log_prob.detach(), torch.from_numpy(sample["log_prob"]).flatten(), atol=1e-5)


def test_an_actor_without_environments_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="needs environments"):
        Actor([], SPEC, InlineInference(), InlineSamples(), torch.Generator(), 1)


def test_actors_that_begin_anew_play_other_episodes() -> None:
    parts = setup("pendulum")

    def start(**options: Any) -> np.ndarray:
        actor = parts.actor(0, InlineInference(), InlineSamples(), **options)
        actor.poll()
        assert actor.ring[0].obs is not None
        return actor.ring[0].obs

    assert (start() == start()).all()
    assert (start() != start(incarnation=1)).any()
    assert (start(incarnation=1) != start(incarnation=2)).any()


# --- the policy worker


def requests(*rows: int) -> list[Message]:
    generator = torch.Generator().manual_seed(1)
    return [{"obs": np.ones((n, 3), np.float32) * n, "noise": draw_noise(SPEC, n, generator)} for n in rows]


def test_a_batch_is_everything_that_is_pending_up_to_the_cap() -> None:
    inference, weights = InlineInference(), InlineWeights()
    worker = PolicyWorker(agent(), inference, weights, cap=5)
    for place, request in enumerate(requests(2, 3, 1)):
        inference.post(place, request)
    assert worker.poll() == 0  # no weights yet: nobody is answered
    weights.publish(0, acting_weights(worker.agent))
    assert [worker.poll() for _ in range(3)] == [5, 1, 0]
    assert (worker.batches, worker.rows) == (2, 6)
    assert [len(inference.poll(place)["action"]) for place in range(3)] == [2, 3, 1]  # type: ignore[index]


def test_an_answer_does_not_depend_on_what_else_is_asked() -> None:
    replies = []
    for cap in (1, 100):
        inference, weights = InlineInference(), InlineWeights()
        worker = PolicyWorker(agent(), inference, weights, cap)
        weights.publish(0, acting_weights(worker.agent))
        for place, request in enumerate(requests(2, 3, 1)):
            inference.post(place, request)
        while worker.poll():
            pass
        replies.append([inference.poll(place) for place in range(3)])
    for one, other in zip(*replies, strict=True):
        assert np.allclose(one["action"], other["action"], atol=1e-6)  # type: ignore[index]


def test_every_row_carries_the_version_that_answered_it() -> None:
    inference, weights = InlineInference(), InlineWeights()
    worker = PolicyWorker(agent(), inference, weights, cap=5)
    versions = []
    for version in (3, 3, 8):
        weights.publish(version, acting_weights(worker.agent))
        inference.post(0, requests(2)[0])
        worker.poll()
        versions.append(inference.poll(0)["version"].tolist())  # type: ignore[index]
    assert versions == [[3, 3], [3, 3], [8, 8]]


def test_weights_are_looked_for_at_intervals() -> None:
    now = [0.0]
    inference, weights = InlineInference(), InlineWeights()
    worker = PolicyWorker(agent(), inference, weights, cap=5, pull_seconds=1.0, clock=lambda: now[0])
    versions = []
    for version, seconds in enumerate((0.0, 0.5, 0.99, 1.0, 1.5, 2.1)):
        now[0] = seconds
        weights.publish(version, acting_weights(worker.agent))
        inference.post(0, requests(1)[0])
        worker.poll()
        versions.append(worker.version)
    assert versions == [0, 0, 0, 3, 3, 5]


def test_a_policy_worker_acts_with_what_was_published() -> None:
    trained = agent(seed=1, normalise=True)
    trained.seen(torch.randn(50, 3, generator=torch.Generator().manual_seed(2)) * 3 + 1)
    inference, weights = InlineInference(), InlineWeights()
    worker = PolicyWorker(agent(seed=2, normalise=True), inference, weights, cap=10)
    weights.publish(0, acting_weights(trained))
    request = requests(4)[0]
    inference.post(0, request)
    worker.poll()
    reply = inference.poll(0)
    assert reply is not None
    obs = trained.normaliser(torch.from_numpy(request["obs"]))  # type: ignore[misc]
    action, log_prob = respond(trained.policy, obs, torch.from_numpy(request["noise"]))
    assert (reply["action"] == action.numpy()).all()
    assert (reply["log_prob"] == log_prob.numpy()).all()
    published = acting_weights(trained)
    trained.policy.network[0].weight.data.add_(1)
    assert (published["policy.network.0.weight"] != trained.policy.network[0].weight.detach().numpy()).all()
    with pytest.raises(ValueError, match="another agent"):
        load_acting_weights(trained, {"policy.other": np.zeros(1)})


@pytest.mark.parametrize("discrete", [True, False])
def test_answers_are_the_draws_that_the_policy_would_make(discrete: bool) -> None:
    """Bit for bit, with the numbers of the same generator."""
    spec = Spec((3,), 4, discrete)
    initial = torch.Generator().manual_seed(0)
    policy: Any = Categorical(spec, (8,), initial) if discrete else Gaussian(spec, False, (8,), generator=initial)
    obs = torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    action, log_prob = policy.sample(obs, torch.Generator().manual_seed(5))
    noise = draw_noise(spec, 500, torch.Generator().manual_seed(5))
    again, same = respond(policy, obs, torch.from_numpy(noise))
    assert torch.equal(action, again)
    assert torch.equal(log_prob, same)
    if discrete:
        assert len(action.unique()) == 4


def test_policies_whose_draw_needs_more_than_noise_are_refused() -> None:
    with pytest.raises(TypeError, match="answers with a Categorical or a Gaussian, not .*Deterministic"):
        respond(Deterministic(SPEC), torch.zeros(1, 3), torch.zeros(1, 2))


# --- the synthetic world


def test_the_synthetic_world_moves_by_quarters() -> None:
    world = Synthetic(2, time_limit=3, size=4)
    obs = world.reset(np.random.default_rng(0))
    phase = np.random.default_rng(0).random(2)
    assert np.allclose(obs, np.sin(2 * np.pi * phase[:, None] + np.arange(4)))
    outcome = world.step(np.array([1, 3]))
    assert np.allclose(outcome.next_obs, np.sin(2 * np.pi * (phase[:, None] + [[0.25], [0.75]]) + np.arange(4)))
    assert np.allclose(outcome.reward, outcome.next_obs[:, 0])
    world.step(np.array([0, 0]))
    assert world.step(np.array([0, 0])).truncated.all()


def test_a_step_costs_what_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of computing time: 2 copies of 3 ms."""
    from zerozoo.environments.batched import synthetic

    now = [0.0]

    def clock() -> float:
        now[0] += 0.0005
        return now[0]

    monkeypatch.setattr(synthetic.time, "thread_time", clock)
    world = Synthetic(2, milliseconds=3.0)
    world.reset(np.random.default_rng(0))
    world.step(np.array([0, 0]))
    assert now[0] == pytest.approx(0.0065, abs=0.0006)


def test_a_synthetic_world_of_no_size() -> None:
    for wrong in ({"milliseconds": -1.0}, {"size": 0}):
        with pytest.raises(UserError, match="must be at least 0 and size"):
            Synthetic(1, **wrong)  # type: ignore[arg-type]


def test_a_setup_without_actors() -> None:
    with pytest.raises(UserError, match="actors must be at least 1, not 0"):
        setup(actors=0)

"""Rollout workers on Ray: the responses of the learner itself, whoever writes them and whoever is lost on the way."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from moody_writer import actor_processes, held_up, moody

from zerozoo.distributed.ray_engine import RayEngine
from zerozoo.language.build import make_sampler
from zerozoo.language.device import Machine
from zerozoo.language.engine import use_engine
from zerozoo.language.families import tiny_model
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import ALONE
from zerozoo.language.samplers.interface import AsyncSampler, Decoding, Sampler, Samples
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.samplers.partial import SliceWriter
from zerozoo.runs.errors import DivergedError, UserError

MACHINE = Machine("cpu", None, 1024, 64)
PROMPTS = [[3, 4, 5], [4, 5], [5, 6, 3, 4], [6, 3], [3, 3], [4, 4, 4], [3, 6, 6], [5]] * 2
DECODING = Decoding(12)
CHUNKS = 8  # of these prompts for two workers


@pytest.fixture
def policy() -> LanguageModel:
    return tiny_model("llama", vocabulary="0123 ", hidden=16, heads=2, kv_heads=1)


@pytest.fixture
def make_engine(ray_connection: Any, tmp_path: Path) -> Iterator[Callable[..., RayEngine]]:
    """Engines over workers that a test can hold up, ended with the test."""
    engines: list[RayEngine] = []

    def make(workers: int, **options: Any) -> RayEngine:
        engines.append(RayEngine(workers, writers={"native": moody(tmp_path)}, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By which the worker of `engine` can be held up."""
    return tmp_path_factory.mktemp("moods")


@pytest.fixture(scope="module")
def engine(ray_connection: Any, folder: Path) -> Iterator[RayEngine]:
    """One worker for the tests that lose none, each with a policy of its own."""
    engine = RayEngine(1, writers={"native": moody(folder)})
    yield engine
    engine.close()


def ask(sampler: Sampler, seed: int = 1) -> Samples:
    return sampler.sample(PROMPTS, 4, DECODING, torch.Generator().manual_seed(seed))


def assert_same(written: Samples, wanted: Samples) -> None:
    """Equal responses. Rows are written beside others in a chunk, which moves the last bits of their log-probs."""
    assert torch.equal(written.tokens, wanted.tokens)
    assert torch.equal(written.lengths, wanted.lengths)
    assert torch.equal(written.stopped, wanted.stopped)
    assert torch.equal(written.groups, wanted.groups)
    assert written.texts == wanted.texts
    torch.testing.assert_close(written.logprobs, wanted.logprobs, atol=1e-5, rtol=0)


def move(policy: LanguageModel, seed: int) -> None:
    """One step of the optimiser that training uses."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=0.05, fused=True)
    for parameter in policy.model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def test_workers_write_what_the_learner_would_under_every_version(
    policy: LanguageModel, make_engine: Callable[..., RayEngine]
) -> None:
    one, two = make_engine(1), make_engine(2)
    samplers = [engine.sampler("native", policy, MACHINE, ALONE) for engine in (one, two)]
    before = None
    for version in range(3):
        if version:
            move(policy, version)
        wanted = ask(NativeSampler(policy), version)
        for sampler in samplers:
            assert isinstance(sampler, AsyncSampler)
            assert isinstance(sampler, SliceWriter)
            sampler.publish(version)
            written = ask(sampler, version)
            assert_same(written, wanted)
            inside = torch.arange(written.tokens.shape[1]) < written.lengths[:, None]
            assert torch.equal(written.versions, torch.where(inside, version, 0).int())
        assert before is None or not torch.equal(before.logprobs[:, :1], wanted.logprobs[:, :1])  # or nothing was sent
        before = wanted
    assert set(two.pool("native").written) == {0, 1}
    assert sum(two.pool("native").written.values()) == 3 * CHUNKS
    assert [state.name for state in two.states()] == ["rollout worker 0", "rollout worker 1"]


def test_weights_that_nobody_has_published_are_those_of_now(policy: LanguageModel, engine: RayEngine) -> None:
    with use_engine(engine):
        sampler = make_sampler("native", policy, MACHINE)
    ask(sampler)
    move(policy, 1)
    assert_same(ask(sampler), ask(NativeSampler(policy)))


def test_responses_ahead_of_an_update_are_those_of_the_old_weights(
    policy: LanguageModel, engine: RayEngine, folder: Path
) -> None:
    sampler: Any = engine.sampler("native", policy, MACHINE, ALONE)
    wanted = ask(NativeSampler(policy), 5)
    with held_up(folder, [0]):
        sampler.publish(7)
        pending = sampler.submit(PROMPTS, 4, DECODING, torch.Generator().manual_seed(5))
        move(policy, 1)
        sampler.publish(8)
    written = pending.result()
    assert_same(written, wanted)
    assert int(written.versions.max()) == 7
    assert_same(ask(sampler, 6), ask(NativeSampler(policy), 6))


def test_what_a_worker_raises_reaches_the_learner(policy: LanguageModel, engine: RayEngine, folder: Path) -> None:
    sampler = engine.sampler("native", policy, MACHINE, ALONE)
    (folder / "broken").touch()
    with pytest.raises(DivergedError, match=r"^The model is broken\.$"):
        ask(sampler)
    (folder / "broken").unlink()
    assert_same(ask(sampler), ask(NativeSampler(policy)))
    assert engine.pool("native").lost == 0
    with pytest.raises(UserError, match="do not write with --sampler transformers: take native"):
        engine.sampler("transformers", policy, MACHINE, ALONE)


def test_a_slow_worker_does_not_stop_the_others(
    policy: LanguageModel, make_engine: Callable[..., RayEngine], tmp_path: Path
) -> None:
    engine = make_engine(2)
    sampler: Any = engine.sampler("native", policy, MACHINE, ALONE)
    pool = engine.pool("native")
    while not all(seat.there for seat in pool.seats):
        time.sleep(0.05)
    with held_up(tmp_path, [0]):
        pending = sampler.submit(PROMPTS, 4, DECODING, torch.Generator().manual_seed(1))
        while pool.written[1] < CHUNKS - 1:  # all but the one that the slow worker holds
            time.sleep(0.05)
        assert pool.written[0] == 0
    assert_same(pending.result(), ask(NativeSampler(policy)))
    assert pool.written == {0: 1, 1: CHUNKS - 1}


def test_a_worker_killed_at_any_time_changes_nothing(
    policy: LanguageModel, make_engine: Callable[..., RayEngine]
) -> None:
    said: list[str] = []
    others = actor_processes("RolloutWorker")
    engine = make_engine(2, say=said.append)
    sampler = engine.sampler("native", policy, MACHINE, ALONE)
    draw = random.Random(11)
    prompts, decoding = PROMPTS * 4, Decoding(60)
    wanted = NativeSampler(policy).sample(prompts, 4, decoding, torch.Generator().manual_seed(2))
    for _ in range(2):
        ask(sampler)  # until a worker is there

        def kill() -> None:
            draw.choice(actor_processes("RolloutWorker", but=others)).send_signal(signal.SIGKILL)

        timer = threading.Timer(draw.uniform(0.0, 0.3), kill)
        timer.start()
        written = sampler.sample(prompts, 4, decoding, torch.Generator().manual_seed(2))
        timer.join()
        assert_same(written, wanted)
    while engine.pool("native").lost < 2:  # the second may have been killed after its last chunk
        time.sleep(0.05)
    assert all("was lost (" in line and "another one takes its place" in line for line in said)
    assert len(said) == 2


def test_a_worker_that_does_not_answer_any_more_is_replaced(
    policy: LanguageModel, make_engine: Callable[..., RayEngine]
) -> None:
    said: list[str] = []
    others = actor_processes("RolloutWorker")
    engine = make_engine(1, say=said.append, patience=4.0)
    sampler = engine.sampler("native", policy, MACHINE, ALONE)
    ask(sampler)
    [frozen] = actor_processes("RolloutWorker", but=others)
    frozen.send_signal(signal.SIGSTOP)
    assert_same(ask(sampler, 3), ask(NativeSampler(policy), 3))
    assert said == ["Rollout worker 0 was lost (it has not answered for 4 s); another one takes its place."]
    frozen.wait(30)  # and it is gone

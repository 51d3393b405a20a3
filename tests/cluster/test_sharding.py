"""Sharded learners give the numbers of one process. Gloo processes stand for GPUs; nothing here was run on those."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import Tensor
from torch.distributed.tensor import DTensor

from zerozoo.distributed.weights import Publisher, check_probe, load_bytes, probe_logprobs
from zerozoo.language.algorithm import Algorithm
from zerozoo.language.families import tiny_model
from zerozoo.language.logprobs import Sequences, response_scores
from zerozoo.language.lora import add_lora
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import ALONE, Ranks, ShardedSampler
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import Decoding, Samples
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.sharding import shard_policy, whole_copy, whole_weights
from zerozoo.language.update import Updater, UpdateSettings
from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.tasks.task import Task

LENGTHS = [5, 3, 7, 1, 2, 9, 4, 4, 3, 1, 6, 2, 8, 2, 5]  # five groups of three
REWARDS = [1.0, 0.0, 0.0, 0.25, 0.0, 0.5, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
PROMPTS = (4, 1, 8, 3, 6)
RATE = 1e-2


def make_rollouts(dtype: torch.dtype = torch.float32, groups: int = 5) -> Rollouts:
    generator = torch.Generator().manual_seed(4)
    number = 3 * groups
    lengths, longest = torch.tensor(LENGTHS[:number]), max(LENGTHS)
    tokens = torch.randint(4, 90, (number, longest), generator=generator)
    prompts = [torch.randint(4, 90, (size,), generator=generator).tolist() for size in PROMPTS[:groups]]
    logprobs = -torch.rand((number, longest), generator=generator, dtype=dtype)
    written = torch.arange(longest) < lengths[:, None]
    samples = Samples(
        tokens.masked_fill(~written, 0),
        lengths,
        logprobs * written,
        torch.ones(number, dtype=torch.bool),
        torch.arange(number) // 3,
        [""] * number,
    )
    tasks = [Task(f"t{index}", f"question {index}", "0", "test") for index in range(groups)]
    verdicts = [Verification(Verdict.WRONG, "", 0.0, False, 0.0)] * number
    rewards = torch.tensor(REWARDS[:number], dtype=dtype)
    rollouts = Rollouts(tasks, prompts, samples, verdicts, rewards)
    centred = rewards.view(-1, 3) - rewards.view(-1, 3).mean(1, keepdim=True)
    rollouts.advantages = centred.flatten()
    return rollouts


def learn(family: str, dtype: str, size: int, budget: int, updates: int, groups: int = 5) -> dict[str, Any]:
    """Two rollouts' updates; metrics, full gradients of the last step, and weights."""
    policy = tiny_model(family, dtype=dtype)
    ranks = Ranks(torch.distributed.get_rank(), size) if size > 1 else ALONE
    if size > 1:
        shard_policy(policy, "cpu")
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=RATE, weight_decay=0.1, fused=True)
    settings = UpdateSettings(updates_per_step=updates, tokens_per_microbatch=budget, max_gradient_norm=0.5)
    updater = Updater(policy, optimizer, Algorithm(), settings, ranks)
    rollouts = make_rollouts(getattr(torch, dtype), groups)
    metrics = [updater.update(rollouts) for _ in range(2)]
    return {"metrics": metrics, "gradients": gradients(policy), "weights": weights(policy)}


def gradients(policy: LanguageModel) -> dict[str, Tensor]:
    return {name: whole(value.grad) for name, value in policy.model.named_parameters() if value.grad is not None}


def weights(policy: LanguageModel) -> dict[str, Tensor]:
    return {name: whole(value) for name, value in policy.model.named_parameters()}


def whole(tensor: Tensor) -> Tensor:
    full = getattr(tensor, "full_tensor", None)
    return (full() if full else tensor).detach().clone()


def compare(one: dict[str, Any], many: list[dict[str, Any]], exact: float = 1e-5) -> None:
    for other in many:
        for first, second in zip(one["metrics"], other["metrics"], strict=True):
            assert first.keys() == second.keys()
            for name, value in first.items():
                if name not in ("update/tokens", "update/padded_tokens"):  # how rows are cut
                    assert second[name] == pytest.approx(value, rel=exact, abs=exact), name
        for kind in ("gradients", "weights"):
            assert one[kind].keys() == other[kind].keys()
            for name, value in one[kind].items():
                torch.testing.assert_close(other[kind][name], value, rtol=exact, atol=exact, msg=f"{kind} {name}")


@pytest.mark.parametrize(("family", "size"), [("qwen2", 2), ("llama", 3), ("gemma3", 2)])
def test_processes_learn_like_one(family: str, size: int) -> None:
    """Of unequal numbers of groups and tokens, in one micro-batch or many; gemma3 goes through transformers."""
    one = learn(family, "float64", 1, 1000, 2)
    assert any(float(one["gradients"][name].abs().max()) > 1e-4 for name in one["gradients"])
    for budget in (1000, 12):
        compare(one, run_ranks(size, learn, family, "float64", size, budget, 2))


def test_a_process_without_rows_and_one_with_long_rows_agree() -> None:
    """Three processes, two groups, micro-batches of one row: passes that only others need are made along."""
    one = learn("llama", "float64", 1, 1, 1, 2)
    compare(one, run_ranks(3, learn, "llama", "float64", 3, 1, 1, 2))


def learn_rounded(size: int, autocast: bool) -> dict[str, Any]:
    policy = tiny_model("qwen2", layers=3)
    policy.autocast = torch.bfloat16 if autocast else None
    ranks = ALONE
    if size > 1:
        ranks = Ranks(torch.distributed.get_rank(), size)
        shard_policy(policy, "cpu")
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-3, fused=True)
    updater = Updater(policy, optimizer, Algorithm(), UpdateSettings(tokens_per_microbatch=40), ranks)
    rollouts = make_rollouts()
    before = updater.scores(policy.model, rollouts)
    metrics = [updater.update(rollouts)]
    kinds = {value.dtype for value in policy.model.parameters()}
    return {"scores": before, "metrics": metrics, "gradients": gradients(policy), "kinds": kinds}


def test_rounded_products_are_those_of_autocast() -> None:
    """Weights and gradients stay float32; layers travel in bfloat16, to which autocast rounds them anyway."""
    exact, one = learn_rounded(1, False), learn_rounded(1, True)
    size = float((one["scores"] - exact["scores"]).abs().max())
    assert size > 1e-3  # bfloat16 was there at all
    for other in run_ranks(2, learn_rounded, 2, True):
        assert other["kinds"] == {torch.float32}
        # Only the norms' scales are rounded besides.
        assert float((other["scores"] - one["scores"]).abs().max()) < 2 * size
        scale = max(float(value.abs().max()) for value in one["gradients"].values())
        for name, value in one["gradients"].items():
            assert float((other["gradients"][name] - value).abs().max()) < 0.03 * scale, name


def held(size: int) -> dict[str, int]:
    """Numbers that this process keeps between two steps, by kind."""
    policy = tiny_model("llama", hidden=64, layers=3)
    everything = sum(value.numel() for value in policy.model.parameters())
    shard_policy(policy, "cpu")
    optimizer = torch.optim.AdamW(policy.model.parameters(), fused=True)
    ranks = Ranks(torch.distributed.get_rank(), size)
    updater = Updater(policy, optimizer, Algorithm(), UpdateSettings(), ranks)
    updater.scores(policy.model, make_rollouts())
    with whole_weights(policy.model):
        assert sum(value.numel() for value in policy.model.parameters()) == everything
        assert not any(isinstance(value, DTensor) for value in policy.model.parameters())
    updater.update(make_rollouts())
    parameters = list(policy.model.parameters())
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    counts = {"all": everything}
    for kind, tensors in (("weights", parameters), ("gradients", [one.grad for one in parameters]), ("Adam", moments)):
        memory = {part.data_ptr(): part.nbytes() for part in (one.to_local().untyped_storage() for one in tensors)}
        counts[kind] = sum(memory.values()) // 4
    return counts


def test_each_process_holds_its_share() -> None:
    counts = run_ranks(3, held, 3)
    for one in counts:
        rows = 3 * 100  # at most one more row of each weight than a third
        assert one["weights"] <= one["all"] / 3 + rows * 64
        assert one["weights"] >= one["all"] / 3
        assert one["Adam"] <= 2 * one["weights"]
        assert one["gradients"] <= one["all"] / 3 + rows * 64


def copied(family: str, size: int) -> dict[str, Any]:
    policy = tiny_model(family)
    shard_policy(policy, "cpu")
    made = whole_copy(policy, here=torch.distributed.get_rank() == 0)
    if made is None:
        return {}
    assert type(made.model).__name__ == type(tiny_model(family).model).__name__
    return dict(made.model.state_dict())


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])  # the second ties its head to the embedding
def test_a_whole_copy_is_the_model(family: str) -> None:
    first, second = run_ranks(2, copied, family, 2)
    assert second == {}
    plain = tiny_model(family).model.state_dict()
    assert first.keys() == plain.keys()
    assert all(torch.equal(first[name], plain[name]) for name in plain)


def write(family: str, size: int, autocast: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Responses to prompts of unequal length, their log-probs when they were written, and those of the learner."""
    policy = tiny_model(family, vocabulary="abcdefgh")
    policy.autocast = torch.bfloat16 if autocast else None
    sampler: Any = NativeSampler(policy)
    if size > 1:
        ranks = Ranks(torch.distributed.get_rank(), size)
        shard_policy(policy, "cpu")
        sampler = ShardedSampler(sampler, ranks)
    prompts = [policy.encode(text) for text in ("ab", "abcdefg", "e")]
    decoding = Decoding(max_new_tokens=12, temperature=1.0)
    for seed in range(2):  # the second time the weights have been given back
        samples = sampler.sample(prompts, 3, decoding, torch.Generator().manual_seed(seed))
    lengths = samples.lengths.tolist()
    responses = [row[:length] for row, length in zip(samples.tokens.tolist(), lengths, strict=True)]
    with torch.no_grad(), policy.precision():
        rows = Sequences([prompt for prompt in prompts for _ in range(3)], responses)
        learner = response_scores(policy.model, rows).logprobs
    written = torch.arange(samples.tokens.shape[1]) < samples.lengths[:, None]
    return samples.tokens, samples.logprobs[written], learner


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])  # our own decoder, and the one of transformers
def test_processes_write_like_one(family: str) -> None:
    """Each a prompt of another length, and its responses; then with rounded products, as close as one process."""
    one = write(family, 1, False)
    assert len(set((one[0] != 0).sum(1).tolist())) > 1
    for tokens, logprobs, learner in run_ranks(3, write, family, 3, False):
        assert torch.equal(tokens, one[0])
        torch.testing.assert_close(logprobs, one[1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(learner, one[1], atol=1e-4, rtol=1e-4)
    _, logprobs, learner = write(family, 1, True)
    rounding = float((logprobs - learner).abs().max())
    for _, logprobs, learner in run_ranks(2, write, family, 2, True):
        assert float((logprobs - learner).abs().max()) < 2 * rounding


def published(size: int, lora: bool) -> dict[str, Any]:
    """What a rollout worker of sharded learners would write with, before and after an update, and what they have."""
    policy = tiny_model("qwen2")
    if lora:
        add_lora(policy, 2, 4, seed=0)
    shard_policy(policy, "cpu")
    ranks = Ranks(torch.distributed.get_rank(), size)
    optimizer = torch.optim.AdamW([one for one in policy.model.parameters() if one.requires_grad], lr=RATE, fused=True)
    publisher = Publisher(policy, lambda content: content, "cpu", 10, ranks)
    Updater(policy, optimizer, Algorithm(), UpdateSettings(), ranks).update(make_rollouts())
    parcel = publisher.publish()
    now = {name: whole(value) for name, value in policy.model.named_parameters()}
    if ranks.rank:
        assert (publisher.model.reference, parcel.reference) == ([], [])
        return {}
    (blueprint,), (update,) = publisher.model.reference, parcel.reference
    before = {name: value.detach().clone() for name, value in blueprint.policy.model.named_parameters()}
    load_bytes(blueprint.policy.model, update.tensors)
    check_probe(update.probe, probe_logprobs(blueprint.policy, update.probe.tokens), None)
    after = {name: value.detach() for name, value in blueprint.policy.model.named_parameters()}
    return {"before": before, "after": after, "now": now, "sent": list(update.tensors)}


@pytest.mark.parametrize("lora", [False, True])
def test_rollout_workers_get_the_whole_weights(lora: bool) -> None:
    first, second = run_ranks(2, published, 2, lora)
    assert second == {}
    start = tiny_model("qwen2")
    if lora:
        add_lora(start, 2, 4, seed=0)
    for name, value in start.model.named_parameters():
        assert torch.equal(first["before"][name], value), name
        assert torch.equal(first["after"][name], first["now"][name]), name
        changed = value.requires_grad and not torch.equal(first["now"][name], value)
        assert (name in first["sent"]) == changed, name
    assert any("lora_" in name for name in first["sent"]) == lora

"""Who gets the credit, which rows are kept, and how the loop asks for both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import equal, make_loop, odd, one_some_all, shifted, weights, without_clock
from test_update import make_rollouts
from torch import Tensor

from zerozoo.language.algorithm import ADVANTAGES, DIVERGENCES, Algorithm, KLPenalty
from zerozoo.language.credit import Credit, GroupCredit, ReturnCredit, rewards_of_tokens
from zerozoo.language.rollouts import Rollouts, join_rollouts
from zerozoo.language.selection import Selection, by_pass_rate, by_rank, one_pair
from zerozoo.language.zero_rl import ZeroRL
from zerozoo.losses.advantages import group_centred
from zerozoo.rewards.verifier import Verdict
from zerozoo.runs.errors import UserError

DOUBLE = torch.float64


def two_rows() -> Rollouts:
    """One group of two responses, of three tokens and of one."""
    rollouts = make_rollouts(rewards=[1.0, 0.0, 0.0, 0.0]).take_rows(torch.tensor([0, 3]))
    rollouts.samples.lengths = torch.tensor([3, 1])
    rollouts.samples.tokens = rollouts.samples.tokens[:, :4]
    rollouts.rewards = torch.tensor([2.0, -1.0], dtype=DOUBLE)
    return rollouts


# --- the ways to give it


def test_rewards_of_tokens_by_hand() -> None:
    rollouts = two_rows()
    kl = torch.tensor([[0.1, 0.2, 0.3, 0.0], [0.5, 0.0, 0.0, 0.0]], dtype=DOUBLE)
    rollouts.token_rewards = torch.tensor([[0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=DOUBLE)
    expected = torch.tensor([[-0.2, 4.6, 1.4, 0.0], [-2.0, 0.0, 0.0, 0.0]], dtype=DOUBLE)
    torch.testing.assert_close(rewards_of_tokens(rollouts, kl, 2.0), expected)


def test_group_credit_counts_token_rewards_and_kl_by_their_sum() -> None:
    rollouts = two_rows()
    rollouts.token_rewards = torch.tensor([[0.5, 0.0, 0.5, 0.0], [0.25, 0.0, 0.0, 0.0]], dtype=DOUBLE)
    kl = torch.tensor([[0.1, 0.2, 0.3, 9.0], [0.5, 9.0, 9.0, 9.0]], dtype=DOUBLE)  # padding counts for nothing
    rewards = torch.tensor([2.0 + 1.0 - 0.6 * 2, -1.0 + 0.25 - 0.5 * 2], dtype=DOUBLE)
    advantages = GroupCredit(group_centred).give(rollouts, kl, 2.0)
    torch.testing.assert_close(advantages, rewards - rewards.mean())


def test_return_credit_by_hand() -> None:
    rollouts = two_rows()
    kl = torch.tensor([[0.1, 0.2, 0.3, 0.0], [0.5, 0.0, 0.0, 0.0]], dtype=DOUBLE)
    returns = torch.tensor([2 - 2 * 0.6, 2 - 2 * 0.5, 2 - 2 * 0.3, -1 - 2 * 0.5], dtype=DOUBLE)
    white = (returns - returns.mean()) / (returns.square().mean() - returns.mean() ** 2 + 1e-8).sqrt()
    advantages = ReturnCredit().give(rollouts, kl, 2.0)
    assert advantages[0].tolist() == pytest.approx([*white[:3].tolist(), 0.0])
    assert advantages[1].tolist() == pytest.approx([white[3].item(), 0.0, 0.0, 0.0])
    discounted = ReturnCredit(0.5).give(rollouts, None, 0.0)
    returns = torch.tensor([0.5, 1.0, 2.0, -1.0], dtype=DOUBLE)
    white = (returns - returns.mean()) / (returns.var(correction=0) + 1e-8).sqrt()
    assert [*discounted[0, :3].tolist(), discounted[1, 0].item()] == pytest.approx(white.tolist())


def test_tokens_that_an_environment_wrote_cost_no_kl_and_are_not_normalised_over() -> None:
    rollouts = two_rows()
    rollouts.trained = torch.tensor([[True, False, True, True], [True, True, True, True]])
    kl = torch.tensor([[0.1, 9.0, 0.3, 9.0], [0.5, 9.0, 9.0, 9.0]], dtype=DOUBLE)
    expected = torch.tensor([[-0.2, 0.0, 1.4, 0.0], [-2.0, 0.0, 0.0, 0.0]], dtype=DOUBLE)
    torch.testing.assert_close(rewards_of_tokens(rollouts, kl, 2.0), expected)
    rewards = torch.tensor([2.0 - 2 * 0.4, -2.0], dtype=DOUBLE)
    torch.testing.assert_close(GroupCredit(group_centred).give(rollouts, kl, 2.0), rewards - rewards.mean())
    returns = torch.tensor([1.2, 1.4, -2.0], dtype=DOUBLE)
    white = (returns - returns.mean()) / (returns.var(correction=0) + 1e-8).sqrt()
    advantages = ReturnCredit().give(rollouts, kl, 2.0)
    assert [*advantages[0].tolist(), advantages[1, 0].item()] == pytest.approx(
        [white[0].item(), 0.0, white[1].item(), 0.0, white[2].item()]
    )


def test_the_selection_does_not_change_what_the_group_is_compared_with(tmp_path: Path) -> None:
    """Masks of tokens, too: the KL of rows that are left out after the credit still counts in their group."""
    holder: list[ZeroRL] = []
    kl = KLPenalty(0.1, DIVERGENCES["k1"], place="reward")
    results = []
    for name, selection in (("all", None), ("pairs", one_pair())):
        algorithm = Algorithm(advantage=ADVANTAGES["group-centred"], kl=kl, selection=selection)
        holder[:] = [make_loop(tmp_path / name, answer=half_right, algorithm=algorithm, reference=shifted(holder, 0.5))]
        rollouts, _ = holder[0].collector.collect(1)
        rollouts.trained = rollouts.written()
        holder[0]._credit(rollouts)
        results.append(rollouts)
    assert torch.equal(results[0].advantages, results[1].advantages)
    assert results[1].trained.any(1).sum() == 6


def test_returns_that_are_all_equal_train_nothing() -> None:
    rollouts = two_rows()
    rollouts.rewards = torch.full((2,), 0.1, dtype=DOUBLE)
    assert not ReturnCredit().give(rollouts, None, 0.0).any()


def test_a_credit_has_to_be_given_and_learns_nothing_by_itself() -> None:
    with pytest.raises(NotImplementedError):
        Credit().give(two_rows(), None, 0.0)
    assert Credit().learn() == {}
    assert Credit().tensors() == {}


# --- rollouts with tokens of their own


def test_rows_are_taken_with_everything_that_belongs_to_them() -> None:
    rollouts = make_rollouts()
    longest = rollouts.samples.tokens.shape[1]
    rollouts.token_rewards = torch.arange(16.0)[:, None] * torch.ones(longest)
    rollouts.advantages = -rollouts.token_rewards
    rows = torch.tensor([5, 0, 9])
    taken = rollouts.take_rows(rows)
    assert taken.groups.tolist() == [1, 0, 2]
    assert taken.rewards.tolist() == rollouts.rewards[rows].tolist()
    assert taken.sequences([0, 1, 2]) == rollouts.sequences([5, 0, 9])
    assert taken.token_rewards is not None
    assert taken.token_rewards[:, 0].tolist() == [5, 0, 9]
    assert taken.advantages[:, 0].tolist() == [-5, 0, -9]


def test_a_log_gets_one_advantage_a_row() -> None:
    rollouts = two_rows()
    assert rollouts.with_row_advantages() is rollouts
    rollouts.advantages = torch.tensor([[1.0, 2.0, 6.0, 0.0], [-4.0, 0.0, 0.0, 0.0]])
    assert rollouts.with_row_advantages().advantages.tolist() == [3.0, -4.0]
    assert [row["advantage"] for row in rollouts.with_row_advantages().rows_for_log(1)] == [3.0, -4.0]
    assert rollouts.flat_advantages().tolist() == [1.0, 2.0, 6.0, -4.0]


def test_rollouts_are_joined_before_their_tokens_have_anything_of_their_own() -> None:
    rollouts = two_rows()
    rollouts.token_rewards = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="joined before"):
        join_rollouts([rollouts, two_rows()], 0)


# --- the loop


class Watched(Credit):
    """Gives every token the number of the step, and remembers what it was asked."""

    def __init__(self) -> None:
        self.steps = torch.zeros(1)
        self.seen: list[tuple[Rollouts, Tensor | None, float]] = []
        parameter = torch.nn.Parameter(torch.zeros(1))
        self.optimizers = (torch.optim.SGD([parameter], lr=0.5),)

    def give(self, rollouts: Rollouts, kl: Tensor | None, coefficient: float) -> Tensor:
        self.seen.append((rollouts, kl, coefficient))
        return (self.steps + 1) * rollouts.written()

    def learn(self) -> dict[str, float]:
        self.steps = self.steps + 1
        return {"credit/steps": float(self.steps)}

    def tensors(self) -> dict[str, Tensor]:
        return {"steps": self.steps}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.steps = tensors["steps"].clone()


def test_the_loop_asks_gives_logs_and_learns(tmp_path: Path) -> None:
    credit = Watched()
    loop = make_loop(tmp_path, answer=one_some_all, credit=credit, steps=2, samples_logged=12)
    loop.train()
    rows = loop.run.history()[1:]
    assert [row["credit/steps"] for row in rows] == [1, 2]
    assert [(row["advantage/lowest"], row["advantage/highest"]) for row in rows] == [(1, 1), (2, 2)]
    assert all(row["update/row_share"] == 1 for row in rows)  # rows of equal rewards, too: they have advantages
    logged = [row["advantage"] for row in loop.run.samples() if row["phase"] == "train"]
    assert logged == [1.0] * 12 + [2.0] * 12


def test_the_state_of_the_credit_is_in_the_checkpoint(tmp_path: Path) -> None:
    unbroken = make_loop(tmp_path / "unbroken", rule=odd, credit=Watched(), steps=4)
    unbroken.train()
    make_loop(tmp_path / "run", rule=odd, credit=Watched(), steps=2).train()
    resumed = make_loop(tmp_path / "run", rule=odd, credit=Watched(), steps=4)
    resumed.train()
    assert torch.equal(weights(resumed), weights(unbroken))
    assert [row.get("credit/steps") for row in resumed.run.history()] == [None, 1, 2, 3, 4]


def test_learning_rates_of_the_credit_follow_the_schedule(tmp_path: Path) -> None:
    credit = Watched()
    loop = make_loop(tmp_path, answer=one_some_all, credit=credit, steps=4, warmup_steps=2, schedule="linear")
    used = []
    learn = credit.learn

    def learn_and_look() -> dict[str, float]:
        used.append(credit.optimizers[0].param_groups[0]["lr"])
        return learn()

    credit.learn = learn_and_look  # type: ignore[method-assign]
    loop.train()
    assert used == pytest.approx([0.5 * 0.5, 0.75 * 0.5, 0.5 * 0.5, 0.25 * 0.5])
    assert [row["learning_rate"] for row in loop.run.history()[1:]] == pytest.approx([rate / 50 for rate in used])


def test_in_frozen_steps_only_the_credit_learns(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, answer=one_some_all, credit=Watched(), frozen_steps=2)
    start = weights(loop)
    for step in (1, 2, 3):
        _, metrics = loop.step(step)
        assert metrics["credit/steps"] == step
        assert ("policy/loss" in metrics) == (step == 3)
        assert torch.equal(weights(loop), start) == (step < 3)


def test_the_kl_of_each_token_reaches_the_credit(tmp_path: Path) -> None:
    holder: list[ZeroRL] = []
    credit = Watched()
    algorithm = Algorithm(kl=KLPenalty(0.1, DIVERGENCES["k1"], place="reward"))
    loop = make_loop(tmp_path, answer=one_some_all, algorithm=algorithm, credit=credit, reference=shifted(holder, 0.5))
    holder.append(loop)
    loop.step(1)
    ((rollouts, kl, coefficient),) = credit.seen
    assert coefficient == 0.1
    assert kl is not None
    torch.testing.assert_close(kl[rollouts.written()], torch.full((int(rollouts.samples.lengths.sum()),), 0.5))


# --- rewards beyond the verdict


def lengths_as_reward(rollouts: Rollouts) -> Tensor:
    return -0.1 * rollouts.samples.lengths.float()


def test_extra_rewards_are_credited_and_logged_but_the_metric_is_the_tasks(tmp_path: Path) -> None:
    algorithm = Algorithm(advantage=ADVANTAGES["group-centred"])
    loop = make_loop(tmp_path, answer=one_some_all, algorithm=algorithm, extra_reward=lengths_as_reward)
    rollouts, metrics = loop.step(1)
    assert metrics["reward"] == pytest.approx(5 / 12)
    assert metrics["reward/extra"] == pytest.approx(-0.1 * float(rollouts.samples.lengths.sum()) / 12)
    group = [task.id for task in rollouts.tasks].index("t0")
    total = torch.tensor([1 - 0.3, -0.4, -0.5, -0.6])
    torch.testing.assert_close(rollouts.rewards[rollouts.groups == group], total)
    torch.testing.assert_close(rollouts.advantages[rollouts.groups == group], total - total.mean())


def test_extra_rewards_of_tokens_reach_the_credit(tmp_path: Path) -> None:
    credit = Watched()

    def at_first_token(rollouts: Rollouts) -> Tensor:
        rewards = torch.zeros(rollouts.samples.tokens.shape)
        rewards[:, 0] = 2.0
        return rewards

    loop = make_loop(tmp_path, answer=one_some_all, credit=credit, extra_reward=at_first_token)
    _, metrics = loop.step(1)
    rollouts = credit.seen[0][0]
    assert rewards_of_tokens(rollouts, None, 0.0)[:, 0].tolist() == [2.0] * 12
    assert metrics["reward/extra"] == 2.0


def test_fresh_problems_replace_groups_by_their_verdicts_alone(tmp_path: Path) -> None:
    """DAPO: lengths that differ make no group informative."""
    options: dict[str, Any] = {"answer": one_some_all, "algorithm": Algorithm(refill_rounds=1), "steps": 1}
    plain, metrics = make_loop(tmp_path / "a", **options).step(1)
    extra, others = make_loop(tmp_path / "b", **options, extra_reward=lengths_as_reward).step(1)
    assert metrics["groups/rounds"] == others["groups/rounds"] == 2
    assert [task.id for task in plain.tasks] == [task.id for task in extra.tasks]


# --- which rows are kept


def half_right(question: str, number: int) -> str:
    """q0: one of four is right, q1: two, q2: three."""
    return "a" + question[1:] if number <= int(question[1:]) else "wrong"[: 2 + number]


def kept(rollouts: Rollouts) -> dict[str, list[bool]]:
    return {task.id: rollouts.trained[rollouts.groups == group].tolist() for group, task in enumerate(rollouts.tasks)}


def test_a_band_of_pass_rates_keeps_whole_groups(tmp_path: Path) -> None:
    algorithm = Algorithm(selection=by_pass_rate(0.3, 0.6))
    rollouts, metrics = make_loop(tmp_path, answer=half_right, algorithm=algorithm).step(1)
    assert kept(rollouts) == {"t0": [False] * 4, "t1": [True] * 4, "t2": [False] * 4}
    assert metrics["update/rows"] == 4


def test_one_pair_of_each_group_with_the_baseline_of_all(tmp_path: Path) -> None:
    """OREAL: the advantages are those of the whole group, and two rows of it are trained."""
    algorithm = Algorithm(advantage=ADVANTAGES["leave-one-out"], selection=one_pair())
    rollouts, metrics = make_loop(tmp_path, answer=half_right, algorithm=algorithm).step(1)
    assert metrics["update/rows"] == 6
    for group, task in enumerate(rollouts.tasks):
        rows = rollouts.groups == group
        rewards, advantages = rollouts.rewards[rows], rollouts.advantages[rows]
        assert rewards[rollouts.trained[rows]].sort().values.tolist() == [0.0, 1.0]
        others = (rewards.sum() - rewards) / 3
        torch.testing.assert_close(advantages, rewards - others), task


def test_ranks_with_the_baseline_of_the_kept(tmp_path: Path) -> None:
    """PF-PPO: credit is given as if the kept responses were all there are."""
    reward = iter([0.1, 0.9, 0.4, 0.2] * 3)
    loop = make_loop(
        tmp_path,
        answer=half_right,
        reward=lambda verification: next(reward),
        algorithm=Algorithm(advantage=ADVANTAGES["group-centred"], selection=by_rank("best-worst")),
    )
    rollouts, metrics = loop.step(1)
    assert metrics["update/rows"] == 6
    for group in range(3):
        rows = rollouts.groups == group
        assert rollouts.trained[rows].tolist() == [True, True, False, False]
        torch.testing.assert_close(rollouts.advantages[rows], torch.tensor([-0.4, 0.4, 0.0, 0.0]))
    whole = make_loop(
        tmp_path / "whole",
        answer=half_right,
        rule=equal,
        algorithm=Algorithm(advantage=ADVANTAGES["group-centred"], selection=by_rank("best-worst", False)),
    )
    rollouts, _ = whole.step(1)
    assert rollouts.trained.sum() == 6
    torch.testing.assert_close(rollouts.advantages, group_centred(rollouts.rewards, rollouts.groups))


def test_a_critic_sees_the_kept_rows_only(tmp_path: Path) -> None:
    credit = Watched()
    algorithm = Algorithm(selection=by_rank("best"))
    rollouts, _ = make_loop(tmp_path, answer=half_right, algorithm=algorithm, credit=credit).step(1)
    part = credit.seen[0][0]
    assert len(part) == 3
    assert part.rewards.tolist() == [1.0, 1.0, 1.0]
    assert part.groups.tolist() == [0, 1, 2]
    assert torch.equal(rollouts.advantages != 0, rollouts.trained[:, None] & rollouts.written())


def test_rows_left_out_of_the_reference_are_in_no_kl_term(tmp_path: Path) -> None:
    """Log-probs are computed for the kept rows and put back into their places."""
    holder: list[ZeroRL] = []
    algorithm = Algorithm(kl=KLPenalty(0.1), selection=by_rank("best-worst"))
    loop = make_loop(tmp_path, answer=half_right, algorithm=algorithm, reference=shifted(holder, 0.5))
    holder.append(loop)
    rollouts, metrics = loop.step(1)
    assert metrics["update/rows"] == 6
    assert metrics["policy/kl"] == pytest.approx(math.exp(-0.5) + 0.5 - 1, rel=1e-4)


@pytest.mark.parametrize("before", [True, False])
def test_a_step_without_any_row_is_no_step(tmp_path: Path, before: bool) -> None:
    def nothing(rollouts: Rollouts, generator: torch.Generator) -> Tensor:
        return torch.zeros(len(rollouts), dtype=torch.bool)

    loop = make_loop(tmp_path, answer=half_right, algorithm=Algorithm(selection=Selection(nothing, before)))
    start = weights(loop)
    _, metrics = loop.step(1)
    assert metrics["update/skipped_steps"] == 1
    assert torch.equal(weights(loop), start)


def test_the_choice_of_rows_is_a_stream_of_the_run(tmp_path: Path) -> None:
    """Resumed in the middle, the same pairs are drawn."""

    def loop(name: str, steps: int) -> ZeroRL:
        algorithm = Algorithm(selection=one_pair())
        return make_loop(tmp_path / name, rule=odd, algorithm=algorithm, steps=steps, checkpoint_every=2)

    unbroken = loop("unbroken", 5)
    unbroken.train()
    loop("run", 2).train()
    resumed = loop("run", 5)
    resumed.train()
    assert torch.equal(weights(resumed), weights(unbroken))
    trained = [row for row in without_clock(resumed.run.history()) if row["step"] > 2]
    assert trained == [row for row in without_clock(unbroken.run.history()) if row["step"] > 2]


def test_a_selection_draws_from_the_stream_of_its_name(tmp_path: Path) -> None:
    seen = []

    def everything(rollouts: Rollouts, generator: torch.Generator) -> Tensor:
        seen.append(generator)
        return torch.ones(len(rollouts), dtype=torch.bool)

    loop = make_loop(tmp_path, answer=half_right, algorithm=Algorithm(selection=Selection(everything)))
    rollouts, _ = loop.step(1)
    assert seen == [loop.run.stream("selection")]
    assert rollouts.trained.all()


def test_masked_rows_stay_masked(tmp_path: Path) -> None:
    def answer(question: str, number: int) -> str:
        return ["a" + question[1:], "toolong", "no", "a" + question[1:]][number]

    algorithm = Algorithm(overlong="mask", selection=by_pass_rate(0.0, 1.0))
    rollouts, _ = make_loop(tmp_path, answer=answer, algorithm=algorithm).step(1)
    assert rollouts.trained.tolist() == [True, False, True, True] * 3


def test_right_is_what_the_verifier_says(tmp_path: Path) -> None:
    """A reward that is not 1 and 0 moves no pass rate; an unscorable response is not right."""
    verdicts: dict[str, Verdict] = {"r": Verdict.RIGHT, "w": Verdict.WRONG, "u": Verdict.UNSCORABLE}
    answers: Callable[[str, int], str] = lambda question, number: "rwuw"[number]  # noqa: E731
    loop = make_loop(
        tmp_path,
        answer=answers,
        rule=lambda _, text: verdicts[text],
        reward=lambda verification: 5.0,
        algorithm=Algorithm(selection=by_pass_rate(0.25, 0.25)),
    )
    rollouts, _ = loop.step(1)
    assert rollouts.trained.all()


def test_an_unknown_filter_is_one_sentence() -> None:
    with pytest.raises(UserError, match="Unknown filter 'worst'; choose one of: none, best, best-random, best-worst"):
        by_rank("worst")

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from zerozoo.losses.traces import gae, lambda_returns, n_step_returns, reward_to_go

GAMMA, LAMBDA = 0.9, 0.7


def rollout(seed: int, steps: int = 23, columns: int = 4) -> dict[str, torch.Tensor]:
    """Random rewards and values with several ends of both kinds; values[t + 1] = next_values[t] inside an episode."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(steps, columns, generator=generator, dtype=torch.float64) for _ in range(2))
    draw = torch.rand(steps, columns, generator=generator)
    terminated, truncated = draw < 0.1, (draw > 0.1) & (draw < 0.25)
    ended = terminated | truncated
    beyond = torch.randn(steps, columns, generator=generator, dtype=torch.float64)
    shifted = torch.cat([values[1:], beyond[-1:]])
    next_values = torch.where(ended, beyond, shifted)
    return {"rewards": rewards, "values": values, "next_values": next_values, "terminated": terminated, "ended": ended}


def split(data: dict[str, torch.Tensor]) -> list[tuple[int, int, int]]:
    """(column, first row, row after the last) of every episode or unfinished piece."""
    pieces = []
    for column in range(data["ended"].shape[1]):
        first = 0
        for row in range(len(data["ended"])):
            if data["ended"][row, column] or row == len(data["ended"]) - 1:
                pieces.append((column, first, row + 1))
                first = row + 1
    return pieces


def reference_gae(rewards, values, next_values, terminated) -> list[float]:
    """One episode: the sum over all later errors, written out from its definition."""
    steps = zip(rewards, values, next_values, terminated, strict=True)
    error = [r + GAMMA * (0.0 if end else n) - v for r, v, n, end in steps]
    return [sum((GAMMA * LAMBDA) ** (k - t) * error[k] for k in range(t, len(error))) for t in range(len(error))]


@pytest.mark.parametrize("seed", range(3))
def test_gae_equals_episodes_computed_separately(seed):
    data = rollout(seed)
    assert int(data["terminated"].sum()) > 2
    assert int((data["ended"] & ~data["terminated"]).sum()) > 2
    together = gae(**data, gamma=GAMMA, lam=LAMBDA).numpy()
    for column, first, last in split(data):
        part = {name: tensor[first:last, column] for name, tensor in data.items()}
        alone = gae(**{name: tensor[:, None] for name, tensor in part.items()}, gamma=GAMMA, lam=LAMBDA)
        np.testing.assert_allclose(together[first:last, column], alone[:, 0].numpy(), atol=1e-12)
        lists = {name: part[name].tolist() for name in ("rewards", "values", "next_values", "terminated")}
        np.testing.assert_allclose(together[first:last, column], reference_gae(**lists), atol=1e-12)


def test_gae_by_hand():
    """Two episodes in one column: the first truncated after two steps, the second terminated after one."""
    column = {"rewards": [1.0, 2.0, 4.0], "values": [10.0, 20.0, 30.0], "next_values": [20.0, 40.0, 50.0]}
    flags = {"terminated": [False, False, True], "ended": [False, True, True]}
    tensors = {name: torch.tensor(row, dtype=torch.float64)[:, None] for name, row in column.items()}
    tensors |= {name: torch.tensor(row)[:, None] for name, row in flags.items()}
    errors = [1 + 0.5 * 20 - 10, 2 + 0.5 * 40 - 20, 4 - 30]
    expected = [errors[0] + 0.25 * errors[1], errors[1], errors[2]]
    assert gae(**tensors, gamma=0.5, lam=0.5)[:, 0].tolist() == expected


def test_lambda_zero_and_one():
    data = rollout(5)
    error = data["rewards"] + GAMMA * data["next_values"] * ~data["terminated"] - data["values"]
    torch.testing.assert_close(gae(**data, gamma=GAMMA, lam=0.0), error)
    whole = lambda_returns(**data, gamma=GAMMA, lam=1.0)
    without = {name: tensor for name, tensor in data.items() if name != "values"}
    torch.testing.assert_close(whole, n_step_returns(**without, gamma=GAMMA, steps=1000))


def test_lambda_returns_follow_their_recursion():
    data = rollout(6)
    returns = lambda_returns(**data, gamma=GAMMA, lam=LAMBDA)
    following = torch.cat([returns[1:], data["next_values"][-1:]])
    inside = (1 - LAMBDA) * data["next_values"] + LAMBDA * following
    after = torch.where(data["ended"], data["next_values"], inside)
    after[-1] = data["next_values"][-1]
    torch.testing.assert_close(returns, data["rewards"] + GAMMA * after * ~data["terminated"])


def test_constant_values_have_the_closed_form():
    """V = c, r = c (1 - gamma), no end: every error and advantage is 0. With r = 0 the sum is geometric."""
    steps = 50
    ones = torch.ones(steps, 1, dtype=torch.float64)
    never = torch.zeros(steps, 1, dtype=torch.bool)
    zero = gae(3 * (1 - GAMMA) * ones, 3 * ones, 3 * ones, never, never, GAMMA, LAMBDA)
    assert float(zero.abs().max()) < 1e-14
    advantages = gae(0 * ones, 3 * ones, 3 * ones, never, never, GAMMA, LAMBDA)[:, 0]
    error, decay = 3 * (GAMMA - 1), GAMMA * LAMBDA
    expected = [error * (1 - decay ** (steps - t)) / (1 - decay) for t in range(steps)]
    np.testing.assert_allclose(advantages.numpy(), expected, atol=1e-12)


def test_a_meaningless_value_behind_a_true_end_does_not_matter():
    data = rollout(7)
    expected = gae(**data, gamma=GAMMA, lam=LAMBDA)
    data["next_values"] = torch.where(data["terminated"], math.nan, data["next_values"])
    assert torch.equal(gae(**data, gamma=GAMMA, lam=LAMBDA), expected)


def test_no_gradient():
    data = rollout(8)
    data["values"].requires_grad_(True)
    data["next_values"].requires_grad_(True)
    assert not gae(**data, gamma=GAMMA, lam=LAMBDA).requires_grad
    assert not lambda_returns(**data, gamma=GAMMA, lam=LAMBDA).requires_grad
    without = {name: tensor for name, tensor in data.items() if name != "values"}
    assert not n_step_returns(**without, gamma=GAMMA, steps=3).requires_grad


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
def test_n_step_returns_against_loops(steps):
    data = rollout(9)
    expected = np.zeros(data["rewards"].shape)
    for column, first, last in split(data):
        for t in range(first, last):
            stop = min(t + steps, last)
            total = sum(GAMMA ** (k - t) * float(data["rewards"][k, column]) for k in range(t, stop))
            if not data["terminated"][stop - 1, column]:
                total += GAMMA ** (stop - t) * float(data["next_values"][stop - 1, column])
            expected[t, column] = total
    without = {name: tensor for name, tensor in data.items() if name != "values"}
    np.testing.assert_allclose(n_step_returns(**without, gamma=GAMMA, steps=steps).numpy(), expected, atol=1e-12)
    with pytest.raises(ValueError, match="steps"):
        n_step_returns(**without, gamma=GAMMA, steps=0)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_reward_to_go_of_a_flat_array_of_episodes(gamma):
    lengths = [1, 5, 2, 8, 1, 1, 9]
    rewards = torch.randn(sum(lengths), 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ended = torch.zeros(sum(lengths), 1, dtype=torch.bool)
    ended[np.cumsum(lengths) - 1] = True
    result = reward_to_go(rewards, ended, gamma)[:, 0].numpy()
    start = 0
    for length in lengths:
        part = rewards[start : start + length, 0].numpy()
        expected = [sum(gamma ** (k - t) * part[k] for k in range(t, length)) for t in range(length)]
        np.testing.assert_allclose(result[start : start + length], expected, atol=1e-12)
        start += length


def test_inputs_are_left_alone():
    data = rollout(10)
    copies = {name: tensor.clone() for name, tensor in data.items()}
    gae(**data, gamma=GAMMA, lam=LAMBDA)
    reward_to_go(data["rewards"], data["ended"])
    assert all(torch.equal(data[name], copies[name]) for name in data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": torch.zeros(23)}, "rank 2"),
        ({"next_values": torch.zeros(22, 4, dtype=torch.float64)}, "equal"),  # T values for T steps: no shifted slices
        ({"terminated": torch.zeros(23, 4, dtype=torch.float64)}, "bool"),
        ({"ended": torch.zeros(23, 4, dtype=torch.bool)}, "terminated step must be an ended one"),
    ],
)
def test_wrong_inputs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        gae(**(rollout(0) | change), gamma=GAMMA, lam=LAMBDA)

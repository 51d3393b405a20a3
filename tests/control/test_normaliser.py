"""Normaliser against float64 statistics of all data, its modes, and its place in the state_dict."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from zerozoo.control.normaliser import Normaliser


def data(rows: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal([1000.0, 0.0, -3.0], [0.01, 5.0, 1.0], (rows, 3))


def check(normaliser: Normaliser, seen: np.ndarray) -> None:
    seen = seen.reshape(-1, 3)
    np.testing.assert_allclose(normaliser.mean.numpy(), seen.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(normaliser.std.numpy(), seen.std(0) + 1e-6, rtol=1e-4)
    assert normaliser.count == len(seen)
    assert normaliser.mean.dtype == normaliser.std.dtype == torch.float32


def test_it_changes_nothing_before_it_has_seen_data():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Normaliser((3,))(x), x)


def test_two_rows_by_hand():
    normaliser = Normaliser((2,)).fit([[1.0, 5.0], [3.0, 5.0]])
    assert normaliser.mean.tolist() == [2.0, 5.0]
    np.testing.assert_allclose(normaliser.std.numpy(), [1 + 1e-6, 1e-6], rtol=1e-6)
    assert normaliser(torch.tensor([[3.0, 5.0]])).tolist() == [[pytest.approx(1.0, abs=2e-6), 0.0]]


def test_fit_and_inverse():
    rows = data(500)
    normaliser = Normaliser((3,)).fit(rows)
    check(normaliser, rows)
    x = torch.from_numpy(rows).float()
    z = normaliser(x)
    np.testing.assert_allclose(z[:, 1:].std(0, correction=0).numpy(), [1, 1], rtol=1e-4)
    np.testing.assert_allclose(normaliser.inverse(z).numpy(), rows, rtol=1e-6, atol=1e-4)
    check(normaliser.fit(rows[:7]), rows[:7])  # forgets what it saw


def test_fit_goes_through_large_data_in_chunks(monkeypatch):
    monkeypatch.setattr("zerozoo.control.normaliser.CHUNK", 7)
    rows = data(500)
    check(Normaliser((3,)).fit(rows), rows)


def test_running_moments_are_those_of_all_batches():
    """Batches of different sizes, one of them a single row; the first column is 1000 +- 0.01, which float32 blurs."""
    normaliser, seen = Normaliser((3,)), []
    for number, rows in enumerate([1, 64, 3, 200, 1, 17]):
        batch = data(rows, seed=number) + number
        normaliser.update(torch.from_numpy(batch))
        seen.append(batch)
        check(normaliser, np.concatenate(seen))


def test_time_and_copies_are_rows_alike():
    rows = data(24)
    one, other = Normaliser((3,)), Normaliser((3,))
    one.update(rows.reshape(6, 4, 3))
    other.update(rows)
    assert torch.equal(one.moments, other.moments)


def test_frozen_in_evaluation_mode():
    normaliser = Normaliser((3,)).fit(data(50))
    before = {name: value.clone() for name, value in normaliser.state_dict().items()}
    normaliser.eval()
    normaliser.update(data(50, seed=1))
    assert all(torch.equal(before[name], value) for name, value in normaliser.state_dict().items())
    with pytest.raises(ValueError, match="frozen"):
        normaliser.fit(data(50))
    normaliser.train()
    normaliser.update(data(50, seed=1))
    check(normaliser, np.concatenate([data(50), data(50, seed=1)]))


def test_resume_is_exact():
    batches = [data(rows, seed=rows) for rows in (5, 8, 13)]
    whole, first, second = Normaliser((3,)), Normaliser((3,)), Normaliser((3,))
    for batch in batches:
        whole.update(batch)
    first.update(batches[0])
    second.load_state_dict(first.state_dict())
    for batch in batches[1:]:
        second.update(batch)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_clip():
    normaliser = Normaliser((1,), clip=2.0).fit([[0.0], [2.0]])
    x = torch.tensor([[-9.0], [1.5], [9.0]])
    np.testing.assert_allclose(normaliser(x).numpy(), [[-2], [0.5], [2]], rtol=1e-5)
    assert Normaliser((1,)).fit([[0.0], [2.0]])(x).max() > 7


def test_it_passes_gradients_and_has_no_parameters():
    normaliser = Normaliser((3,)).fit(data(50))
    x = torch.zeros(2, 3, requires_grad=True)
    normaliser(x).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), (1 / normaliser.std).expand(2, 3).numpy())
    assert list(normaliser.parameters()) == []
    assert set(nn.Sequential(normaliser).state_dict()) == {"0.mean", "0.std", "0.count", "0.moments"}


@pytest.mark.parametrize("shape", [(3, 2), (3,), (0, 3), ()])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"rows of shape \(3,\) are wanted"):
        Normaliser((3,)).update(np.zeros(shape))

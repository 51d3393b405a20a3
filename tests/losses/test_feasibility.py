"""Targets and weights of a feasible region, by hand."""

from __future__ import annotations

import pytest
import torch

from zerozoo.losses.feasibility import feasibility_target, feasibility_weights


def test_the_feasibility_target_is_the_worst_of_now_and_later() -> None:
    h = torch.tensor([-1.0, 0.5, -0.2, 0.3])
    target = feasibility_target(h, torch.tensor([0.4, -1.0, -0.5, 2.0]), torch.tensor([0.9, 0.9, 0.0, 0.0]))
    torch.testing.assert_close(target, torch.tensor([0.1 * -1 + 0.9 * 0.4, 0.5, -0.2, 0.3]))


def test_weights_depend_on_the_region_of_state_and_action() -> None:
    v_h, q_h = torch.tensor([-1.0, -1.0, 0.0, 0.1, 0.1]), torch.tensor([-1.0, 0.5, 0.0, -1.0, 0.1])
    weights = feasibility_weights(torch.full((5,), 2.0), torch.full((5,), 3.0), q_h, v_h)
    assert weights.tolist() == [2.0, 0.0, 2.0, 3.0, 3.0]


def test_shapes_that_do_not_fit_are_refused() -> None:
    one, two = torch.zeros(1), torch.zeros(2)
    with pytest.raises(ValueError, match="shape"):
        feasibility_target(one, two, two)
    with pytest.raises(ValueError, match="shape"):
        feasibility_weights(two, two, one, two)

from __future__ import annotations

import math

import pytest
import torch

from zerozoo.losses.preferences import (
    Pairs,
    bradley_terry,
    dpo,
    dpo_length_normalised,
    ipo,
    kto,
    kto_reference_point,
    outcome_loss,
    outcome_token_weights,
    token_outcome_loss,
)

DOUBLE = torch.float64


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def pairs_of(*rows: tuple[float, float, float, float]) -> Pairs:
    return Pairs(*torch.tensor(rows, dtype=DOUBLE).T.contiguous())


PAIRS = pairs_of((-10.0, -12.0, -11.0, -11.0), (-5.0, -5.0, -5.0, -5.0), (-30.0, -3.0, -20.0, -4.0))
GAPS = [2.0, 0.0, -11.0]  # log-ratio of the chosen minus that of the rejected response


def test_dpo_by_hand():
    losses = dpo(PAIRS, beta=0.1).tolist()
    assert losses == pytest.approx([-math.log(sigmoid(0.1 * gap)) for gap in GAPS])
    assert losses[1] == pytest.approx(math.log(2))


def test_dpo_gradient():
    """-beta sigma(-beta gap) on the chosen, the opposite on the rejected log-prob, nothing on the reference."""
    leaves = Pairs(*(tensor.clone().requires_grad_(True) for tensor in PAIRS))
    dpo(leaves, beta=0.5).sum().backward()
    expected = [-0.5 * sigmoid(-0.5 * gap) for gap in GAPS]
    assert leaves.chosen.grad.tolist() == pytest.approx(expected)
    assert leaves.rejected.grad.tolist() == pytest.approx([-value for value in expected])
    assert leaves.reference_chosen.grad is None
    assert leaves.reference_rejected.grad is None


def test_dpo_is_finite_and_trains_far_away():
    """log(sigmoid(x)) would be log(0) here."""
    far = pairs_of((-2000.0, 0.0, 0.0, 0.0))
    chosen = far.chosen.requires_grad_(True)
    loss = dpo(far, beta=1.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(2000)
    assert chosen.grad.item() == pytest.approx(-1)


def test_the_optimum_of_dpo_is_the_tilted_reference():
    """Pairs labelled by a Bradley-Terry judge with reward R: the optimum is ref exp(R / beta) / Z (DPO, equation 4)."""
    beta, reward = 0.7, torch.tensor([0.0, 0.5, -1.0], dtype=DOUBLE)
    reference = torch.tensor([0.5, 0.2, 0.3], dtype=DOUBLE).log()
    logits = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
    first, second = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    wins = (reward[first] - reward[second]).sigmoid()
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        policy = logits.log_softmax(0)
        here = Pairs(policy[first], policy[second], reference[first], reference[second])
        there = Pairs(policy[second], policy[first], reference[second], reference[first])
        loss = (wins * dpo(here, beta) + (1 - wins) * dpo(there, beta)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(logits.softmax(0), (reference + reward / beta).softmax(0), atol=1e-6, rtol=0)


def test_length_normalised_dpo_by_hand():
    lengths = torch.tensor([4, 5, 20]), torch.tensor([2, 5, 1])
    losses = dpo_length_normalised(PAIRS, *lengths, beta=5.0).tolist()
    margins = [5 / 4 * 1 - 5 / 2 * -1, 0.0, 5 / 20 * -10 - 5 / 1 * 1]
    assert losses == pytest.approx([-math.log(sigmoid(margin)) for margin in margins])
    same = torch.tensor([3, 3, 3])
    torch.testing.assert_close(dpo_length_normalised(PAIRS, same, same, 0.3), dpo(PAIRS, 0.1))


def test_ipo_by_hand_and_where_it_rests():
    assert ipo(PAIRS, tau=0.25).tolist() == pytest.approx([(gap - 2) ** 2 for gap in GAPS])
    chosen = PAIRS.chosen.clone().requires_grad_(True)
    ipo(PAIRS._replace(chosen=chosen), tau=0.25).sum().backward()
    assert chosen.grad.tolist() == pytest.approx([2 * (gap - 2) for gap in GAPS])  # 0 where the gap is 1 / (2 tau)


@pytest.mark.parametrize(("kl", "z"), [(0.8, 0.8), (-3.0, 0.0)])
def test_kto_by_hand(kl, z):
    logprobs = torch.tensor([-9.0, -11.0, -10.0, -7.0], dtype=DOUBLE, requires_grad=True)
    reference = torch.full((4,), -10.0, dtype=DOUBLE)
    desirable = torch.tensor([True, True, False, False])
    loss = kto(logprobs, reference, desirable, torch.tensor(kl, dtype=DOUBLE), 0.5, 1.0, 1.25)
    ratios, weights, signs = [1.0, -1.0, 0.0, 3.0], [1.0, 1.0, 1.25, 1.25], [1, 1, -1, -1]
    values = [sigmoid(sign * 0.5 * (ratio - z)) for sign, ratio in zip(signs, ratios, strict=True)]
    assert loss.tolist() == pytest.approx([w * (1 - v) for w, v in zip(weights, values, strict=True)])
    loss.sum().backward()
    expected = [-s * w * 0.5 * v * (1 - v) for s, w, v in zip(signs, weights, values, strict=True)]
    assert logprobs.grad.tolist() == pytest.approx(expected)


def test_kto_gives_no_gradient_to_reference_and_reference_point():
    reference = torch.zeros(2, requires_grad=True)
    kl = torch.tensor(0.5, requires_grad=True)
    logprobs = torch.zeros(2, requires_grad=True)
    kto(logprobs, reference, torch.tensor([True, False]), kl, 0.1).sum().backward()
    assert reference.grad is None
    assert kl.grad is None
    point = kto_reference_point(logprobs + torch.tensor([1.0, 2.0]), reference)
    assert (point.item(), point.requires_grad) == (1.5, False)


def test_bradley_terry_by_hand():
    chosen = torch.tensor([2.0, 0.0, -1.0], dtype=DOUBLE, requires_grad=True)
    rejected = torch.tensor([1.0, 0.0, 1.0], dtype=DOUBLE)
    loss = bradley_terry(chosen, rejected)
    assert loss.tolist() == pytest.approx([-math.log(sigmoid(gap)) for gap in (1, 0, -2)])
    loss.sum().backward()
    assert chosen.grad.tolist() == pytest.approx([-sigmoid(-gap) for gap in (1, 0, -2)])
    with_margin = bradley_terry(chosen, rejected, torch.tensor([0.5, 1.0, 0.0], dtype=DOUBLE))
    assert with_margin.tolist() == pytest.approx([-math.log(sigmoid(gap)) for gap in (0.5, -1, -2)])


def test_outcome_loss_by_hand_and_soft_labels():
    scores = torch.tensor([2.0, 2.0, 0.3, 60.0], dtype=DOUBLE, requires_grad=True)
    outcomes = torch.tensor([1.0, 0.0, 0.25, 0.0], dtype=DOUBLE)
    loss = outcome_loss(scores, outcomes)
    hand = [
        -math.log(sigmoid(2)),
        -math.log(1 - sigmoid(2)),
        -0.25 * math.log(sigmoid(0.3)) - 0.75 * math.log(1 - sigmoid(0.3)),
        60,
    ]
    assert loss.tolist() == pytest.approx(hand)
    loss.sum().backward()
    expected = [sigmoid(s) - y for s, y in zip(scores.tolist(), outcomes.tolist(), strict=True)]
    assert scores.grad.tolist() == pytest.approx(expected)  # least where sigma(s) is the share that came right
    for wrong in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            outcome_loss(torch.zeros(1), torch.tensor([wrong]))


def test_token_outcome_loss_averages_the_tokens_of_a_row():
    scores = torch.tensor([[1.0, 3.0, math.nan], [0.0, -1.0, -2.0]], dtype=DOUBLE, requires_grad=True)
    lengths, outcomes = torch.tensor([2, 3]), torch.tensor([1.0, 0.0], dtype=DOUBLE)
    loss = token_outcome_loss(scores, lengths, outcomes)
    assert loss.tolist() == pytest.approx([-math.log(sigmoid(2)), -math.log(1 - sigmoid(-1))])
    loss.sum().backward()
    assert scores.grad[0].tolist() == pytest.approx([(sigmoid(2) - 1) / 2] * 2 + [0])
    assert scores.grad[1].tolist() == pytest.approx([sigmoid(-1) / 3] * 3)


def test_outcome_token_weights_by_hand():
    scores = torch.tensor([[2.0, -4.0, 5.0], [-1.0, 3.0, math.nan], [0.0, 0.0, 0.0]], dtype=DOUBLE)
    weights = outcome_token_weights(scores.requires_grad_(True), torch.tensor([3, 2, 3]))
    means = [[2, -1, 1], [-1, 1]]
    for row, row_means in enumerate(means):
        for place, mean in enumerate(row_means):
            belief = 2 * sigmoid(mean) - 1
            assert weights.right[row, place].item() == pytest.approx(max(belief, 0))
            assert weights.wrong[row, place].item() == pytest.approx(max(-belief, 0))
    assert weights.right[1, 2] == 0
    assert weights.wrong[1, 2] == 0
    assert not weights.right[2].any()  # a head of zeros trains nothing
    assert not weights.wrong[2].any()
    assert not weights.right.requires_grad


def test_wrong_input_is_refused():
    zeros, threes = torch.zeros(2), torch.zeros(3)
    two = Pairs(zeros, zeros, zeros, zeros)
    for pairs in (two._replace(rejected=threes), two._replace(reference_chosen=torch.zeros(2, dtype=torch.int64))):
        with pytest.raises(ValueError):
            dpo(pairs, 0.1)
        with pytest.raises(ValueError):
            ipo(pairs, 0.1)
    for loss in (dpo, ipo):
        with pytest.raises(ValueError, match="positive"):
            loss(two, 0.0)
    for lengths in (torch.tensor([1, 0]), torch.tensor([1]), torch.tensor([1.0, 2.0])):
        with pytest.raises(ValueError):
            dpo_length_normalised(two, lengths, torch.tensor([1, 1]), 5.0)
    with pytest.raises(ValueError, match="bool"):
        kto(zeros, zeros, torch.tensor([1, 0]), torch.tensor(0.0), 0.1)
    with pytest.raises(ValueError, match="weights"):
        kto(zeros, zeros, torch.tensor([True, False]), torch.tensor(0.0), 0.1, undesirable_weight=-1.0)
    with pytest.raises(ValueError, match="at least one"):
        kto_reference_point(torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match="shapes"):
        bradley_terry(zeros, threes)
    for lengths in (torch.tensor([0, 1]), torch.tensor([4, 1]), torch.tensor([1])):
        with pytest.raises(ValueError):
            token_outcome_loss(torch.zeros(2, 3), lengths, zeros)

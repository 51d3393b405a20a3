"""DPO, IPO and KTO on a tiny model: the start, an independent reference, and what may not change the gradient."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from written_rollouts import rollouts

from zerozoo.language.families import tiny_model
from zerozoo.language.logprobs import Sequences
from zerozoo.language.models import LanguageModel
from zerozoo.language.preference_data import (
    Judged,
    Pair,
    chosen_first,
    judged_from_rollouts,
    pairs_from_rollouts,
    read_judged,
    read_pairs,
)
from zerozoo.language.preference_loop import (
    PairPreferences,
    UnpairedPreferences,
    balanced_weights,
    dpo_loss,
    ipo_loss,
    with_mismatched,
)
from zerozoo.language.scoring import Scorer, kept_logprobs
from zerozoo.language.supervised import SupervisedLoop, SupervisedSettings, batch_means, measure
from zerozoo.rewards.verifier import Verdict
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

BETA = 0.3


def make_policy(dtype: str = "float64", seed: int = 0) -> LanguageModel:
    return tiny_model("llama", seed=seed, hidden=16, heads=2, kv_heads=1, dtype=dtype)


def ids(draw: random.Random, size: int) -> list[int]:
    return [draw.randrange(4, 90) for _ in range(size)]


def make_pairs() -> list[Pair]:
    draw = random.Random(5)
    sizes = [(3, 5, 2), (1, 1, 4), (6, 2, 2), (2, 7, 3), (4, 3, 6)]
    return [Pair(*(ids(draw, size) for size in row)) for row in sizes]


def make_judged() -> list[Judged]:
    draw = random.Random(6)
    prompts = [ids(draw, 3), ids(draw, 5)]
    return [Judged(prompts[row % 2], ids(draw, 1 + row), row % 3 != 0) for row in range(6)]


def moved(policy: LanguageModel) -> LanguageModel:
    """The policy after some training, as it were."""
    with torch.no_grad():
        for value in policy.model.parameters():
            value.mul_(1.05)
    return policy


def their_logprobs(policy: LanguageModel, sequences: Sequences) -> Tensor:
    """(N,) by transformers' own forward pass, one row at a time, in float64."""
    rows = []
    for prompt, response in zip(sequences.prompts, sequences.responses, strict=True):
        logits = policy.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double()
        logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        rows.append(logprobs.gather(1, torch.tensor(response)[:, None]).sum())
    return torch.stack(rows)


def gradient(policy: LanguageModel) -> Tensor:
    result = torch.cat([value.grad.flatten() for value in policy.model.parameters() if value.grad is not None])
    policy.model.zero_grad(set_to_none=True)
    return result


# --- pairs


@pytest.mark.parametrize("packed", [False, True])
def test_every_loss_starts_where_policy_and_reference_agree(packed):
    policy, pairs = make_policy("float32"), make_pairs()
    scorer = Scorer(policy, 30, packed)
    reference = scorer.all_responses(chosen_first(pairs))
    starts = {dpo_loss(BETA): math.log(2), dpo_loss(5.0, True): math.log(2), ipo_loss(0.25): 4.0}
    for loss, start in starts.items():
        metrics = measure(PairPreferences(scorer, pairs, reference, loss), 1000)
        assert metrics["loss"] == pytest.approx(start, abs=1e-4)
        for name in ("margin", "chosen_change", "rejected_change"):
            assert metrics[f"preference/{name}"] == pytest.approx(0, abs=1e-4)


def by_hand(kind: str, gap: Tensor, change: Sequence[Tensor], pairs: list[Pair]) -> Tensor:
    if kind == "ipo":
        return (gap - 1 / (2 * BETA)) ** 2
    if kind == "dpo":
        return -torch.log(1 / (1 + torch.exp(-BETA * gap)))
    lengths = [torch.tensor([len(getattr(pair, side)) for pair in pairs]) for side in ("chosen", "rejected")]
    return -torch.log(1 / (1 + torch.exp(-BETA * (change[0] / lengths[0] - change[1] / lengths[1]))))


LOSSES: dict[str, Callable[..., Any]] = {
    "dpo": dpo_loss(BETA),
    "normalised": dpo_loss(BETA, True),
    "ipo": ipo_loss(BETA),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_loss_metrics_and_gradient_against_a_reference_of_our_own(kind):
    policy, pairs = make_policy(), make_pairs()
    sequences = chosen_first(pairs)
    with torch.no_grad():
        reference = their_logprobs(policy, sequences)
    moved(policy)
    theirs = their_logprobs(policy, sequences)
    chosen, rejected = (theirs - reference).chunk(2)
    expected = by_hand(kind, chosen - rejected, (chosen, rejected), pairs).mean()
    expected.backward()
    wanted = gradient(policy)
    theirs, chosen, rejected = theirs.detach(), chosen.detach(), rejected.detach()
    for budget in (1, 40, 1000):
        objective = PairPreferences(Scorer(policy, budget), pairs, reference, LOSSES[kind])
        means = batch_means(objective, range(5), budget, model=policy.model)
        assert means["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
        torch.testing.assert_close(gradient(policy), wanted, rtol=1e-3, atol=1e-6)
    assert means["preference/margin"] == pytest.approx(float((chosen - rejected).mean()), abs=1e-4)
    assert means["preference/accuracy"] == pytest.approx(float((chosen > rejected).double().mean()))
    assert means["preference/chosen_logprob"] == pytest.approx(float(theirs[:5].mean()), rel=1e-5)
    assert means["preference/rejected_logprob"] == pytest.approx(float(theirs[5:].mean()), rel=1e-5)
    assert means["preference/chosen_change"] == pytest.approx(float(chosen.mean()), abs=1e-4)
    assert means["preference/rejected_change"] == pytest.approx(float(rejected.mean()), abs=1e-4)
    fell = ((chosen < 0) & (rejected < 0)).double().mean()
    assert means["preference/both_fell"] == pytest.approx(float(fell))


def test_the_loss_of_a_batch_is_the_mean_of_its_pairs_alone():
    policy, pairs = moved(make_policy()), make_pairs()
    reference = torch.linspace(-40, -10, 10, dtype=torch.float64)
    objective = PairPreferences(Scorer(policy), pairs, reference, dpo_loss(BETA))
    single = [batch_means(objective, [item], 1000)["loss"] for item in (3, 1)]
    assert batch_means(objective, [3, 1], 1000)["loss"] == pytest.approx(sum(single) / 2)
    with pytest.raises(ValueError, match="need 10 reference log-probs, not 5"):
        PairPreferences(Scorer(policy), pairs, reference[:5], dpo_loss(BETA))


def test_dpo_learns_its_pairs(tmp_path):
    policy, pairs = make_policy("float32"), make_pairs()
    run, scorer = Run(tmp_path / "run"), Scorer(policy)
    reference = kept_logprobs(run, "reference", scorer, chosen_first(pairs))
    objective = PairPreferences(scorer, pairs, reference, dpo_loss(BETA))
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-3)
    settings = SupervisedSettings(batch_size=5, steps=15)
    final = SupervisedLoop(policy.model, optimizer, objective, settings, run).train()
    assert final["preference/accuracy"] == 1
    assert final["loss"] < 0.3


def test_the_reference_is_computed_once_and_anew_for_other_data(tmp_path):
    policy, pairs = make_policy("float32"), make_pairs()
    run, sequences = Run(tmp_path / "run"), chosen_first(pairs)
    first = kept_logprobs(run, "reference", Scorer(policy), sequences)
    torch.testing.assert_close(first.double(), their_logprobs(policy, sequences).detach(), rtol=1e-4, atol=1e-3)
    moved(policy)
    assert torch.equal(kept_logprobs(run, "reference", Scorer(policy), sequences), first)
    other = kept_logprobs(run, "reference", Scorer(policy), chosen_first(pairs[::-1]))
    assert not torch.allclose(other, first)


# --- thumbs


def test_kto_against_a_reference_of_our_own():
    policy, judged = make_policy(), make_judged()
    rows = with_mismatched(judged, judged, seed=2)
    with torch.no_grad():
        reference = their_logprobs(policy, rows)
    moved(policy)
    theirs = their_logprobs(policy, rows)
    gain = (theirs - reference)[:6]
    mismatched = (theirs - reference)[6:].detach()
    up = torch.tensor([one.desirable for one in judged])
    wanted: dict[tuple[int, ...], Tensor] = {}
    for batch in ((0, 1, 2, 3, 4, 5), (1, 2, 3)):
        chosen = torch.tensor(batch)
        point = mismatched[chosen].mean().clamp(min=0)
        value = torch.sigmoid(BETA * torch.where(up, gain - point, point - gain))
        loss = (torch.where(up, 1.0, 1.5) * (1 - value))[chosen].mean()
        loss.backward(retain_graph=True)
        wanted[batch] = gradient(policy)
        for budget in (1, 1000):
            objective = UnpairedPreferences(Scorer(policy, budget), judged, rows, reference, BETA, (1.0, 1.5))
            means = batch_means(objective, batch, budget, model=policy.model)
            assert means["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
            torch.testing.assert_close(gradient(policy), wanted[batch], rtol=1e-3, atol=1e-6)
            assert means["preference/reference_point"] == pytest.approx(float(mismatched[chosen].mean()), abs=1e-4)
            for name, kind in (("desirable", up), ("undesirable", ~up)):
                inside = gain.detach()[chosen][kind[chosen]]
                assert means[f"preference/{name}_change"] == pytest.approx(float(inside.mean()), abs=1e-4)


def test_kto_starts_in_the_middle_and_leaves_out_means_of_nothing():
    policy, judged = make_policy("float32"), make_judged()
    rows = with_mismatched(judged, judged, 0)
    reference = Scorer(policy).all_responses(rows)
    objective = UnpairedPreferences(Scorer(policy), judged, rows, reference, BETA, (1.0, 3.0))
    means = batch_means(objective, [1, 2], 1000)  # both desirable
    assert means["loss"] == pytest.approx(0.5, abs=1e-4)
    assert "preference/undesirable_change" not in means
    assert batch_means(objective, [0, 1], 1000)["loss"] == pytest.approx((0.5 + 3 * 0.5) / 2, abs=1e-4)


def test_partners_answer_other_prompts_and_stay_the_same():
    judged = make_judged()
    rows = with_mismatched(judged, judged, seed=0)
    assert rows.prompts[6:] == rows.prompts[:6] == [one.prompt for one in judged]
    for prompt, partner in zip(rows.prompts[6:], rows.responses[6:], strict=True):
        assert all(one.prompt != prompt for one in judged if one.response == partner)
    assert with_mismatched(judged, judged, seed=0) == rows
    assert with_mismatched(judged, judged, seed=1) != rows
    alone = [judged[0], judged[2]]  # of one prompt
    assert len(with_mismatched(alone, judged, 0).prompts) == 4
    assert with_mismatched([], alone, 0).prompts == []
    with pytest.raises(UserError, match="two different prompts"):
        with_mismatched(alone, alone, 0)
    with pytest.raises(ValueError, match="6 responses need 12 rows"):
        UnpairedPreferences(Scorer(make_policy()), judged, rows, torch.zeros(6), BETA)


def test_weights_that_balance():
    judged = make_judged()  # four desirable, two not
    assert balanced_weights(judged, 1.0, 0.0) == (1.0, 2.0)
    assert balanced_weights(judged, 1.0, 1.5) == (1.0, 1.5)
    with pytest.raises(UserError, match="of one kind"):
        balanced_weights([one for one in judged if one.desirable], 1.0, 0.0)


# --- data


def test_pairs_of_a_file_with_prefix_and_open_ends():
    policy = tiny_model("llama", vocabulary="abc 123", hidden=8, heads=2, kv_heads=1, layers=1)
    end = policy.eos_ids[0]

    def encode(text: str) -> list[int]:
        return list(policy.tokenizer.encode(text, add_special_tokens=False))

    plain, steps, mixed = read_pairs(
        policy,
        [
            {"prompt": "a", "chosen": "1", "rejected": "2"},
            {"prompt": "a", "prefix": "b1", "chosen": "2", "rejected": "3", "ends": False},
            {"prompt": "a", "prefix": "b1", "chosen": "23", "rejected": "3", "ends": [True, False]},
        ],
    )
    assert plain == Pair(policy.encode("a"), [*encode("1"), end], [*encode("2"), end])
    assert steps == Pair(policy.encode("ab1"), encode("2"), encode("3"))  # shared steps are in no loss
    assert mixed == Pair(policy.encode("ab1"), [*encode("23"), end], encode("3"))
    with pytest.raises(UserError, match="prefers a response to itself"):
        read_pairs(policy, [{"prompt": "a", "chosen": "1", "rejected": "1"}])
    with pytest.raises(UserError, match="prefix"):
        read_pairs(policy, [{"prompt": [4], "prefix": "b", "chosen": "1", "rejected": "2"}])
    (judged,) = read_judged(policy, [{"prompt": "a", "response": "1", "desirable": False}])
    assert judged == Judged(policy.encode("a"), [*encode("1"), end], False)
    with pytest.raises(UserError, match="true or false"):
        read_judged(policy, [{"prompt": "a", "response": "1", "desirable": 1}])


def drawn() -> Any:
    right, wrong = Verdict.RIGHT, Verdict.WRONG
    return rollouts(
        (0, "A", right, True),
        (0, "B", wrong, True),
        (0, "B", wrong, True),  # drawn twice
        (0, "C", right, True),
        (0, "D", wrong, False),
        (0, "E", right, False),  # right, but cut off: on neither side
        (1, "F", right, True),
        (1, "G", Verdict.UNSCORABLE, True),
        (1, "H", Verdict.TIMEOUT, True),
        (2, "I", wrong, True),
        (2, "J", right, True),
    )


def test_pairs_of_samples():
    rows = pairs_from_rollouts(drawn(), most=0, seed=0)
    assert [row["task"] for row in rows] == ["t0", "t0", "t2"]
    assert {row["chosen_text"] for row in rows[:2]} == {"A", "C"}  # none used twice
    assert {row["rejected_text"] for row in rows[:2]} == {"B", "D"}
    assert rows[2]["chosen"] == [ord("J")]
    assert rows[2]["prompt"] == [3]
    assert rows == pairs_from_rollouts(drawn(), most=0, seed=0)
    assert len(pairs_from_rollouts(drawn(), most=1, seed=0)) == 2
    seeds = {tuple(row["rejected_text"] for row in pairs_from_rollouts(drawn(), 1, seed)) for seed in range(8)}
    assert seeds == {("B", "I"), ("D", "I")}


def test_thumbs_of_samples():
    rows = judged_from_rollouts(drawn())
    found = {(row["text"], row["desirable"]) for row in rows}
    assert found == {("A", True), ("C", True), ("B", False), ("D", False), ("F", True), ("I", False), ("J", True)}
    assert len(rows) == len(found)


def test_rows_of_samples_come_back_as_they_were_drawn():
    policy = make_policy("float32")
    (pair,) = read_pairs(policy, pairs_from_rollouts(drawn(), 0, 0)[2:])
    assert pair == Pair([3], [ord("J")], [ord("I")])
    before = copy.deepcopy(judged_from_rollouts(drawn()))
    assert [one.response for one in read_judged(policy, before)] == [row["response"] for row in before]

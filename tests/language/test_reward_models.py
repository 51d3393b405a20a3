"""Learned rewards: where a score is read, what each trainer minimises, normalisation, files, and the adapters."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from written_rollouts import rollouts

from zerozoo.language.example_files import Example, sequences_of
from zerozoo.language.families import tiny_model
from zerozoo.language.heads import decoder_hidden
from zerozoo.language.logprobs import Sequences
from zerozoo.language.models import LanguageModel
from zerozoo.language.preference_data import Pair
from zerozoo.language.reward_models import (
    LearnedReward,
    RewardModel,
    RewardScorer,
    fit_normaliser,
    load_reward_model,
    random_head,
    save_reward_model,
)
from zerozoo.language.reward_training import (
    Labelled,
    LabelledReward,
    PairwiseReward,
    TokenOutcomeReward,
    outcome_label,
    squared_error,
)
from zerozoo.language.samplers.interface import pad_rows
from zerozoo.language.scoring import take
from zerozoo.language.supervised import SupervisedLoop, SupervisedSettings, batch_means, measure
from zerozoo.losses.preferences import outcome_loss
from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.task import Task

SIZES = [(3, 5), (1, 1), (6, 2), (2, 9), (4, 4)]


def make_model(dtype: str = "float64", seed: int = 0, family: str = "llama", **changes: Any) -> RewardModel:
    language_model = tiny_model(family, hidden=16, heads=2, kv_heads=1, dtype=dtype, **changes)
    model = RewardModel(language_model, random_head(language_model, seed), {"trained": "by hand"})
    model.values.head.to(language_model.model.dtype)
    with torch.no_grad():
        model.values.head.bias.fill_(0.3)
    return model


def make_rows() -> Sequences:
    draw = random.Random(1)
    rows = [[draw.randrange(4, 90) for _ in range(sum(sizes))] for sizes in SIZES]
    return Sequences(
        [row[:size] for row, (size, _) in zip(rows, SIZES, strict=True)],
        [row[size:] for row, (size, _) in zip(rows, SIZES, strict=True)],
    )


def padded_scores(model: RewardModel, sequences: Sequences, side: str, pad: int) -> Tensor:
    """(N, L) scores of every position of a batch padded on one side, by another way than the reward model's."""
    rows = [[*prompt, *row] for prompt, row in zip(sequences.prompts, sequences.responses, strict=True)]
    ids, mask = pad_rows(rows, pad, side)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    hidden = decoder_hidden(model.values.backbone, ids, mask, positions)
    return model.values.head(hidden)[..., 0], mask


def gradient(model: RewardModel) -> Tensor:
    result = torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])
    model.zero_grad(set_to_none=True)
    return result


# --- where a score is read


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_score_is_that_of_the_true_last_token_whatever_the_padding(family, side):
    """Padding on either side, with any token, the end token too (traps 2 and 3)."""
    model, sequences = make_model(family=family), make_rows()
    end = model.language_model.eos_ids[0]
    sequences = Sequences(sequences.prompts, [[*row, end] for row in sequences.responses])
    ours = model(sequences)
    for pad in (0, end, 17):
        every, mask = padded_scores(model, sequences, side, pad)
        last = [int(row.nonzero()[-1]) for row in mask]
        torch.testing.assert_close(ours, every[torch.arange(len(last)), last])
    alone = torch.cat([model(take(sequences, [row])) for row in range(len(SIZES))])
    torch.testing.assert_close(ours, alone)


def test_scores_of_tokens_follow_the_response_and_count_as_one_after_each_token():
    model, sequences = make_model(), make_rows()
    flat = model.token_scores(sequences)
    every, _ = padded_scores(model, sequences, "right", 0)
    expected = [
        every[row, len(prompt) : len(prompt) + len(response)]
        for row, (prompt, response) in enumerate(zip(sequences.prompts, sequences.responses, strict=True))
    ]
    torch.testing.assert_close(flat, torch.cat(expected))


@pytest.mark.parametrize("budget", [1, 15, 1000])
def test_batches_of_any_size_score_alike(budget):
    model, sequences = make_model("float32"), make_rows()
    scorer = RewardScorer(model, budget)
    torch.testing.assert_close(scorer.responses(sequences), model(sequences).detach())
    tokens = scorer.tokens(sequences)
    assert tokens.shape == (5, 9)
    lengths = torch.tensor([size for _, size in SIZES])
    written = torch.arange(9) < lengths[:, None]
    torch.testing.assert_close(tokens[written], model.token_scores(sequences).detach())
    assert not tokens[~written].any()


def test_nothing_is_cut_off():
    model = make_model()
    with pytest.raises(UserError, match="A row of 513 tokens does not fit .* room for 512"):
        model(Sequences([[5] * 500], [[6] * 13]))


def test_a_head_of_zeros_says_nothing_and_seeds_make_members():
    language_model = tiny_model("llama", hidden=16, heads=2, kv_heads=1)
    assert not RewardModel(language_model)(make_rows()).any()
    heads = [random_head(language_model, seed).weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert float(heads[0].std()) == pytest.approx(17**-0.5, rel=0.5)


# --- what the trainers minimise


def test_pairwise_against_a_reference_of_our_own():
    model, sequences = make_model(), make_rows()
    pairs = [
        Pair(sequences.prompts[row], sequences.responses[row], sequences.responses[(row + 1) % 5]) for row in range(5)
    ]
    chosen = torch.cat([model(Sequences([pair.prompt], [pair.chosen])) for pair in pairs])
    rejected = torch.cat([model(Sequences([pair.prompt], [pair.rejected])) for pair in pairs])
    bt = -torch.log(1 / (1 + torch.exp(rejected - chosen)))
    expected = (bt + 0.1 * (chosen**2 + rejected**2) / 2).mean()
    expected.backward()
    wanted = gradient(model)
    for budget in (1, 40, 1000):
        means = batch_means(PairwiseReward(model, pairs, regulariser=0.1), range(5), budget, model=model)
        assert means["loss"] == pytest.approx(float(expected.detach()))
        torch.testing.assert_close(gradient(model), wanted)
    assert means["reward/accuracy"] == pytest.approx(float((chosen > rejected).double().mean()))
    assert means["reward/gap"] == pytest.approx(float((chosen - rejected).detach().mean()), abs=1e-6)


def test_labels_of_outcomes_steps_and_tokens_weigh_one_each():
    model, sequences = make_model(), make_rows()
    prompts, responses = sequences.prompts, sequences.responses
    data = [
        outcome_label(prompts[0], responses[0], 1.0),
        Labelled(prompts[2], responses[2], [0, 1], [0.25, 0.0]),  # every token
        Labelled(prompts[3], responses[3], [2, 5, 8], [1.0, 0.5, 0.0]),  # ends of steps
    ]
    assert data[0].places == [4]
    every, _ = padded_scores(model, sequences, "right", 0)
    places = [(0, 3 + 4), (2, 6 + 0), (2, 6 + 1), (3, 2 + 2), (3, 2 + 5), (3, 2 + 8)]
    scores = torch.stack([every[row, place] for row, place in places])
    labels = torch.tensor([1.0, 0.25, 0.0, 1.0, 0.5, 0.0], dtype=torch.float64)
    probabilities = torch.sigmoid(scores)
    cross_entropy = -(labels * probabilities.log() + (1 - labels) * (1 - probabilities).log())
    for loss, by_hand in ((outcome_loss, cross_entropy), (squared_error, (scores - labels) ** 2 / 2)):
        by_hand.mean().backward(retain_graph=True)
        wanted = gradient(model)
        for budget in (1, 1000):
            means = batch_means(LabelledReward(model, data, loss), range(3), budget, model=model)
            assert means["loss"] == pytest.approx(float(by_hand.detach().mean()))
            # Norms are float32 inside on both sides, and round differently on the way back.
            torch.testing.assert_close(gradient(model), wanted, rtol=1e-6, atol=1e-6)
    assert "reward/accuracy" not in means  # of numbers there is none
    for wrong in (
        {"places": [2], "labels": [1.0]},
        {"places": [], "labels": []},
        {"places": [0], "labels": [1.0, 2.0]},
    ):
        with pytest.raises(UserError):
            Labelled([5], [6, 7], **wrong)


def test_rewards_of_tokens_from_outcomes():
    model, sequences = make_model(), make_rows()
    examples = [Example(*row) for row in zip(sequences.prompts, sequences.responses, strict=True)]
    outcomes = [1.0, 0.0, 0.0, 1.0, 1.0]
    flat, means = model.token_scores(sequences), []
    for part in flat.split([size for _, size in SIZES]):
        means.append(part.mean())
    probability, label = torch.sigmoid(torch.stack(means)), torch.tensor(outcomes)
    expected = -(label * probability.log() + (1 - label) * (1 - probability).log()).mean()
    expected.backward()
    wanted = gradient(model)
    for budget in (1, 1000):
        found = batch_means(TokenOutcomeReward(model, examples, outcomes), range(5), budget, model=model)
        assert found["loss"] == pytest.approx(float(expected.detach()))
        torch.testing.assert_close(gradient(model), wanted)
    assert found["reward/accuracy"] == pytest.approx(float(((torch.stack(means) > 0) == (label > 0.5)).double().mean()))


def separable(policy: LanguageModel, number: int, seed: int) -> list[Pair]:
    """A response with more a's than b's is the better one."""
    draw = random.Random(seed)
    pairs = []
    while len(pairs) < number:
        one, other = ("".join(draw.choice("ab") for _ in range(draw.randint(3, 8))) for _ in range(2))
        gap = one.count("a") - one.count("b") - other.count("a") + other.count("b")
        if abs(gap) >= 2:
            good, bad = (one, other) if gap > 0 else (other, one)
            end = policy.eos_ids
            rows = [[*policy.tokenizer.encode(text, add_special_tokens=False), *end] for text in (good, bad)]
            pairs.append(Pair(policy.encode("p"), *rows))
    return pairs


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[RewardModel, list[Pair]]:
    """A reward model of hand-made preferences, and held-out pairs."""
    language_model = tiny_model("llama", vocabulary="abp", hidden=16, heads=2, kv_heads=1)
    model = RewardModel(language_model, random_head(language_model, 0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    objective = PairwiseReward(model, separable(language_model, 128, seed=0), regulariser=0.001)
    settings = SupervisedSettings(batch_size=32, steps=60, checkpoint_every=1000)
    SupervisedLoop(model, optimizer, objective, settings, Run(tmp_path_factory.mktemp("reward") / "run")).train()
    return model, separable(language_model, 100, seed=1)


def test_a_separable_preference_is_learned(learned):
    model, heldout = learned
    assert measure(PairwiseReward(model, heldout), 1000)["reward/accuracy"] > 0.9


# --- normalisation and files


def heldout_rows(pairs: Sequence[Pair]) -> Sequences:
    return Sequences([pair.prompt for pair in pairs] * 2, [p.chosen for p in pairs] + [p.rejected for p in pairs])


def test_normalised_scores_have_mean_0_and_deviation_1_also_after_loading(learned, tmp_path):
    model, heldout = learned
    rows, scorer = heldout_rows(heldout), RewardScorer(model)
    raw = RewardScorer(model, normalised=False).responses(rows)
    fit_normaliser(scorer, rows)
    scores = scorer.responses(rows)
    assert float(scores.double().mean()) == pytest.approx(0, abs=1e-5)
    assert float(scores.double().std(unbiased=False)) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(raw, scores * model.deviation + model.mean, rtol=1e-4, atol=1e-5)
    save_reward_model(model, tmp_path / "reward")
    again = load_reward_model(tmp_path / "reward")
    assert torch.equal(RewardScorer(again).responses(rows), scores)
    about = json.loads((tmp_path / "reward" / "reward.json").read_text())
    assert (about["mean"], about["deviation"]) == (model.mean, model.deviation)
    assert not list((tmp_path / "reward").glob("*.bin"))
    save_reward_model(again, tmp_path / "reward")  # in place
    fit_normaliser(RewardScorer(again), take(rows, range(10)))
    with pytest.raises(UserError, match="at least two"):
        fit_normaliser(scorer, take(rows, [0]))


@pytest.mark.parametrize("tied", [True, False])
def test_a_loaded_model_scores_alike_and_keeps_what_it_says_about_itself(tied, tmp_path):
    model, sequences = make_model("float32", tied=tied), make_rows()
    save_reward_model(model, tmp_path / "reward")
    again = load_reward_model(tmp_path / "reward")
    assert torch.equal(again(sequences), model(sequences))
    assert again.about == {"trained": "by hand"}
    assert again.language_model.eos_ids == model.language_model.eos_ids
    with pytest.raises(UserError, match="is no reward model"):
        load_reward_model(tmp_path)


def test_adapters_are_trained_and_merged(tmp_path):
    pytest.importorskip("peft")
    from zerozoo.language.lora import add_lora

    language_model = tiny_model("llama", hidden=16, heads=2, kv_heads=1)
    add_lora(language_model, 2, 8, seed=0)
    model, sequences = RewardModel(language_model), make_rows()
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert all("lora" in name or "head" in name for name in trained)
    assert len(trained) > 2
    objective = LabelledReward(
        model,
        [outcome_label(*row, 1.0) for row in zip(sequences.prompts, sequences.responses, strict=True)],
        outcome_loss,
    )
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=0.02)
    settings = SupervisedSettings(batch_size=5, steps=6)
    SupervisedLoop(model, optimizer, objective, settings, Run(tmp_path / "run")).train()
    before = model(sequences).detach()
    assert bool((before > 0.1).all())
    save_reward_model(model, tmp_path / "reward")
    torch.testing.assert_close(load_reward_model(tmp_path / "reward")(sequences), before, rtol=1e-4, atol=1e-5)


def test_a_killed_training_of_a_reward_model_goes_on_exactly(tmp_path):
    def run_to(directory: Any, dies_at: int = 0) -> RewardModel:
        model = make_model("float32")
        rows = make_rows()
        data = [
            outcome_label(*row, float(n % 2)) for n, row in enumerate(zip(rows.prompts, rows.responses, strict=True))
        ]
        objective, inner = LabelledReward(model, data, outcome_loss), []

        def prepare(items: Sequence[int]) -> float:
            inner.append(1)
            if len(inner) == dies_at:
                raise KeyboardInterrupt
            return 1 / len(items)

        objective.prepare = prepare  # type: ignore[method-assign]
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        settings = SupervisedSettings(batch_size=2, steps=6, checkpoint_every=2)
        SupervisedLoop(model, optimizer, objective, settings, Run(directory)).train()
        return model

    whole = run_to(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_to(tmp_path / "run", dies_at=5)
    again = run_to(tmp_path / "run")
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


# --- adapters


class Rule:
    """Everything is right; counts how often it is closed."""

    closed = 0

    def verify(self, problems: Sequence[Any], responses: Sequence[str]) -> list[Verification]:
        return [Verification(Verdict.RIGHT, response, 0.0, False, 1.0) for response in responses]

    def close(self) -> None:
        self.closed += 1


def test_a_learned_reward_stands_where_a_verifier_stands(learned):
    model, _ = learned
    rule = Rule()
    scorer = RewardScorer(model)
    verifier = LearnedReward(scorer, rule, prompt=lambda task: task.question)
    tasks = [Task("1", "p", "0", "test")] * 3
    found = verifier.verify(tasks, ["aaaa", "bbbb", "ab"])
    assert [one.verdict for one in found] == [Verdict.RIGHT] * 3
    assert [one.extracted for one in found] == ["aaaa", "bbbb", "ab"]
    assert found[0].score > found[2].score > found[1].score
    policy = model.language_model
    ids = [*policy.tokenizer.encode("aaaa", add_special_tokens=False), policy.eos_ids[0]]
    expected = scorer.responses(Sequences([policy.encode("p")], [ids]))
    assert found[0].score == pytest.approx(float(expected[0]), abs=1e-5)
    assert verifier.verify([], []) == []
    verifier.close()
    assert rule.closed == 1


def test_a_learned_reward_scores_rollouts_by_the_ids_that_were_drawn():
    model = make_model("float32")
    drawn = rollouts((0, "ab", Verdict.RIGHT, True), (1, "c", Verdict.WRONG, True), (1, "BCD", Verdict.WRONG, False))
    drawn.samples.tokens %= 90
    scores = RewardScorer(model).rollouts(drawn)
    sequences = drawn.sequences(range(3))
    torch.testing.assert_close(scores, model(sequences).detach())
    assert (
        sequences_of([Example(*row) for row in zip(sequences.prompts, sequences.responses, strict=True)]) == sequences
    )

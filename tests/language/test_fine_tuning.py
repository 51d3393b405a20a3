"""SFT against transformers' own loss, what may not change it, and that it teaches a model to answer and to stop."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from written_rollouts import rollouts

from zerozoo.language.example_files import Example, read_examples
from zerozoo.language.families import tiny_model
from zerozoo.language.fine_tuning import FineTuning, right_answers, solved_tasks
from zerozoo.language.models import LanguageModel
from zerozoo.language.samplers.interface import Decoding
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.scoring import Scorer
from zerozoo.language.supervised import SupervisedLoop, SupervisedSettings, batch_means, measure
from zerozoo.rewards.verifier import Verdict
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.arithmetic import arithmetic
from zerozoo.tasks.word_sums import word_sums

SIZES = [(3, 5), (1, 1), (6, 2), (2, 9), (4, 4), (8, 3)]  # tokens of prompt and response


def make_examples() -> list[Example]:
    draw = random.Random(0)
    ids = [[draw.randrange(4, 90) for _ in range(sum(sizes))] for sizes in SIZES]
    return [Example(row[:size], row[size:]) for row, (size, _) in zip(ids, SIZES, strict=True)]


def make_policy(family: str = "llama") -> LanguageModel:
    return tiny_model(family, hidden=16, heads=2, kv_heads=1, dtype="float64")


def gradient(policy: LanguageModel) -> Tensor:
    values = [value.grad for value in policy.model.parameters() if value.grad is not None]
    result = torch.cat([value.flatten() for value in values])
    policy.model.zero_grad(set_to_none=True)
    return result


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_loss_and_gradient_are_those_of_transformers(family):
    policy, examples = make_policy(family), make_examples()
    ours = batch_means(FineTuning(Scorer(policy), examples), range(6), 1000, model=policy.model)["loss"]
    found = gradient(policy)
    longest = max(one.tokens for one in examples)
    ids = torch.tensor([[*one.prompt, *one.response, *[0] * (longest - one.tokens)] for one in examples])
    labels = torch.full_like(ids, -100)
    for row, one in enumerate(examples):
        labels[row, len(one.prompt) : one.tokens] = ids[row, len(one.prompt) : one.tokens]
    mask = torch.arange(longest) < torch.tensor([one.tokens for one in examples])[:, None]
    theirs = policy.model(input_ids=ids, attention_mask=mask, labels=labels).loss
    theirs.backward()
    assert ours == pytest.approx(float(theirs.detach()), rel=1e-6)  # both sum float32 log-probs
    torch.testing.assert_close(found, gradient(policy), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
def test_neither_micro_batches_nor_packing_change_the_gradient(family):
    """A mean inside micro-batches, or a token that sees its neighbour in the pack, would show (trap 17)."""
    policy, examples = make_policy(family), make_examples()
    whole = batch_means(FineTuning(Scorer(policy), examples), range(6), 1000, model=policy.model)["loss"]
    expected = gradient(policy)
    for budget, packed in ((1, False), (14, False), (1000, True), (14, True)):
        objective = FineTuning(Scorer(policy, budget, packed), examples)
        assert batch_means(objective, range(6), budget, model=policy.model)["loss"] == pytest.approx(whole, rel=1e-6)
        torch.testing.assert_close(gradient(policy), expected, rtol=1e-4, atol=1e-7)


def test_only_response_tokens_are_in_the_loss_the_end_once(table_model):
    """By hand from a table: log-prob of each response token after the one before it (traps 3, 4 and 8)."""
    table = torch.randn((6, 6), generator=torch.Generator().manual_seed(1))
    policy = table_model(table, "ab")
    (example,) = read_examples(policy, [{"prompt": "ba", "response": "ab"}])
    a, b, end = (policy.tokenizer.get_vocab()[token] for token in ("a", "b", "<eos>"))
    assert example.response == [a, b, end]
    logprobs = table.log_softmax(-1)
    by_hand = -(logprobs[a, a] + logprobs[a, b] + logprobs[b, end]) / 3
    assert measure(FineTuning(Scorer(policy), [example]), 100)["loss"] == pytest.approx(float(by_hand), abs=1e-5)


def test_padding_that_is_the_end_token_does_not_hide_the_end(table_model):
    table = torch.randn((6, 6), generator=torch.Generator().manual_seed(2))
    policy = table_model(table, "ab")
    examples = read_examples(policy, [{"prompt": "ba", "response": "a"}, {"prompt": "b", "response": "abba"}])
    expected = measure(FineTuning(Scorer(policy), examples), 100)
    policy.pad_id = policy.eos_ids[0]
    policy.tokenizer.pad_token = policy.tokenizer.eos_token
    assert measure(FineTuning(Scorer(policy), examples), 100) == expected


def test_a_tuned_model_gives_the_answers_and_stops(tmp_path):
    policy = tiny_model("llama", vocabulary="abcdefgh", hidden=32, heads=2, kv_heads=1)
    rows = [
        {"prompt": "abc", "response": "def"},
        {"prompt": "cba", "response": "h"},
        {"prompt": "aa", "response": "bb"},
    ]
    objective = FineTuning(Scorer(policy), read_examples(policy, rows))
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=3e-3)
    settings = SupervisedSettings(batch_size=3, steps=60, checkpoint_every=1000)
    final = SupervisedLoop(policy.model, optimizer, objective, settings, Run(tmp_path / "run")).train()
    assert final["loss"] < 0.05
    prompts = [policy.encode(row["prompt"]) for row in rows]
    drawn = NativeSampler(policy).sample(prompts, 1, Decoding(8, temperature=0.0), torch.Generator())
    assert drawn.texts == [row["response"] for row in rows]
    assert drawn.stopped.all()


# --- what is learned from


def test_right_answers_are_distinct_ended_and_as_drawn():
    right, wrong = Verdict.RIGHT, Verdict.WRONG
    drawn = rollouts(
        (0, "a b", right, True),
        (0, "a  b", right, True),  # the same but for blanks
        (0, "c", wrong, True),
        (0, "d", right, False),  # cut off
        (1, "e", Verdict.TIMEOUT, True),
        (1, "f", right, True),
        (1, "a b", right, True),  # the same as that of another problem, which does not count
    )
    kept = right_answers(drawn)
    assert [(row["task"], row["text"]) for row in kept] == [("t0", "a b"), ("t1", "f"), ("t1", "a b")]
    assert (kept[0]["prompt"], kept[0]["response"]) == ([1], list(map(ord, "a b")))
    assert [row["text"] for row in right_answers(drawn, most=1)] == ["a b", "f"]


def test_solved_problems_in_every_style():
    policy = tiny_model("llama", hidden=8, heads=2, kv_heads=1, layers=1)
    sums = word_sums("easy", train_size=3, heldout_size=1).train

    def solve(tasks: Any, style: str) -> list[str]:
        return [row["response"] for row in solved_tasks(tasks, policy, "word-sums", style, seed=0)]

    assert solve(sums, "plain") == [f" {task.answer}" for task in sums]
    assert solve(sums, "boxed") == [f" \\boxed{{{task.answer}}}" for task in sums]
    for task, response in zip(sums, solve(sums, "steps"), strict=True):
        assert response.endswith(f"={task.answer}\nthe answer is {task.answer}.")
    (row,) = solved_tasks(sums[:1], policy, "word-sums", "plain", seed=0)
    assert row["prompt"] == f"question: {sums[0].question}\nanswer:"
    digits = arithmetic("one-digit").train[:2]
    assert solve(digits, "plain") == [f" {task.answer}" for task in digits]
    with pytest.raises(UserError, match="come with their answers alone"):
        solve(digits, "steps")

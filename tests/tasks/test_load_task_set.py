from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zerozoo.runs.errors import UserError
from zerozoo.tasks.arithmetic import arithmetic
from zerozoo.tasks.code import code
from zerozoo.tasks.constraints import constraints
from zerozoo.tasks.countdown import countdown
from zerozoo.tasks.load import load_task_set
from zerozoo.tasks.task import question_key
from zerozoo.tasks.word_sums import word_sums


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows(count: int, start: int = 0, **extra: Any) -> list[dict[str, Any]]:
    return [{"question": f"What is {n} + 1?", "answer": str(n + 1), **extra} for n in range(start, start + count)]


def questions(tasks: Any) -> set[str]:
    return {question_key(task.question) for task in tasks}


def test_generated_sets_by_name() -> None:
    assert load_task_set("arithmetic") == arithmetic("twenty")
    assert load_task_set("arithmetic", level="two-digit", seed=4) == arithmetic("two-digit", 4)
    assert load_task_set("arithmetic:one-digit", heldout_size=20) == arithmetic("one-digit", heldout_size=20)
    assert load_task_set("countdown", level="four", train_size=9, heldout_size=3) == countdown("four", 0, 9, 3)
    assert load_task_set("word-sums", train_size=9, heldout_size=6) == word_sums("easy", 0, 9, 6)
    assert load_task_set("code", level="lists", heldout_size=9) == code("lists", heldout_size=9)
    assert load_task_set("constraints", train_size=9, heldout_size=6) == constraints("plain", 0, 9, 6)
    unseen = constraints("short", 2, 9, 6, suite="unseen")
    assert load_task_set("constraints:short", heldout="unseen", seed=2, train_size=9, heldout_size=6) == unseen
    mixed = word_sums("hard", 1, 9, 6, heldout_split="mixed")
    assert load_task_set("word-sums", split="hard", heldout="mixed", seed=1, train_size=9, heldout_size=6) == mixed


@pytest.mark.parametrize(
    "name",
    [
        *("arithmetic:steps", "countdown:three", "word-sums:medium", "word-sums:easy:mixed"),
        *("code:strings", "constraints:short", "constraints:short:unseen"),
    ],
)
def test_the_name_of_a_set_loads_it_again(name: str) -> None:
    task_set = load_task_set(name)
    assert task_set.name == name
    assert load_task_set(task_set.name) == task_set


def test_file_is_split_by_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "sums.jsonl", rows(40))
    task_set = load_task_set(path, heldout_size=10)
    assert (len(task_set.train), len(task_set.heldout)) == (30, 10)
    assert not questions(task_set.train) & questions(task_set.heldout)
    assert load_task_set(write(tmp_path / "back.jsonl", rows(40)[::-1]), heldout_size=10).heldout != task_set.heldout
    again = load_task_set(write(tmp_path / "back.jsonl", rows(40)[::-1]), heldout_size=10)
    assert questions(again.heldout) == questions(task_set.heldout)
    assert load_task_set(path, heldout_size=10, seed=1).heldout != task_set.heldout
    assert (task_set.verifier, task_set.extractor, task_set.template) == ("math", "lenient", "simple")
    assert task_set.stop == ("Question", "Answer")
    assert task_set.notes == ()


def test_default_heldout_size_of_a_file(tmp_path: Path) -> None:
    task_set = load_task_set(write(tmp_path / "sums.jsonl", rows(250)))
    assert (len(task_set.train), len(task_set.heldout)) == (50, 200)


def test_repeated_questions_are_removed_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "sums.jsonl", rows(10) + rows(3) + [{"question": " what IS 4 +  1?", "answer": "5"}])
    task_set = load_task_set(path, heldout_size=2)
    assert len(task_set.train) + len(task_set.heldout) == 10
    assert task_set.notes == ("4 repeated questions were left out.",)


def test_separate_heldout_file(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", rows(10))
    test = write(tmp_path / "test.jsonl", rows(5, start=7))
    task_set = load_task_set(train, heldout=test)
    assert [task.answer for task in task_set.heldout] == ["8", "9", "10", "11", "12"]
    assert [task.answer for task in task_set.train] == [str(n) for n in range(1, 8)]
    assert task_set.notes == (f"3 training questions that are in {test} were left out.",)


def test_without_keeps_an_evaluation_set_out(tmp_path: Path) -> None:
    pool = write(tmp_path / "math.jsonl", rows(20))
    math500 = write(tmp_path / "math500.jsonl", rows(5, start=2))
    task_set = load_task_set(pool, without=math500, heldout_size=5)
    assert not questions((*task_set.train, *task_set.heldout)) & {f"what is {n} + 1?" for n in range(2, 7)}
    assert len(task_set.train) == 10
    assert task_set.notes == (f"5 questions that are in {math500} were left out.",)


def test_difficulty_split_over_two_files(tmp_path: Path) -> None:
    gsm8k = write(tmp_path / "gsm8k.jsonl", rows(10, source="gsm8k"))
    levels = [row for level in range(1, 6) for row in rows(4, start=100 * level, level=level)]
    math = write(tmp_path / "math.jsonl", levels)
    counts = {}
    for split in ("easy", "medium", "hard"):
        task_set = load_task_set(f"{gsm8k},{math}", split=split, heldout_size=2)
        counts[split] = len(task_set.train) + len(task_set.heldout)
        assert task_set.name.endswith(f":{split}")
    assert counts == {"easy": 10 + 4, "medium": 16, "hard": 12}
    ids = [task.id for task in (*task_set.train, *task_set.heldout)]
    assert len(set(ids)) == len(ids)


def test_gold_answers_nobody_can_check_are_counted(tmp_path: Path) -> None:
    bad = [{"question": "Prove it.", "answer": ""}, {"question": "Why?", "answer": None}]
    path = write(tmp_path / "sums.jsonl", rows(10) + bad)
    task_set = load_task_set(path, heldout_size=2)
    assert len(task_set.train) + len(task_set.heldout) == 10
    assert task_set.notes == (f"2 problems of {path} were left out: their gold answer cannot be parsed.",)
    with pytest.raises(UserError, match="None of the 2 answers of"):
        load_task_set(write(tmp_path / "bad.jsonl", bad), heldout_size=1)


def test_template_and_extractor_are_replaced() -> None:
    task_set = load_task_set("arithmetic", template="complex", extractor="boxed")
    assert (task_set.template, task_set.extractor) == ("complex", "boxed")
    assert "<|im_end|>" in task_set.stop
    with pytest.raises(UserError, match="Unknown prompt template"):
        load_task_set("arithmetic", template="abel")
    with pytest.raises(UserError, match="Unknown extractor 'last'; choose from: .*lenient"):
        load_task_set("arithmetic", extractor="last")


def test_released_rows_recommend_their_own_template(tmp_path: Path) -> None:
    wrapped = [
        {"prompt": f"<|user|>What is {n} + 1?<|bot|>", "reward_model": {"ground_truth": str(n + 1)}} for n in range(6)
    ]
    task_set = load_task_set(write(tmp_path / "a.jsonl", wrapped), heldout_size=2)
    assert task_set.template == "{question}"
    assert task_set.stop == ()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("arithmatic", {}, "Unknown task 'arithmatic'; choose one of arithmetic, countdown"),
        ("arithmetic:three", {}, "one-digit, twenty, two-digit, multiplication, steps"),
        ("arithmetic:twenty", {"level": "steps"}, "contradict each other"),
        ("arithmetic", {"split": "easy"}, "option split has no use for the task 'arithmetic'"),
        ("arithmetic", {"train_size": 5}, "option train_size has no use"),
        ("arithmetic", {"question_column": "q"}, "option question_column has no use"),
        ("countdown", {"heldout": "x"}, "option heldout has no use"),
        ("countdown", {"without": "x"}, "option without has no use"),
        ("word-sums", {"level": "easy"}, "option level has no use"),
        ("code", {"train_size": 5}, "option train_size has no use"),
        ("code:numbers", {"heldout": "unseen"}, "option heldout has no use"),
        ("constraints", {"split": "easy"}, "option split has no use"),
        ("constraints:long", {}, "short, plain"),
        ("constraints:short:dev", {}, "heldout, unseen"),
        ("word-sums", {"split": "tiny"}, "easy, medium, hard, mixed"),
        ("missing.jsonl", {}, "There is no file or folder 'missing.jsonl'"),
        ("math500", {}, "an evaluation set, with nothing to train on"),
        ("gsm8k,,math", {}, "an empty place in it"),
        ("gsm8k,nothing", {}, "Unknown task 'nothing'"),
        ("a.jsonl", {"level": "3"}, "option level has no use"),
        ("a.jsonl", {"heldout": "b.jsonl", "heldout_size": 3}, "not both"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_task_set(name, **options)


def test_bad_files(tmp_path: Path) -> None:
    path = write(tmp_path / "sums.jsonl", rows(5))
    with pytest.raises(UserError, match="only 5 problems, which is too few for a held-out part of 200"):
        load_task_set(path)
    with pytest.raises(UserError, match="at least 1 problem"):
        load_task_set(path, heldout_size=0)
    with pytest.raises(UserError, match="no training problems"):
        load_task_set(path, heldout=path)
    with pytest.raises(UserError, match="No problem belongs to the split 'hard'"):
        load_task_set(path, split="hard")
    with pytest.raises(UserError, match="easy, medium, hard"):
        load_task_set(path, split="auto")
    with pytest.raises(UserError, match="columns found: question, answer"):
        load_task_set(path, answer_column="gold")

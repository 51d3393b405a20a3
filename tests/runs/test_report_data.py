"""The data of the page of runs: what is in it is what was logged, and what is damaged is said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from zerozoo.runs.records import read_record
from zerozoo.runs.report_data import (
    POINTS,
    column,
    columns,
    finite,
    headlines,
    interval_ends,
    outcomes,
    read_samples,
    run_entry,
    series,
    split_tokens,
    spread,
    summarise_episodes,
    summarise_samples,
    thin,
)
from zerozoo.runs.run import Run


def sample(step: int, **changes: Any) -> dict[str, Any]:
    row = {"step": step, "phase": "train", "group": 0, "task": "t", "question": "q", "gold": "1", "response": "r"}
    row |= {"verdict": "right", "reward": 1.0, "advantage": 0.5, "length": 3, "finish": "stop"}
    return {**row, **changes}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two steps with an evaluation before and after, and three responses."""
    directory = tmp_path / "run"
    with Run.start(directory, "sums", {"steps": 2, "rate": {"first": 0.5}, "stop": ["\n"]}, 7) as made:
        made.log(0, {"heldout/greedy_accuracy": 0.25, "heldout/greedy_low": 0.1, "heldout/greedy_high": 0.5})
        made.log(1, {"reward": 0.5, "policy/kl": math.nan, "seconds/step": 2.0})
        made.log(2, {"reward": 1.0, "policy/kl": 0.125, "heldout/greedy_accuracy": 0.75, "seconds/step": 3.0})
        made.sample([sample(1, tokens=["a", "b"], logprobs=[-0.5, -1.25]), sample(1, verdict="wrong", reward=0.0)])
        made.sample([sample(2, finish="length", parts={"format": -1.0})])
    return directory


def entry(directory: Path, samples: int = 100) -> tuple[dict[str, Any], dict[str, Any]]:
    return run_entry(read_record(directory), "label", directory.parent / "results", samples)


def test_run_entry(run):
    found, later = entry(run)
    assert (found["label"], found["recipe"], found["seed"], found["steps"]) == ("label", "sums", 7, "2/2")
    assert (found["status"], found["seconds"], found["notes"], found["claim"]) == ("done", 5.0, [], None)
    assert found["config"] == {"steps": "2", "rate.first": "0.5", "stop": '["\\n"]'}
    assert found["metrics"]["step"] == [0, 1, 2]
    assert found["metrics"]["series"]["reward"] == {"at": [1, 2], "values": [0.5, 1]}
    assert found["metrics"]["series"]["policy/kl"] == {"at": [2], "values": [0.125]}  # nan is a gap
    assert found["shares"] == ["heldout/greedy_accuracy"]
    assert found["intervals"] == {"heldout/greedy_accuracy": ["heldout/greedy_low", "heldout/greedy_high"]}
    assert found["headlines"] == ["heldout/greedy_accuracy", "reward", "policy/kl"]
    first = {"step": 0, "value": 0.25, "low": 0.1, "high": 0.5}
    last = {"step": 2, "value": 0.75, "low": None, "high": None}
    assert found["outcomes"] == [{"name": "heldout/greedy_accuracy", "share": True, "first": first, "last": last}]
    samples = found["samples"]
    assert (samples["count"], samples["total"], later["samples"]["count"]) == (3, 3, 3)
    columns = later["samples"]["columns"]
    assert columns["verdict"] == {"choices": ["right", "wrong"], "at": [0, 1, 0]}
    assert columns["reward"] == {"numbers": [1, 0, 1]}
    assert columns["parts.format"] == {"numbers": [None, None, -1]}
    assert "tokens" not in columns
    assert later["tokens"] == {"words": ["a", "b"], "token": [0, 1], "logprob": [-0.5, -1.25], "start": [0, 2, 2, 2]}
    json.dumps([found, later], allow_nan=False)


def test_every_column_gives_its_values_back():
    rows = [
        {"number": 1.0, "big": 0.1, "text": "x", "flag": True, "list": [1, "<"], "same": "s"},
        {"number": -2, "text": "y", "flag": False, "list": None, "same": "s"},
        {"number": None, "text": "z", "flag": None, "same": "s"},
        {"number": math.inf, "text": "", "same": "s"},
    ]
    table = columns(rows)
    assert table["count"] == 4
    assert table["columns"] == {
        "number": {"numbers": [1, -2, None, None]},
        "big": {"numbers": [0.1, None, None, None]},
        "text": {"texts": ["x", "y", "z", ""]},
        "flag": {"choices": [True, False], "at": [0, 1, -1, -1]},
        "list": {"choices": ['[1, "<"]'], "at": [0, -1, -1, -1]},
        "same": {"choices": ["s"], "at": [0, 0, 0, 0]},
    }
    assert json.dumps(table["columns"]["number"]) == '{"numbers": [1, -2, null, null]}'  # 1 in place of 1.0


def test_columns_of_mixed_values_are_texts():
    assert column([1, "one", True, None]) == {"texts": ["1", "one", "true", None]}
    assert column([True, 1, "1"]) == {"choices": ["true", "1"], "at": [0, 1, 1]}


def test_tokens_that_do_not_fit_stay_in_the_row():
    rows = [
        {"tokens": ["a", "b"], "logprobs": [-1.0]},
        {"tokens": ["a"], "logprobs": ["-1"]},
        {"tokens": "a", "logprobs": [-1.0]},
        {"tokens": [], "logprobs": []},
        {"response": "none"},
        {"tokens": ["b", "a"], "logprobs": [None, -0.12345]},
    ]
    tokens, rest = split_tokens(rows)
    assert tokens == {
        "words": ["b", "a"],
        "token": [0, 1],
        "logprob": [None, -0.123],
        "start": [0, 0, 0, 0, 0, 0, 2],
    }
    assert rest == [*rows[:5], {}]
    assert split_tokens(rows[:5]) == (None, rows[:5])


def test_samples_by_step():
    rows = [
        sample(2, reward=0.5, verdict="wrong", length=10),
        sample(1, reward=1.0, finish="length"),
        sample(2, reward=None, verdict="right", length=20),
        sample(3, phase="heldout", verdict=None, finish=None),
        {"response": "without a step"},
    ]
    assert summarise_samples(rows) == {
        "train": {
            "step": [1, 2],
            "count": [1, 2],
            "reward": [1.0, 0.5],
            "length": [3.0, 15.0],
            "right": [1.0, 0.5],
            "clipped": [1.0, 0.0],
        },
        "heldout": {"step": [3], "count": [1], "reward": [1.0], "length": [3.0], "right": [None], "clipped": [None]},
    }


def test_episodes_by_step_have_students_interval():
    rows = [{"step": 5, "phase": "evaluation", "return": value} for value in (1.0, 2.0, 3.0)]
    (found,) = summarise_episodes([*rows, {"step": 6, "phase": "evaluation", "return": None}]).values()
    assert (found["step"], found["count"], found["mean"]) == ([5], [3], [2.0])
    assert (found["least"], found["most"]) == ([1.0], [3.0])
    half = 4.302652729911275 / math.sqrt(3)  # t of 2 degrees of freedom, deviation 1
    assert (found["low"][0], found["high"][0]) == pytest.approx((2 - half, 2 + half))


def test_control_rows_are_episodes_and_strange_rows_are_counted(tmp_path):
    with Run.start(tmp_path / "run", "bc", {"steps": 1}, 0) as made:
        made.log(1, {"evaluation/return": 1.0})
        episode = {"step": 1, "phase": "evaluation", "episode": 0, "seed": 9, "return": 1.5, "length": 4}
        made.sample([episode, {**episode, "episode": 1, "success": True}, {"step": 1, "note": "neither"}])
    found, later = entry(tmp_path / "run")
    assert (found["samples"]["count"], found["episodes"]["count"], later) == (0, 2, {})
    assert found["episodes"]["columns"]["success"] == {"choices": [True], "at": [-1, 0]}
    assert found["notes"] == ["1 rows of samples.jsonl are neither responses nor episodes and were left out"]
    # One episode or one value says nothing about the spread: the page gets null for the infinite ends.
    assert finite(summarise_episodes([episode]))["evaluation"]["low"] == [None]


def test_damaged_samples_are_said_and_the_rest_is_kept(tmp_path):
    path = tmp_path / "samples.jsonl"
    lines = [json.dumps(sample(1)), "{", json.dumps([1]), "", json.dumps(sample(2)), '{"step": 3, "resp']
    path.write_text("\n".join(lines))
    rows, notes = read_samples(path)
    assert [row["step"] for row in rows] == [1, 2]
    assert notes == [
        "2 lines of samples.jsonl, the first is line 2, cannot be read and were left out",
        "the last row of samples.jsonl is half-written and was left out",
    ]
    path.write_bytes(b"\xff\xfe\n" + json.dumps(sample(1)).encode() + b"\n")
    assert read_samples(path)[1] == ["line 1 of samples.jsonl cannot be read and was left out"]
    assert read_samples(tmp_path / "none.jsonl") == ([], [])
    (tmp_path / "folder.jsonl").mkdir()
    rows, notes = read_samples(tmp_path / "folder.jsonl")
    assert rows == []
    assert notes[0].startswith("folder.jsonl cannot be read")


def test_a_run_of_which_little_is_left(run):
    (run / "config.json").write_text("{")
    (run / "versions.json").unlink()
    (run / "samples.jsonl").unlink()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "rew')
    found, _ = entry(run)
    assert found["metrics"]["step"] == [0, 1, 2]
    assert found["samples"]["count"] == 0
    assert [note.split(" (")[0] for note in found["notes"]] == [
        "config.json is damaged",
        "versions.json is missing",
        "the last row of metrics.jsonl is half-written and was left out",
    ]


def test_more_samples_than_wanted_are_spread_over_the_run():
    notes: list[str] = []
    rows = [{"step": step} for step in range(10)]
    assert [row["step"] for row in spread(rows, 4, "responses", notes)] == [0, 2, 5, 7]
    assert notes == ["of 10 responses 4 are shown, evenly spread over the run; --samples changes that"]
    assert spread(rows, 10, "responses", notes) is rows
    assert len(notes) == 1


def test_thinning_keeps_ends_and_spikes():
    values = [0.0] * 100_000
    values[54_321], values[70_000] = 9.0, -9.0
    kept = thin(values)
    assert len(kept) <= POINTS
    assert {0, 54_321, 70_000, 99_999} <= set(kept)
    assert kept == sorted(set(kept))
    assert thin([1.0, 2.0]) == [0, 1]


def test_long_curves_are_thinned_and_said():
    notes: list[str] = []
    rows = [{"step": step, "time": 10.0 + step, "loss": float(step % 7), "rare": 1.0} for step in range(POINTS + 1)]
    del rows[0]["rare"]
    found = series(rows, 10.0, notes)
    assert len(found["series"]["loss"]["values"]) < POINTS
    assert found["series"]["rare"]["values"] == [1] * POINTS
    assert found["series"]["rare"]["at"][0] == 1
    assert found["seconds"][:2] == [0.0, 1.0]
    assert notes == ["1 curves with more than 4000 points are drawn by the extremes of equal parts"]


def test_intervals_belong_to_their_metric():
    names = ["heldout/greedy_accuracy", "heldout/greedy_low", "evaluation/return", "evaluation/high", "policy/low"]
    assert interval_ends(names) == {"heldout/greedy_low", "evaluation/high"}
    assert headlines(dict.fromkeys([*names, "seconds/step"], 0.0)) == [
        "heldout/greedy_accuracy",
        "evaluation/return",
        "policy/low",
    ]


def test_runs_without_an_evaluation_have_the_reward_as_result():
    found = outcomes([{"step": 1, "reward": 0.5, "loss": 3.0}, {"step": 2, "reward": None}, {"step": 3, "reward": 1.0}])
    assert [(one["name"], one["first"]["step"], one["last"]["step"]) for one in found] == [("reward", 1, 3)]
    assert outcomes([]) == []

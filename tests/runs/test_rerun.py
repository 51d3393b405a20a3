"""Whether two runs are the same, number by number."""

from __future__ import annotations

import math
from typing import Any

import pytest

from zerozoo.runs.rerun import compare_runs, compare_versions, is_clock

ROWS = [
    {"step": 0, "time": 1.0, "accuracy": 0.5, "seconds/evaluate": 1.0},
    {"step": 1, "time": 2.0, "reward": 0.1, "loss": None, "memory/update": 10.0, "tokens_per_second": 5.0},
    {"step": 2, "time": 3.0, "reward": 0.3, "accuracy": 0.25},
]


def changed(row: int, **values: Any) -> list[dict[str, Any]]:
    return [{**old, **(values if number == row else {})} for number, old in enumerate(ROWS)]


def test_a_run_is_the_same_as_itself_at_another_time() -> None:
    other = changed(1, **{"memory/update": 1.0, "tokens_per_second": 9.0})
    again = [{**row, "time": row["time"] + 1e9} for row in other]
    again[0]["seconds/evaluate"] = 77.0
    result = compare_runs(ROWS, again, {}, {})
    assert result.identical
    assert (result.largest, result.rows, result.values, result.last_step, result.longer) == (0.0, 3, 5, 2.0, "")
    assert result.ignored == ["memory/update", "seconds/evaluate", "time", "tokens_per_second"]


def test_the_last_bit_counts() -> None:
    result = compare_runs(ROWS, changed(2, reward=math.nextafter(0.3, 1.0)), {}, {})
    assert not result.identical
    (difference,) = result.differences
    assert (difference.metric, difference.step, difference.before) == ("reward", 2.0, 0.3)
    assert difference.largest == result.largest == math.nextafter(0.3, 1.0) - 0.3


def test_the_first_and_the_largest_difference_of_a_metric() -> None:
    after = changed(0, accuracy=0.75)
    after[2]["accuracy"] = -1.0
    (difference,) = compare_runs(ROWS, after, {}, {}).differences
    assert (difference.step, difference.before, difference.after, difference.largest) == (0.0, 0.5, 0.75, 1.25)


@pytest.mark.parametrize(
    ("after", "first"),
    [
        (changed(1, loss=0.0), ("loss", 1.0, None, 0.0)),
        (changed(1, reward=None), ("reward", 1.0, 0.1, None)),
        (changed(0, extra=1.0), ("extra", 0.0, "-", 1.0)),
        ([ROWS[0], {"step": 1, "loss": None}, ROWS[2]], ("reward", 1.0, 0.1, 0.3)),
        ([ROWS[0], ROWS[1], {"step": 2, "accuracy": 0.25}], ("reward", 2.0, 0.3, "-")),
        ([*ROWS, {"step": 2, "reward": 0.3}], ("reward", 2.0, "-", 0.3)),
    ],
)
def test_numbers_that_only_one_run_has(after: list[dict[str, Any]], first: tuple[Any, ...]) -> None:
    (difference,) = compare_runs(ROWS, after, {}, {}).differences
    assert (difference.metric, difference.step, difference.before, difference.after) == first
    assert difference.largest == math.inf


def test_a_run_that_was_killed_is_repeated_as_far_as_it_went() -> None:
    result = compare_runs(ROWS[:2], ROWS, {}, {})
    assert result.identical
    assert (result.last_step, result.rows) == (1.0, 2)
    assert result.longer == "only the repetition goes on after step 1, to step 2"
    assert compare_runs(ROWS, ROWS[:2], {}, {}).longer == "only the stored run goes on after step 1, to step 2"
    assert not compare_runs(changed(1, reward=9.0)[:2], ROWS, {}, {}).identical


def test_nothing_in_common_is_not_identical() -> None:
    for before, after in (([], ROWS), (ROWS, []), ([], []), ([{"step": 1, "time": 0.0}], [{"step": 1, "time": 0.0}])):
        assert not compare_runs(before, after, {}, {}).identical


@pytest.mark.parametrize(
    ("name", "clock"),
    [
        ("time", True),
        ("_runtime", True),
        ("seconds/step", True),
        ("memory/sample", True),
        ("tokens_per_second", True),
        ("times", False),
        ("reward_seconds/x", False),
        ("tokens_per_second_squared", False),
        ("step_count", False),
    ],
)
def test_what_measures_the_machine(name: str, clock: bool) -> None:
    assert is_clock(name) == clock


def test_versions_that_differ() -> None:
    before = {"torch": "2.6.0", "commit": "abc", "dirty": False, "resumed": [{"torch": "2.7.0"}, {"cores": 2}]}
    assert compare_versions(before, {"torch": "2.7.0", "commit": "abc", "dirty": True, "cores": 2}) == {
        "dirty": (False, True)
    }
    assert compare_versions({"torch": "1"}, {}) == {"torch": ("1", None)}
    assert compare_runs(ROWS, ROWS, {"commit": "a"}, {"commit": "b"}).made_with == {"commit": ("a", "b")}
    assert before["resumed"] == [{"torch": "2.7.0"}, {"cores": 2}]  # untouched

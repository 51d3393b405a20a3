"""Arms side by side: what counts, what is left out and why, and the numbers, by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zerozoo.runs.aggregates import AGGREGATES, iqm, stratified_interval
from zerozoo.runs.compare import (
    Curve,
    Gathered,
    Settings,
    compare,
    final_score,
    gather,
    interpolate,
    read_reference,
)
from zerozoo.runs.errors import UserError
from zerozoo.runs.queries import Arm
from zerozoo.runs.records import Record, Series

RAW = Settings(normalisation="none")


def record(name: str, seed: int = 0, **options: object) -> Record:
    return replace(Record(Path(name), name, seed=seed, final={"m": 1.0}, state="done", rows=9), **options)


def series(values: Sequence[float], steps: Sequence[float] | None = None, seconds: float = 1.0) -> Series:
    at = np.arange(len(values)) if steps is None else np.array(steps)
    return Series.sorted(at, seconds * at, values)


def gathered(arms: Mapping[str, Mapping[str, Sequence[Series]]]) -> Gathered:
    curves = {
        arm: {
            panel: [Curve(record(f"{arm}-{panel}-{n}", n), one) for n, one in enumerate(many)]
            for panel, many in by_panel.items()
        }
        for arm, by_panel in arms.items()
    }
    return Gathered(curves, dict.fromkeys(arms, "m"), [])


def constant(*levels: float) -> list[Series]:
    """One run for every level, which it has at all its eleven points."""
    return [series([level] * 11) for level in levels]


# --- which runs count


def loader(by_name: Mapping[str, Series]) -> object:
    return lambda records, metric, step: [by_name[str(one.directory)] for one in records]


def test_every_run_that_does_not_count_is_named_with_the_reason() -> None:
    runs = [
        record("good", 2),
        record("better", 1, notes=("the last row is half-written",)),
        record("copy", same_as=Path("good")),
        record("stopped", state="stopped", planned=40.0, last_step=12.0),
        record("empty", state="empty", rows=0),
        record("damaged", state="damaged", notes=("config.json is missing",)),
        record("other", final={"n": 1.0}),
        record("nan"),
    ]
    load = loader({"good": series([1.0]), "better": series([2.0]), "nan": series([])})
    found = gather([Arm("ppo", {"Pong": runs}, "m")], load)  # type: ignore[arg-type]
    assert [str(curve.record.directory) for curve in found.curves["ppo"]["Pong"]] == ["better", "good"]  # by seed
    assert found.discarded == [
        "copy (ppo): a copy of good (id copy)",
        "stopped (ppo): was stopped at step 12/40",
        "empty (ppo): is empty",
        "damaged (ppo): is damaged: config.json is missing",
        "other (ppo): has not logged m",
        "nan (ppo): no value of m is finite",
        "better: the last row is half-written",
    ]


def test_unfinished_runs_count_when_asked_for() -> None:
    runs = [record("stopped", state="stopped", planned=40.0, last_step=12.0)]
    load = loader({"stopped": series([1.0])})
    arm = Arm("a", {"p": runs}, "m")
    assert len(gather([arm], load, unfinished=True).curves["a"]["p"]) == 1  # type: ignore[arg-type]
    reason = r"the arm 'a' has no run that counts: stopped \(a\): was stopped at step 12/40"
    with pytest.raises(UserError, match=reason):
        gather([arm], load)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the arm 'a' has no run that counts, for no run meets its conditions"):
        gather([Arm("a", {"p": []}, "m")], load)  # type: ignore[arg-type]


def test_seeds_are_those_of_the_panel_with_fewest_and_the_others_are_named() -> None:
    arms = {
        "a": {"p": constant(1, 2, 3), "q": constant(4, 5), "r": constant(9)},
        "b": {"p": constant(1), "q": constant(2), "r": []},
    }
    result = compare(gathered(arms), RAW)
    assert result.panels == ["p", "q"]
    assert result.scores["a"].tolist() == [[1.0, 4.0], [2.0, 5.0]]
    assert result.scores["b"].tolist() == [[1.0, 2.0]]
    assert result.discarded == ["a-p-2 (a): not in the aggregates, for q has only 2 of this arm"]
    assert result.notes[0] == "r is not in the aggregates, for it has no run of b"
    # The table shows all runs of all panels.
    assert result.table["a"]["p"]["mean"] == 2.0
    assert (result.table["a"]["p"]["runs"], result.table["a"]["r"]["mean"]) == (3.0, 9.0)


def test_no_panel_that_all_arms_have() -> None:
    with pytest.raises(UserError, match="no environment in which every arm has a run: p is not in the aggregates"):
        compare(gathered({"a": {"p": constant(1), "q": []}, "b": {"p": [], "q": constant(1)}}), RAW)


# --- scores


def test_the_final_score_is_of_the_last_points_but_of_a_tenth_at_most() -> None:
    long = series(np.arange(2000.0))
    assert final_score(long, 100) == np.arange(1900, 2000).mean()
    assert final_score(long, 10) == np.arange(1990, 2000).mean()
    assert final_score(series(np.arange(50.0)), 100) == np.arange(45, 50).mean()
    assert final_score(series([1.0, 2.0, 9.0]), 100) == 9.0
    assert final_score(long, 10, end=999) == np.arange(990, 1000).mean()
    assert math.isnan(final_score(series([1.0], [50]), 10, end=20))


def test_interpolation_takes_the_mean_of_points_of_one_step() -> None:
    one = series([0.0, 4.0, 8.0, 10.0], [0, 10, 10, 20])
    assert interpolate(one, np.array([0.0, 5.0, 10.0, 15.0])).tolist() == [0.0, 3.0, 6.0, 8.0]


def test_runs_of_different_length_are_compared_over_the_steps_that_all_have() -> None:
    """Each on its own range would set step 100 of one run beside step 1000 of the other."""
    short, long = series(np.arange(101.0)), series(np.arange(1001.0))
    result = compare(gathered({"a": {"p": [short]}, "b": {"p": [long]}}), RAW)
    assert result.efficiency["steps"].at.tolist() == pytest.approx(np.linspace(0, 100, 20).tolist())
    for arm in ("a", "b"):
        assert result.efficiency["steps"].bands[arm].value == pytest.approx(np.linspace(0, 100, 20))
        assert result.scores[arm] == pytest.approx(95.5)  # points 91 to 100
    assert result.notes[0] == "p is compared up to step 100, where the shortest run ends; the longest has 1000"


def test_runs_without_common_steps() -> None:
    with pytest.raises(UserError, match="the runs of p have no steps in common: one ends at 2, another begins at 10"):
        compare(gathered({"a": {"p": [series([1, 2, 3])]}, "b": {"p": [series([1, 2], [10, 11])]}}), RAW)


def test_aggregates_are_those_of_the_scores() -> None:
    a = {"p": constant(0.1, 0.3, 0.2, 0.7), "q": constant(0.9, 1.2, 0.6, 0.8)}
    arms = {"a": a, "b": {"p": constant(0, 1), "q": constant(0, 1)}}
    result = compare(gathered(arms), RAW)
    scores = np.array([[0.1, 0.9], [0.3, 1.2], [0.2, 0.6], [0.7, 0.8]])
    assert result.scores["a"] == pytest.approx(scores)
    for name, statistic in AGGREGATES.items():
        found, expected = result.aggregates["a"][name], stratified_interval(result.scores["a"], statistic)
        assert found == expected
        assert found.value == pytest.approx(float(statistic(scores)))
    assert list(result.differences) == ["b"]
    assert result.differences["b"]["IQM"].value == pytest.approx(0.5 - float(iqm(scores)))
    assert result.improvement["a"]["b"].value == pytest.approx(1 - result.improvement["b"]["a"].value)
    assert result.profiles["b"].value[0] == 0.5  # thresholds begin at the lowest score of all
    assert (result.thresholds[0], result.thresholds[-1], len(result.thresholds)) == (0.0, pytest.approx(1.2), 81)
    assert result.reference == {"p": (0.0, 1.0), "q": (0.0, 1.0)}
    assert "with 2 runs of an arm an interval is too narrow: take 5 or more" in result.notes


def test_one_run_has_no_interval() -> None:
    result = compare(gathered({"a": {"p": constant(1)}}), RAW)
    assert result.aggregates["a"]["mean"].low == -math.inf
    assert "with 1 run of an arm there is no interval: take 5 or more" in result.notes
    assert (result.differences, result.improvement) == ({}, {"a": {}})


def test_max_min_is_over_all_arms_and_points_and_can_be_used_again(tmp_path: Path) -> None:
    low, high = series(np.linspace(-10, 0, 11)), series(np.linspace(0, 30, 11))
    arms = {"a": {"p": [low]}, "b": {"p": [high]}}
    result = compare(gathered(arms), Settings())
    assert result.reference == {"p": (-10.0, 30.0)}
    assert result.scores["a"].item() == pytest.approx(10 / 40)
    assert result.scores["b"].item() == pytest.approx(1.0)
    assert any("max-min" in note for note in result.notes)
    (tmp_path / "kept.json").write_text(json.dumps({"reference": result.reference, "more": 1}))
    kept = read_reference(tmp_path / "kept.json")
    alone = compare(gathered({"a": arms["a"]}), Settings(normalisation="reference", reference=kept))
    assert alone.scores["a"].item() == pytest.approx(10 / 40)  # alone, max-min would make it 1
    assert alone.thresholds[-1] == 8.0


def test_equal_scores_cannot_be_normalised() -> None:
    result = compare(gathered({"a": {"p": constant(3, 3)}}), Settings())
    assert result.scores["a"].tolist() == [[0.0], [0.0]]
    assert "all scores of p are equal, so they are 0 after normalisation" in result.notes


def test_an_atari_game_has_one_reference_under_both_names() -> None:
    reference = {"Pong-v5": (-20.0, 20.0), "CartPole-v1": (0.0, 500.0)}
    arms = {"a": {"PongNoFrameskip-v4": constant(0), "CartPole-v1": constant(250)}}
    result = compare(gathered(arms), Settings(normalisation="reference", reference=reference))
    assert result.scores["a"].tolist() == [[0.5, 0.5]]
    with pytest.raises(UserError, match="the reference scores have no Qbert-v5; they have Pong-v5, CartPole-v1"):
        compare(gathered({"a": {"Qbert-v5": constant(0)}}), Settings(normalisation="reference", reference=reference))


def test_efficiency_over_time_and_over_shares_of_different_ranges() -> None:
    slow, fast = series(np.arange(11.0), seconds=2.0), series(np.arange(11.0), seconds=1.0)
    result = compare(gathered({"slow": {"p": [slow]}, "fast": {"p": [fast]}}), RAW)
    assert result.efficiency["seconds"].at[-1] == 10.0  # where the fast one ends
    assert result.efficiency["seconds"].bands["slow"].value[-1] == 5.0
    assert result.efficiency["seconds"].bands["fast"].value[-1] == 10.0
    two = compare(gathered({"a": {"p": [series(np.arange(11.0))], "q": [series(np.arange(21.0))]}}), RAW)
    assert not two.efficiency["steps"].shared
    assert (two.efficiency["steps"].at[0], two.efficiency["steps"].at[-1]) == (0.0, 1.0)
    assert two.efficiency["steps"].bands["a"].value[-1] == 15.0  # median of 10 and 20
    clockless = [Series.sorted(np.arange(3.0), np.zeros(3), np.ones(3))]
    assert list(compare(gathered({"a": {"p": clockless}}), RAW).efficiency) == ["steps"]


def test_seconds_stand_in_the_table() -> None:
    runs = [series(np.ones(11), seconds=1.0), series(np.ones(11), seconds=3.0)]
    cell = compare(gathered({"a": {"p": runs}}), RAW).table["a"]["p"]
    assert (cell["seconds"], cell["seconds_deviation"]) == (20.0, pytest.approx(math.sqrt(200)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamples": 1999}, "1999 resamples give intervals that change by seed: take 2000 or more"),
        ({"window": 0}, "a window needs 1 point"),
        ({"subsamples": 1}, "efficiency curves and profiles need 2"),
        ({"efficiency": "iqm"}, "unknown aggregate 'iqm': choose from IQM, mean, median, optimality gap"),
        ({"normalisation": "zscore"}, "unknown normalisation 'zscore'"),
        ({"level": 95.0}, "the level of an interval lies between 0 and 1"),
    ],
)
def test_settings_that_make_no_comparison(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Settings(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"a": 1}', '{"a": [1, "x"]}', '{"reference": 5}'])
def test_reference_scores_that_cannot_be_read(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "scores.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"scores\.json (cannot be read|is not of the form)"):
        read_reference(path)

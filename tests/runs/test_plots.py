"""Figures of a comparison: the numbers drawn are the numbers compared. How they look was judged by eye."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zerozoo.runs.compare import Comparison, Curve, Gathered, Settings, compare
from zerozoo.runs.errors import UserError
from zerozoo.runs.plots import KINDS, curves_figure, draw, mean_curve, moving_average
from zerozoo.runs.records import Record, Series
from zerozoo.runs.statistics import mean_interval

MAGIC = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml", ".pdf": b"%PDF"}


def curves(*slopes: float, end: int = 1000) -> list[Curve]:
    steps = np.arange(0.0, end + 1.0)
    return [
        Curve(Record(Path(f"r{n}"), f"r{n}"), Series.sorted(steps, 2 * steps, slope * steps))
        for n, slope in enumerate(slopes)
    ]


def gathered(panels: Sequence[str] = ("Pong",), **arms: list[Curve]) -> Gathered:
    return Gathered({arm: dict.fromkeys(panels, found) for arm, found in arms.items()}, dict.fromkeys(arms, "$m$"), [])


@pytest.fixture
def result() -> Comparison:
    found = gathered(("p", "q"), ppo=curves(1.0, 2.0, 3.0), sac=curves(2.0, 2.5, 4.0))
    return compare(found, Settings(normalisation="none"))


def labels(figure: Any) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_the_mean_of_the_runs_with_students_interval() -> None:
    at, band = mean_curve(curves(1.0, 2.0, 6.0), "steps", 0.95, "interval")
    assert (at[0], at[-1], len(at)) == (0.0, 1000.0, 1000)
    # The moving average of 100 of 10,000 points lies 49.5 of their distances behind.
    end = 1000.0 - 49.5 * 1000 / 9999
    expected = mean_interval([end, 2 * end, 6 * end])
    assert (band.value[-1], band.low[-1], band.high[-1]) == pytest.approx((expected.value, expected.low, expected.high))
    _, spread = mean_curve(curves(1.0, 2.0, 6.0), "steps", 0.95, "deviation")
    assert spread.high[-1] - spread.value[-1] == pytest.approx(end * np.std([1, 2, 6], ddof=1))
    _, alone = mean_curve(curves(1.0), "steps", 0.95, "interval")
    assert np.isnan(alone.low).all()
    assert mean_curve(curves(1.0), "seconds", 0.95, "interval")[0][-1] == 2000.0


def test_runs_of_different_length_are_drawn_as_far_as_all_go() -> None:
    at, _ = mean_curve([*curves(1.0), *curves(1.0, end=400)], "steps", 0.95, "interval")
    assert at[-1] == 400.0


def test_moving_average() -> None:
    assert moving_average(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1.0, 2.0, 4.0, 6.0]
    assert moving_average(np.array([1.0, 3.0]), 100).tolist() == [1.0, 2.0]


def test_one_panel_for_every_environment_and_one_legend() -> None:
    figure = curves_figure(gathered(("a", "b", "c", "d"), ppo=curves(1.0, 2.0), sac=curves(3.0)))
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c", "d"]
    assert labels(figure) == ["ppo", "sac"]
    ppo, sac = figure.axes[0].lines
    assert ppo.get_ydata()[-1] == pytest.approx(1.5 * (1000 - 49.5 * 1000 / 9999))
    assert len(figure.axes[0].collections) == 1  # one run has no band
    assert ppo.get_color() != sac.get_color()
    assert figure.axes[0].get_ylabel() == r"\$m\$"
    single = curves_figure(gathered(ppo=curves(1.0, 2.0), sac=curves(3.0)), axis="seconds")
    assert labels(single) == ["ppo (2 runs)", "sac (1 run)"]
    assert single.axes[0].get_xlabel() == "seconds"


def test_an_arm_without_runs_in_a_panel_is_not_drawn_there() -> None:
    found = Gathered({"a": {"p": curves(1.0), "q": []}, "b": {"p": [], "q": curves(2.0)}}, {"a": "m", "b": "m"}, [])
    figure = curves_figure(found)
    assert [len(axes.lines) for axes in figure.axes] == [1, 1]
    assert labels(figure) == ["a", "b"]


def test_figures_of_the_aggregates_show_their_numbers(result: Comparison) -> None:
    figure = KINDS["aggregates"](result)
    assert [axes.get_title() for axes in figure.axes] == ["IQM", "mean", "median", "optimality gap (less is better)"]
    bar = figure.axes[0].patches[1]
    interval = result.aggregates["sac"]["IQM"]
    assert (bar.get_x(), bar.get_x() + bar.get_width()) == pytest.approx((interval.low, interval.high))
    assert figure.axes[0].lines[1].get_xdata()[0] == interval.value
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["ppo", "sac"]
    profile = KINDS["profile"](result)
    assert np.array_equal(profile.axes[0].lines[0].get_ydata(), result.profiles["ppo"].value)
    efficiency = KINDS["efficiency"](result)
    assert [axes.get_xlabel() for axes in efficiency.axes] == ["step", "seconds"]
    assert np.array_equal(efficiency.axes[1].lines[1].get_ydata(), result.efficiency["seconds"].bands["sac"].value)
    improvement = KINDS["improvement"](result)
    assert [text.get_text() for text in improvement.axes[0].get_yticklabels()] == ["ppo > sac"]
    drawn = improvement.axes[0].lines[0].get_xdata()[0]
    assert drawn == result.improvement["ppo"]["sac"].value


def test_one_arm_has_no_improvement_and_one_run_no_bars() -> None:
    alone = compare(gathered(ppo=curves(1.0)), Settings(normalisation="none"))
    with pytest.raises(UserError, match="needs two arms"):
        KINDS["improvement"](alone)
    assert len(KINDS["aggregates"](alone).axes[0].patches) == 0
    assert math.isinf(alone.aggregates["ppo"]["IQM"].low)


@pytest.mark.parametrize("kind", [*KINDS, "curves"])
def test_every_figure_is_written_in_every_format(tmp_path: Path, result: Comparison, kind: str) -> None:
    found = gathered(("p", "$q$"), ppo=curves(1.0, 2.0))
    make = (lambda: curves_figure(found)) if kind == "curves" else (lambda: KINDS[kind](result))
    paths = draw(make, tmp_path / "deep" / "v1.5-figure.png")
    paths += draw(make, tmp_path / "all")
    assert [path.name for path in paths] == ["v1.5-figure.png", "all.png", "all.svg", "all.pdf"]
    for path in paths:
        assert path.read_bytes().startswith(MAGIC[path.suffix])


def test_the_same_numbers_give_the_same_file(tmp_path: Path) -> None:
    found = gathered(ppo=curves(1.0, 2.0))
    first = [path.read_bytes() for path in draw(lambda: curves_figure(found), tmp_path / "a")]
    second = [path.read_bytes() for path in draw(lambda: curves_figure(found), tmp_path / "b")]
    assert first == second


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    found = gathered(ppo=curves(1.0))
    message = r"written as \.png, \.svg, \.pdf, or as all three without an ending, not as 'x\.gif'"
    with pytest.raises(UserError, match=message):
        draw(lambda: curves_figure(found), tmp_path / "x.gif")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        draw(lambda: curves_figure(found), tmp_path / "file" / "x.png")

"""The benchmark of rollout workers: they take turns, the first round does not count, and what is asked of the model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import distributed
from zerozoo.recipes.systems import srl


def test_rounds_alternate_and_the_first_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    rates = iter([1.0, 1.0, 100.0, 190.0, 50.0, 100.0, 80.0, 152.0])

    def measure(config: srl.Config) -> float:
        asked.append(config.actors)
        return next(rates)

    monkeypatch.setattr(distributed, "measure", measure)
    result = distributed.rollouts(repeats=3, milliseconds=5.0, seconds=1.0)
    assert asked == [1, 2] * 4
    assert result["frames_per_second"]["1"] == {"median": 80.0, "low": 50.0, "high": 100.0}
    assert result["ratio"] == pytest.approx({"median": 1.9, "low": 1.9, "high": 2.0})


def test_a_measurement_takes_as_long_with_two_workers_and_learns_nothing() -> None:
    one, two = (distributed.rollout_config(workers, 5.0, 8.0) for workers in (1, 2))
    assert (one.steps, two.steps) == (1600, 3200)
    assert one.epochs == two.epochs == 0
    srl.check(one)


def test_what_the_simulation_is_asked() -> None:
    """Two workers write 32 responses of 0.1 s in 1.6 s; the learner takes 0.5 s; a chunk costs 0.01 s, 4 for each."""
    assert distributed.predicted(2, 0, 20, 0.1, 0.01, 0.5) == pytest.approx(1.64 + 0.5)
    assert distributed.predicted(2, 1, 20, 0.1, 0.01, 0.5) == pytest.approx((20 * 1.64 + 0.5) / 20)


def test_one_measurement_leaves_the_other_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, int]] = []
    monkeypatch.setattr(distributed, "simulation", lambda *how: asked.append(how) or {"new": 1})
    output = tmp_path / "bench.json"
    output.write_text(json.dumps({"rollouts": {"old": 2}, "simulation": {"old": 3}}))
    monkeypatch.setattr(
        sys, "argv", ["distributed.py", "--only", "simulation", "--output", str(output), "--steps", "7"]
    )
    distributed.main()
    result = json.loads(output.read_text())
    assert asked == [(0.1, 7)]
    assert result["rollouts"] == {"old": 2}
    assert result["simulation"]["new"] == 1
    assert set(result["simulation"]) == {"new", "load_average", "commit"}
    assert set(result) == {"rollouts", "simulation", "machine"}

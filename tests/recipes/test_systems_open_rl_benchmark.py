"""The study of tracked runs: what it trains, what its queries give, what it repeats, and when its claims hold."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zerozoo.cli.registry import load_recipe
from zerozoo.control.episode_log import EPISODE
from zerozoo.recipes.baselines import ppo
from zerozoo.recipes.systems import open_rl_benchmark as recipe
from zerozoo.recipes.systems.open_rl_benchmark import CLAIM, PRESETS, RANGES, SLUG, TARGETS, Config, sampling_error
from zerozoo.runs.aggregates import iqm
from zerozoo.runs.claims import ArmResults, judge
from zerozoo.runs.compare import Settings, compare, gather
from zerozoo.runs.errors import UserError
from zerozoo.runs.queries import arms_of_filters, parse_filter_set
from zerozoo.runs.records import read_record, read_rows
from zerozoo.runs.run import Run
from zerozoo.runs.store import Store

pytest.importorskip("duckdb")

SMOKE = Config(**PRESETS["smoke"])
REPETITION, VALUE_TARGET = CLAIM


def train(config: Config, directory: Path) -> dict[str, float]:
    with Run.start(directory, SLUG, asdict(config), config.seed, extendable=recipe.EXTENDABLE) as run:
        return recipe.train(config, run)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """In two environments."""
    pytest.importorskip("duckdb")
    directory = tmp_path_factory.mktemp("study") / "run"
    config = replace(SMOKE, environments=("CartPole-v1", "pendulum"), steps=1000)
    return directory, train(config, directory)


# --- the study


def test_a_run_is_tracked_in_every_environment_and_found_by_the_query(study: tuple[Path, dict[str, float]]) -> None:
    directory, metrics = study
    for environment in ("CartPole-v1", "pendulum"):
        record = read_record(directory / "runs" / environment)
        assert (record.recipe, record.environment, record.state, record.notes) == (SLUG, environment, "done", ())
        rows, _ = read_rows(directory / "runs" / environment / "metrics.jsonl")
        returns = [row[EPISODE] for row in rows if EPISODE in row]
        assert metrics[f"episodes/{environment}"] == len(returns) > 1
        last = returns[-max(1, len(returns) // 10) :]
        assert metrics[f"final/{environment}"] == pytest.approx(np.mean(last))
        assert metrics[f"lowest/{environment}"] >= min(returns)
        assert metrics[f"highest/{environment}"] <= max(returns)
        assert metrics[f"lowest/{environment}"] < metrics[f"highest/{environment}"]
    assert "score" not in metrics  # nobody knows the range of pendulum
    (row,) = Run.open(directory).history()
    assert {name: row[name] for name in metrics} == metrics


def test_a_study_goes_on_where_it_stopped(study: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    """The second environment was not begun, and the study did not write its row."""
    directory, metrics = study
    config = Config(**{name: tuple(v) if isinstance(v, list) else v for name, v in Run.open(directory).config.items()})
    train(replace(config, environments=("CartPole-v1",)), tmp_path / "first")
    with Run.start(tmp_path / "again", SLUG, asdict(config), config.seed):
        pass
    (tmp_path / "first" / "runs").rename(tmp_path / "again" / "runs")
    assert train(config, tmp_path / "again") == metrics
    assert train(config, tmp_path / "again") == metrics  # nor is a row doubled when it is done
    assert len(Run.open(tmp_path / "again").history()) == 1


def test_the_score_is_the_place_in_the_ranges(tmp_path: Path) -> None:
    metrics = train(SMOKE, tmp_path / "run")
    assert metrics["score"] == pytest.approx(metrics["final/CartPole-v1"] / 500)
    single = train(replace(SMOKE, environments=(), environment="CartPole-v1"), tmp_path / "single")
    assert single["evaluation/length"] == single["evaluation/return"]
    rows, one = (read_rows(tmp_path / path / "metrics.jsonl")[0] for path in ("run/runs/CartPole-v1", "single"))
    assert [row.get(EPISODE) for row in rows] == [row.get(EPISODE) for row in one]


def test_what_cannot_be_done_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="rerun repeats the runs of a study: give --environments"):
        train(replace(SMOKE, environments=(), rerun=True), tmp_path / "a")
    with pytest.raises(UserError, match=r"has no run that counts: .*has not logged charts/episodic_return"):
        train(replace(SMOKE, environments=("Acrobot-v1",)), tmp_path / "b")  # its episodes are longer than the run
    monkeypatch.setitem(sys.modules, "duckdb", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="need DuckDB"):
        train(SMOKE, tmp_path / "c")
    assert not (tmp_path / "c" / "runs").exists()  # before any training


def test_presets_are_the_baselines_with_the_studys_length() -> None:
    changed = {"environment", "environments", "steps", "falls_until", "evaluate_every", "evaluation_episodes"}
    assert {name for name, value in PRESETS["laptop"].items() if ppo.PRESETS["laptop"].get(name) != value} == changed
    for claim in CLAIM:
        for arm in claim.arms:
            config = Config(**claim.overrides(arm))
            rollouts = math.ceil(config.steps / (config.rollout * config.copies))
            assert config.falls_until == rollouts * config.epochs  # the rate is 0 at the end and not before
            assert config.batch_size == config.rollout * config.copies
    assert load_recipe(SLUG).family == "systems"


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (np.arange(1.0, 501.0), 0.0),  # every point is in the sample
        (np.ones(5000), 0.0),
        (np.zeros(700), 0.0),
        # The last 100 of 500 points, evenly taken from 0 .. 4999, begin at 4008.01...: a fifth of the history.
        (np.arange(5000.0), 1 - np.linspace(0, 4999, 500).round()[-100:].mean() / np.arange(4900, 5000).mean()),
    ],
)
def test_the_table_of_a_sampled_history(values: np.ndarray, error: float) -> None:
    assert sampling_error(values) == pytest.approx(error)


# --- repetition


def test_a_study_is_repeated_by_the_command(tmp_path: Path) -> None:
    config = replace(SMOKE, rerun=True)
    metrics = train(config, tmp_path / "run")
    assert (metrics["identical"], metrics["largest_difference"], metrics["repeated_runs"]) == (1.0, 0.0, 1.0)
    stored, again = (tmp_path / "run" / folder / "CartPole-v1" for folder in ("runs", "repetitions"))
    rows, repeated = (read_rows(folder / "metrics.jsonl")[0] for folder in (stored, again))
    assert [row.get(EPISODE) for row in rows] == [row.get(EPISODE) for row in repeated]
    assert metrics["numbers_compared"] > 50
    assert read_record(again).config == read_record(stored).config


def test_one_difference_fails(study: tuple[Path, dict[str, float]], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(
        [{"identical": True, "largest": 0.0, "values": 9}, {"identical": False, "largest": None, "values": 9}]
    )

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[3:5] == ["runs", "rerun"]
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps(next(answers)))

    monkeypatch.setattr(recipe.subprocess, "run", run)
    config = replace(SMOKE, environments=("a", "b"), rerun=True)
    metrics = recipe.repeat(config, study[0], study[0] / "repetitions")
    assert metrics == {
        "identical": 0.5,
        "largest_difference": math.inf,
        "numbers_compared": 18.0,
        "repeated_runs": 2.0,
    }
    whole = {"identical": 1.0, "repeated_runs": 2.0}
    found = judged({"ppo": [whole, metrics, whole]}, REPETITION)
    assert (found.verdict, found.threshold, found.effect.low) == ("FAILS", 1.0, 0.5)
    assert found.reason == "5 of 6 runs were repeated without a difference in any number"
    found = judged({"ppo": [whole] * 3}, REPETITION)
    assert (found.verdict, found.effect.value) == ("HOLDS", 1.0)


def test_a_repetition_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = subprocess.CompletedProcess([], 2, stdout="")
    monkeypatch.setattr(recipe.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"runs/CartPole-v1 could not be repeated; why stands above"):
        recipe.repeat(SMOKE, tmp_path / "runs", tmp_path / "repetitions")


# --- the claim on value targets


def judged(rows: Mapping[str, list[dict[str, float]]], claim: Any) -> Any:
    """The judgement on what `train` returned, seed by seed."""
    secondary = {arm: dict(enumerate(found)) for arm, found in rows.items()}
    values = {
        arm: {seed: row.get(claim.metric, 0.0) for seed, row in found.items()} for arm, found in secondary.items()
    }
    return judge(claim, ArmResults(claim.metric, values, secondary))


def cells(shift: float, cartpole: float = 400.0) -> dict[str, list[dict[str, float]]]:
    """Five seeds of both arms; TD(lambda) ends `shift` of the range higher in every environment."""
    rows: dict[str, list[dict[str, float]]] = {}
    for arm in TARGETS:
        rows[arm] = []
        for seed in range(5):
            row: dict[str, float] = {}
            for place, (name, (low, high)) in enumerate(RANGES.items()):
                share = 0.5 + 0.01 * seed + 0.02 * place + (shift if arm == "td-lambda" else 0.0)
                row |= {f"lowest/{name}": low, f"highest/{name}": high, f"final/{name}": low + share * (high - low)}
                row[f"sampling_error/{name}"] = 0.001 * seed
            if cartpole != 400.0:
                row["final/CartPole-v1"] = cartpole
            rows[arm].append(row)
    return rows


@pytest.mark.parametrize(("shift", "verdict"), [(0.1, "HOLDS"), (0.0, "HOLDS"), (-0.019, "HOLDS"), (-0.021, "FAILS")])
def test_the_point_estimate_decides(shift: float, verdict: str) -> None:
    found = judged(cells(shift), VALUE_TARGET)
    assert found.verdict == verdict
    assert found.effect.value == pytest.approx(shift)
    assert found.effect.low < found.effect.value < found.effect.high
    assert "tables from 500 sampled points differ by 0.40 % at most" in found.reason


def test_two_arms_that_learn_nothing_are_no_evidence() -> None:
    found = judged(cells(0.1, cartpole=22.0), VALUE_TARGET)
    assert (found.verdict, found.valid) == ("INCONCLUSIVE", False)
    assert "mean final/CartPole-v1 of td-lambda is 22" in found.reason


# --- the system as the card tests it: synthetic runs, one query, known aggregates


def write_run(root: Path, target: str, environment: str, seed: int, end: float, tags: list[str]) -> Path:
    """A tracked run of the study whose returns rise from 0 to `end` and stay there for the last half."""
    folder = root / f"{target}-{environment}-{seed}"
    folder.mkdir(parents=True)
    config = {"environment": environment, "value_target": target, "seed": seed, "steps": 400}
    (folder / "config.json").write_text(json.dumps({"recipe": SLUG, "seed": seed, "config": config}))
    (folder / "versions.json").write_text("{}")
    (folder / "about.json").write_text(json.dumps({"tags": tags}))
    rows = [{"step": n, "time": 1000.0 * seed + n, EPISODE: end * min(n, 200) / 200} for n in range(401)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_synthetic_runs_have_the_aggregates_that_are_known_and_the_claims_number(tmp_path: Path) -> None:
    """From files through index, query and comparison. Scores 1/8, 3/8, 5/8, 7/8 in each environment, and the best."""
    rows: dict[str, list[dict[str, float]]] = {target: [{} for _ in range(4)] for target in TARGETS}
    for place, environment in enumerate(RANGES):
        best = 10.0 ** (place + 1)
        for seed in range(4):
            for target, end in (("td-lambda", best), ("monte-carlo", best * (2 * seed + 1) / 8)):
                write_run(tmp_path, target, environment, seed, end, ["v1", "odd" if seed % 2 else "even"])
                row = {"lowest": 0.0, "highest": end, "final": end, "sampling_error": 0.0}
                rows[target][seed] |= {f"{name}/{environment}": value for name, value in row.items()}
    query = [f"?wpn=zerozoo&metric={EPISODE}", *(f"{SLUG}?value_target={target}&cl={target}" for target in TARGETS)]
    with Store.open(tmp_path) as store:
        arms = arms_of_filters(store, [parse_filter_set(query)], [tuple(RANGES)])
        result = compare(gather(arms, store.series), Settings())
        assert len(store.select(tags=["v1", "odd"])) == 12  # exactly the runs that have both
        assert {record.seed for record in store.select(tags=["odd", "v1"])} == {1, 3}
    known = {"IQM": 0.5, "mean": 0.5, "median": 0.5, "optimality gap": 0.5}
    for name, value in known.items():
        assert result.aggregates["monte-carlo"][name].value == pytest.approx(value, abs=1e-9)
    for name, value in {"IQM": 1.0, "mean": 1.0, "median": 1.0, "optimality gap": 0.0}.items():
        assert result.aggregates["td-lambda"][name].value == pytest.approx(value, abs=1e-9)
    assert result.improvement["td-lambda"]["monte-carlo"].value == 1.0
    assert result.discarded == []
    # What the claim computes from its cells is what the comparison of their runs gives.
    found = judged(rows, VALUE_TARGET)
    assert found.effect.value == pytest.approx(-result.differences["monte-carlo"]["IQM"].value, abs=1e-9)
    assert found.effect.value == pytest.approx(1.0 - float(iqm(result.scores["monte-carlo"])), abs=1e-9)

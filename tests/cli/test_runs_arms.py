"""`zerozoo runs list`, `compare`, `plot`, `tag`, `import` and `export` over many runs: filters, queries, arms."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from zerozoo.cli.main import main

pytest.importorskip("duckdb")

HEAD = "?ceik=environment&cen=recipe&xaxis=step&metric=return"


def make_run(name: str, recipe: str, environment: str, seed: int, end: float, steps: int = 20, **about: Any) -> Path:
    """A run whose return rises from 0 to `end`, without torch."""
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    config = {"environment": environment, "steps": 20, "seed": seed}
    (folder / "config.json").write_text(json.dumps({"recipe": recipe, "seed": seed, "config": config}))
    (folder / "versions.json").write_text('{"torch": "2.6.0"}')
    if about:
        (folder / "about.json").write_text(json.dumps(about))
    rows = [{"step": n, "time": 1000.0 * seed + 2 * n, "return": end * n / 20} for n in range(steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def zoo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """PPO and SAC in two environments under three seeds; one PPO run was killed."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2, 3):
        for environment, best in (("CartPole-v1", 100.0), ("Hopper-v5", 10.0)):
            ppo, sac = best * (5 + seed) / 10, best * (7 + seed) / 10
            make_run(f"ppo-{environment}-{seed}", "ppo", environment, seed, ppo, tags=["v1", f"seed{seed}"], user="ann")
            make_run(f"sac-{environment}-{seed}", "sac", environment, seed, sac, tags=["v1"], user="bob")
    make_run("killed", "ppo", "CartPole-v1", 4, 100.0, steps=10, tags=["v1"])


def printed(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> list[str]:
    assert main(["runs", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    return [" ".join(line.split()) for line in (captured.err if code else captured.out).splitlines()]


def parsed(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert main(["runs", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# --- list, tag


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ([], 13),
        (["--recipe", "ppo"], 7),
        (["--recipe", "ppo", "--recipe", "sac", "--environment", "Hopper-v5"], 6),
        (["--tag", "v1", "--tag", "seed2"], 2),
        (["--user", "bob"], 6),
        (["--where", "seed=1", "--where", "seed=3"], 8),
        (["--where", "seed=1", "--where", "recipe=sac"], 2),
        (["--version", "torch=2.6.0"], 13),
        (["--limit", "3"], 3),
    ],
)
def test_list_with_filters(capsys: pytest.CaptureFixture[str], arguments: list[str], count: int) -> None:
    runs = parsed(capsys, "list", *arguments)["runs"]
    assert len(runs) == count


def test_list_shows_environment_tags_and_a_metric(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "list", "--metric", "return", "--where", "name=killed")
    assert lines[0] == "run recipe state return changed environment tags"
    assert lines[2].startswith("killed ppo 10/20 stopped 50 ")
    assert lines[2].endswith("CartPole-v1 v1")
    lines = printed(capsys, "list", "--limit", "2")
    assert lines[-1] == "11 older runs are not shown; --limit 0 shows all"


def test_list_as_json_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = parsed(capsys, "list", "--where", "name=killed")["runs"]
    assert (run["recipe"], run["state"], run["tags"], run["config"]["steps"]) == ("ppo", "stopped", ["v1"], 20)
    assert parsed(capsys, "show", "runs/killed") == run


def test_mistakes_in_filters(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = printed(capsys, "list", "--where", "seed", code=2)
    assert line == "error: --where takes NAME=VALUE, not 'seed'"
    (line,) = printed(capsys, "list", "--recipe", "dqn", code=2)
    assert line == "error: there is no run in runs that meets the filters"


def test_filters_need_duckdb_and_the_plain_list_does_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = parsed(capsys, "list")
    monkeypatch.setitem(sys.modules, "duckdb", None)  # type: ignore[arg-type]
    assert parsed(capsys, "list") == whole
    (line,) = printed(capsys, "list", "--recipe", "ppo", code=2)
    assert "pip install 'zerozoo[store]'" in line
    lines = printed(capsys, "compare", "runs", "--metric", "return")  # directories are enough
    assert "arm IQM mean median optimality gap" in lines


def test_tags_are_given_and_taken_away(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "tag", "runs/killed", "--tag", "bad", "--tag", "v1") == ["runs/killed: v1, bad"]
    assert len(parsed(capsys, "list", "--tag", "bad")["runs"]) == 1
    assert printed(capsys, "tag", "runs/killed", "--tag", "v1", "--tag", "bad", "--remove") == ["runs/killed: no tags"]
    (line,) = printed(capsys, "tag", "runs/killed", code=2)
    assert line == "error: give run directories and --tag NAME"
    (line,) = printed(capsys, "tag", "runs/sac-Hopper-v5-1", "runs/nowhere", "--tag", "x", code=2)
    assert "there is no run directory runs/nowhere" in line
    with pytest.raises(AssertionError):  # nothing was written before the mistake was found
        parsed(capsys, "list", "--tag", "x")


# --- compare


def test_compare_with_queries(capsys: pytest.CaptureFixture[str]) -> None:
    result = parsed(capsys, "compare", "--filters", HEAD, "ppo?tag=v1&cl=PPO", "sac", "--normalise", "none")
    assert result["panels"] == ["CartPole-v1", "Hopper-v5"]
    assert list(result["aggregates"]) == ["PPO", "sac"]
    assert result["discarded"] == ["runs/killed (PPO): was stopped at step 10/20"]
    # 21 points: the final score is the mean of the last two, 0.975 of the end.
    ppo = [0.975 * best * level for level in (0.6, 0.7, 0.8) for best in (100.0, 10.0)]
    assert result["scores"]["PPO"] == [pytest.approx(ppo[n : n + 2]) for n in (0, 2, 4)]
    found = result["aggregates"]["PPO"]["mean"]
    assert found["value"] == pytest.approx(sum(ppo) / 6)
    assert found["low"] < found["value"] < found["high"]
    assert result["differences_to_first"]["sac"]["mean"]["value"] == pytest.approx(0.975 * 0.2 * 55.0)
    # By environment, of nine pairs: sac is better in eight and equal in one (0.8 of the best).
    assert result["probability_of_improvement"]["sac"]["PPO"]["value"] == pytest.approx(8.5 / 9)
    assert result["settings"]["resamples"] == 2000
    assert len(result["efficiency"]["steps"]["at"]) == 20
    assert len(result["profile"]["thresholds"]) == 81


def test_compare_prints_tables_and_what_was_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "compare", "--filters", HEAD, "ppo", "sac", "--env-ids", "CartPole-v1")
    for line in (
        "return: mean ± deviation over runs (runs)",
        "CartPole-v1 68.2 ± 9.75 (3) 87.8 ± 9.75 (3)",
        "CartPole-v1 40 s ± 0.0 s 40 s ± 0.0 s",
        "arm IQM mean median optimality gap",
        "Difference to ppo with 95 % interval",
        "Sample efficiency: median by steps",
        "Sample efficiency: median by seconds",
        "Performance profile: share of runs above",
        "scores are normalised by these very runs (max-min): do not set them beside other reports",
        "with 3 runs of an arm an interval is too narrow: take 5 or more",
        "runs/killed (ppo): was stopped at step 10/20",
    ):
        assert line in lines, line
    assert any(line.startswith("ppo > sac 0.056 [0.000, ") for line in lines)


def test_compare_counts_unfinished_runs_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("compare", "--filters", HEAD, "ppo", "--env-ids", "CartPole-v1", "--unfinished")
    result = parsed(capsys, *arguments)
    assert result["table"]["ppo"]["CartPole-v1"]["runs"] == 4
    assert result["notes"][0].startswith("CartPole-v1 is compared up to step 10, where the shortest run ends")


def test_compare_directories_by_a_metric(capsys: pytest.CaptureFixture[str]) -> None:
    result = parsed(capsys, "compare", "runs", "--metric", "return")
    assert list(result["aggregates"]) == ["ppo", "sac"]  # a folder stands for all runs below it
    assert result["table"]["ppo"]["CartPole-v1"]["runs"] == 4  # the killed one, too: it was named


def test_compare_writes_files_and_its_reference_can_be_used_again(capsys: pytest.CaptureFixture[str]) -> None:
    whole = ("compare", "--filters", HEAD, "ppo", "sac", "--output", "out/all")
    printed(capsys, *whole)
    stored = json.loads(Path("out/all.json").read_text())
    assert stored["reference"]["Hopper-v5"] == [0.0, 10.0]
    text = Path("out/all.md").read_text()
    assert "| CartPole-v1 | 68.2 ± 9.75 (3) | 87.8 ± 9.75 (3) |" in text
    assert "- runs/killed (ppo): was stopped at step 10/20" in text
    rows = Path("out/all.csv").read_text().splitlines()
    assert rows[0] == "environment,arm,runs,mean,deviation,low,high,seconds,seconds_deviation"
    assert rows[1].startswith("CartPole-v1,ppo,3.0,68.25,9.75")
    alone = parsed(capsys, "compare", "--filters", HEAD, "ppo", "--normalise", "out/all.json")
    assert alone["aggregates"]["ppo"] == stored["aggregates"]["ppo"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "runs/killed", "--filters", HEAD, "ppo"], "leave out directories and --metric"),
        (["compare", "--filters", HEAD, "ppo", "--metric", "x"], "leave out directories and --metric"),
        (["compare", "runs", "--metric", "return", "--env-ids", "x"], "--env-ids belongs to --filters"),
        (["compare", "--filters", HEAD, "dqn"], "no run meets the filters"),
        (["compare", "--filters", HEAD, "dqn", "--env-ids", "Pong"], "the arm 'dqn' has no run that counts"),
        (["compare", "--filters", HEAD], "a filter set is"),
        (["compare", "runs", "--metric", "return", "--resamples", "10"], "take 2000 or more"),
        (["compare", "runs", "--metric", "return", "--normalise", "nothing.json"], "nothing.json cannot be read"),
        (["compare", "runs", "--output", "x"], "--output and --json are for arms"),
        (["compare", "--metric", "return"], "give run directories, or --filters"),
        (["compare", "nowhere", "--metric", "return"], "there is no run directory nowhere"),
        (["plot", "--filters", HEAD, "ppo", "--kind", "improvement"], "needs two arms"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    (line,) = printed(capsys, *arguments, code=2)
    assert line.startswith("error: ")
    assert message in line


# --- plot, export, import


@pytest.mark.parametrize("kind", ["curves", "aggregates", "improvement", "profile", "efficiency"])
def test_plot_with_queries(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    lines = printed(capsys, "plot", "--filters", HEAD, "ppo", "sac", "--kind", kind)
    name = "return.png" if kind == "curves" else f"return-{kind}.png"
    assert lines[0] == name
    assert Path(name).read_bytes().startswith(b"\x89PNG")
    assert "runs/killed (ppo): was stopped at step 10/20" in lines


def test_plot_over_time_with_deviations(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--axis", "seconds", "--spread", "deviation", "--output", "time.svg")
    assert printed(capsys, "plot", "runs", "--metric", "return", *arguments)[0] == "time.svg"
    assert "<svg" in Path("time.svg").read_text()


def test_export_of_filtered_runs(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "export", "--recipe", "ppo", "--output", "out")
    assert lines == ["out/runs.parquet", "out/metrics.parquet", f"7 runs, {6 * 21 + 11} values"]


def test_import_of_event_files(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter("logs/one") as board:
        board.add_scalar("return", 1.0, 1)
    lines = printed(capsys, "import", "logs", "--tag", "old")
    assert lines == ["runs/imported/one"]
    assert len(parsed(capsys, "list", "--tag", "old")["runs"]) == 1
    (*_, line) = printed(capsys, "import", "logs", code=2)
    assert line == "error: nothing of logs could be imported"

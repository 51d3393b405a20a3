"""`zerozoo runs` on run directories made by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from zerozoo.cli.main import main
from zerozoo.cli.runs import COMMANDS
from zerozoo.cli.runs_list import metric_text
from zerozoo.runs.records import in_use
from zerozoo.runs.run import Run

CONFIG = {"model": "tiny", "steps": 4, "learning_rate": 0.001, "stop": ["Q"]}


def make_run(directory: Path, seed: int = 0, last: float = 0.5, steps: int = 4, **config) -> Path:
    """A closed run whose greedy accuracy rises from 0.125 to `last`."""
    with Run.start(directory, "easy-sums", {**CONFIG, **config, "seed": seed}, seed) as run:
        run.log(0, heldout(0.125))
        for step in range(1, steps + 1):
            row = {"reward": 0.1 * step, "seconds/step": 2.0}
            run.log(step, {**row, **(heldout(last) if step == steps else {})})
    return directory


def heldout(accuracy: float) -> dict[str, float]:
    values = {"accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1, "length": 12.5}
    return {"seconds/evaluate": 1.0, **{f"heldout/greedy_{name}": value for name, value in values.items()}}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[str]:
    """The lines a command prints, runs of blanks as one."""
    assert main(["runs", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    return [" ".join(line.split()) for line in (captured.err if code else captured.out).splitlines()]


def test_list_finds_runs_at_every_depth_and_skips_models(tmp_path, capsys):
    make_run(tmp_path / "runs" / "first")
    inner = make_run(tmp_path / "runs" / "claims" / "deep" / "seed-1", seed=1, steps=2)
    (inner / "model").mkdir()
    (inner / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "runs" / "model").mkdir()
    (tmp_path / "runs" / "model" / "config.json").write_text('{"model_type": "llama"}')
    lines = printed(capsys, "list")
    rows = [line for line in lines if "easy-sums" in line]
    assert rows[0].startswith("claims/deep/seed-1 easy-sums 2/4 stopped 50.0 - ")  # the newer one first
    assert rows[1].startswith("first easy-sums 4/4 done 50.0 - ")
    assert not any("model" in line for line in lines)


def test_list_shows_running_empty_and_damaged_runs(tmp_path, capsys):
    make_run(tmp_path / "runs" / "bad")
    (tmp_path / "runs" / "bad" / "config.json").write_text("{")
    Run.start(tmp_path / "runs" / "new", "easy-sums", CONFIG, 0).close()
    with Run.start(tmp_path / "runs" / "busy", "easy-sums", CONFIG, 0) as run:
        run.log(1, {"reward": 1.0})
        assert in_use(run.directory)
        lines = printed(capsys, "list", "runs")
    assert not in_use(tmp_path / "runs" / "busy")
    state = {line.split()[0]: line for line in lines if line}
    assert " running " in state["busy"]
    assert " empty " in state["new"]
    assert state["bad"].startswith("bad damaged 50.0 - ")  # the rest is still shown
    assert state["bad:"].startswith("bad: config.json is damaged (")


def test_looking_at_a_run_does_not_keep_its_writer_out(tmp_path):
    make_run(tmp_path / "run")
    assert not in_use(tmp_path / "run")
    with Run.start(tmp_path / "run", "easy-sums", {**CONFIG, "seed": 0}, 0) as run:
        run.log(5, {"reward": 0.0})


def test_list_without_runs_says_what_to_do(tmp_path, capsys):
    (line,) = printed(capsys, "list", code=2)
    assert line.startswith("error: there is no folder runs; ")
    (tmp_path / "runs").mkdir()
    (line,) = printed(capsys, "list", code=2)
    assert line == "error: there is no run in runs; `zerozoo train` makes one"
    (line,) = printed(capsys, "list", "--tag", "x", code=2)
    assert line == "error: there is no run in runs that meets the filters"


def test_show_prints_config_metrics_and_files(tmp_path, capsys):
    make_run(tmp_path / "run")
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "run" / "model" / "weights").write_bytes(bytes(3200))
    lines = printed(capsys, "show", "run")
    assert lines[0] == "run: easy-sums, seed 0, done, steps 4/4"
    assert lines[1].endswith("10 s in training steps and evaluations")  # 4 x 2 s and 2 x 1 s
    assert 'stop ["Q"]' in lines
    assert "model tiny" in lines
    assert "heldout/greedy_accuracy 50.0 [40.0, 60.0] % 4" in lines
    assert "heldout/greedy_length 12.5 4" in lines
    assert "reward 0.4 4" in lines
    assert not any(line.startswith("heldout/greedy_low") for line in lines)
    assert "model/ 3.2 kB" in lines


def test_show_a_folder_that_is_no_run(tmp_path, capsys):
    (line,) = printed(capsys, "show", "nowhere", code=2)
    assert line.startswith("error: there is no run directory nowhere")
    (line,) = printed(capsys, "show", tmp_path, code=2)
    assert "is not a run directory: it has no config.json" in line


def test_compare_shows_metrics_side_by_side_and_what_differs(tmp_path, capsys):
    make_run(tmp_path / "soft" / "seed-0")
    make_run(tmp_path / "hard" / "seed-0", last=0.25, learning_rate=0.01)
    lines = printed(capsys, "compare", "soft/seed-0", "hard/seed-0")
    assert lines[:2] == ["A soft/seed-0", "B hard/seed-0"]
    assert "final metric A B" in lines
    assert "steps 4/4 4/4" in lines
    assert "heldout/greedy_accuracy 50.0 [40.0, 60.0] % 25.0 [15.0, 35.0] %" in lines
    assert "reward 0.4 0.4" in lines
    assert "time 10 s 10 s" in lines
    assert "learning_rate 0.001 0.01" in lines
    assert not any(line.startswith(("seed ", "model ")) for line in lines)


def test_compare_equal_configs_and_missing_fields(tmp_path, capsys):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    make_run(tmp_path / "c", extra=True)
    assert printed(capsys, "compare", "a", "b")[-1] == "The configs are equal."
    assert "extra absent true" in printed(capsys, "compare", "a", "c")


def test_compare_needs_two(tmp_path, capsys):
    make_run(tmp_path / "a")
    (line,) = printed(capsys, "compare", "a", code=2)
    assert line.startswith("error: give at least two run directories")


def test_recipes_without_heldout_metrics_are_compared_by_all_they_log(tmp_path, capsys):
    for name, value in (("a", 1.5), ("b", float("nan"))):
        with Run.start(tmp_path / name, "walker", {}, 0) as run:
            run.log(10, {"return": value})
    lines = printed(capsys, "compare", "a", "b")
    assert "steps 10 10" in lines
    assert "return 1.5 -" in lines


def test_plot_of_one_run_draws_its_figures(tmp_path, capsys):
    make_run(tmp_path / "run")
    paths = [Path(line) for line in printed(capsys, "plot", "run")]
    assert tmp_path / "run" / "figures" / "accuracy.png" in [path.absolute() for path in paths]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_plot_of_several_runs_draws_one_metric(tmp_path, capsys):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=1)
    assert printed(capsys, "plot", "a", "b") == ["heldout-greedy_accuracy.png"]
    assert printed(capsys, "plot", "a", "--metric", "reward", "--output", "out/r.png") == ["out/r.png"]
    for path in ("heldout-greedy_accuracy.png", "out/r.png"):
        assert Path(path).read_bytes().startswith(b"\x89PNG")
    assert printed(capsys, "plot", "a", "b", "--output", "all") == ["all.png", "all.svg", "all.pdf"]


def make_control_run(directory: Path, seed: int = 0, evaluated: bool = True) -> Path:
    """A run of the control half: returns rise to 100 + seed."""
    with Run.start(directory, "sac", {"environment": "pendulum", "steps": 30, "seed": seed}, seed) as run:
        for step in (0, 10, 20, 30):
            best = 100.0 + seed
            means = {"episode/return": best * step / 60, "seconds/train": 2.0} if step else {}
            ends = {"evaluation/low": best * step / 30 - 5, "evaluation/high": best * step / 30 + 5}
            evaluation = {"evaluation/return": best * step / 30, **ends, "seconds/evaluate": 1.0} if evaluated else {}
            if means or evaluation:
                run.log(step, {**means, **evaluation})
    return directory


def test_control_runs_are_listed_and_shown_by_their_return(tmp_path, capsys):
    make_control_run(tmp_path / "runs" / "a")
    make_control_run(tmp_path / "runs" / "b", evaluated=False)
    lines = printed(capsys, "list")
    assert lines[0] == "run recipe state return changed environment"
    row = {line.split()[0]: line for line in lines if " sac " in line}
    assert row["a"].startswith("a sac 30/30 done 100 ")
    assert row["b"].startswith("b sac 30/30 done 50 ")  # what it logged of its training
    make_run(tmp_path / "runs" / "c")
    assert printed(capsys, "list")[0] == "run recipe state greedy % sampled % return changed environment"
    lines = printed(capsys, "show", "runs/a")
    assert lines[1].endswith("10 s in training steps and evaluations")  # 3 x 2 s and 4 x 1 s
    assert "evaluation/return 100 [95, 105] 30" in lines
    assert not any(line.startswith("evaluation/low") for line in lines)


def test_control_runs_are_compared_and_drawn_by_their_return(tmp_path, capsys):
    for seed in (0, 1):
        make_control_run(tmp_path / f"a-{seed}", seed)
    lines = printed(capsys, "compare", "a-0", "a-1")
    assert "evaluation/return 100 [95, 105] 101 [96, 106]" in lines
    assert "episode/return 50 50.5" in lines
    assert "time 10 s 10 s" in lines
    assert not any(line.startswith("seconds/train") for line in lines)
    assert printed(capsys, "plot", "a-0", "a-1") == ["evaluation-return.png"]
    make_control_run(tmp_path / "b", evaluated=False)
    assert printed(capsys, "plot", "b", "--output", "b.png") == ["b.png"]
    assert [Path(line).name for line in printed(capsys, "plot", "a-0")] == ["returns.png"]


def test_a_run_whose_metrics_no_figure_knows(tmp_path, capsys):
    with Run.start(tmp_path / "other", "walker", {}, 0) as run:
        run.log(10, {"height": 1.0, "speed": 2.0})
    (line,) = printed(capsys, "plot", "other", code=2)
    assert line == "error: no figure shows what other has logged: give --metric; it has: height, speed"
    (line,) = printed(capsys, "plot", "other", "--output", "x.png", code=2)
    assert line.endswith("evaluation/return, episode/return: give --metric; they have: height, speed")


def test_plot_leaves_out_runs_without_the_metric_and_says_so(tmp_path, capsys):
    make_run(tmp_path / "a")
    Run.start(tmp_path / "new", "easy-sums", CONFIG, 0).close()
    with Run.start(tmp_path / "other", "walker", {}, 0) as run:
        run.log(10, {"return": 1.0})
    lines = printed(capsys, "plot", "a", "new", "other", "--metric", "reward")
    assert lines[0] == "reward.png"
    assert lines[-2:] == ["new: has no metrics yet", "other: has not logged reward"]


def test_plot_mistakes(tmp_path, capsys):
    make_run(tmp_path / "a")
    Run.start(tmp_path / "new", "easy-sums", CONFIG, 0).close()
    (line,) = printed(capsys, "plot", "a", "--metric", "rewards", code=2)
    assert line.startswith("error: none of these runs has logged 'rewards'; they have: heldout/greedy_accuracy, ")
    (line,) = printed(capsys, "plot", "a", "--output", "x.gif", code=2)
    assert "written as .png, .svg, .pdf" in line
    (line,) = printed(capsys, "plot", "new", code=2)
    assert "new has no metrics yet" in line
    (line,) = printed(capsys, "plot", code=2)
    assert line == "error: give run directories, or --filters"


def test_no_command_and_an_unknown_one(capsys):
    lines = capsys_lines(capsys, [])
    assert "  rerun    repeat a run and say whether it is the same" in lines
    for command in COMMANDS:  # every one is there and says what it takes
        assert any(line.startswith(f"  {command} ") for line in lines)
        with pytest.raises(SystemExit) as end:
            main(["runs", command, "--help"])
        assert end.value.code == 0
        assert f"usage: zerozoo runs {command}" in capsys.readouterr().out
    (line,) = printed(capsys, "lists", code=2)
    assert line == "error: Unknown command 'lists' of `zerozoo runs`; did you mean 'list'?"


def capsys_lines(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> list[str]:
    assert main(["runs", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_an_accuracy_without_an_interval_is_shown_without():
    assert metric_text({"a_accuracy": 0.5}, "a_accuracy") == "50.0 %"
    assert metric_text({"a_accuracy": None}, "a_accuracy") == "-"


def test_a_damaged_row_is_a_sentence_and_the_rest_is_shown(tmp_path, capsys):
    make_run(tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write("{broken\n" + json.dumps({"step": 9, "reward": 7.5}) + "\n")
    lines = printed(capsys, "show", "run")
    assert "reward 7.5 9" in lines
    assert lines[-2:] == ["Left out or not as it should be:", "line 6 of metrics.jsonl cannot be read and was left out"]
    make_run(tmp_path / "other")
    lines = printed(capsys, "compare", "run", "other")
    assert lines[-1] == "run: line 6 of metrics.jsonl cannot be read and was left out"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_run_of_somebody_else_can_still_be_listed(tmp_path, capsys):
    make_run(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "a" / ".lock").chmod(0)
    assert any(" done " in line for line in printed(capsys, "list"))

"""`zerozoo runs`: what tracked runs were, and how they compare."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import tyro

from zerozoo.cli.tables import console, duration, make_table, number, percent, percent_interval, size
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import CONFIG, LOCK, Run
from zerozoo.runs.statistics import Interval

GREEDY, SAMPLED = "heldout/greedy_accuracy", "heldout/sampled_accuracy"
# Beside the held-out metrics, what a comparison shows of the training itself.
TRAINING = ("reward", "correct", "groups/informative", "policy/entropy", "policy/kl")


def parse_and_run(arguments: Sequence[str]) -> int:
    """Entry of the command line."""
    commands: dict[str, Callable[..., Any]] = {
        "list": list_runs,
        "show": show_run,
        "compare": compare_runs,
        "plot": plot_runs,
    }
    return int(
        tyro.extras.subcommand_cli_from_dict(
            commands, prog="zerozoo runs", description="Tracked runs: tables and curves.", args=list(arguments)
        )
    )


@dataclass(frozen=True)
class Tracked:
    """A run as it lies on the disk."""

    run: Run

    @classmethod
    def open(cls, directory: Path) -> Tracked:
        """Raises UserError for a folder that is missing or not a run."""
        if not directory.is_dir():
            raise UserError(f"there is no run directory {directory}; `zerozoo runs list` shows those below ./runs")
        return cls(Run.open(directory))

    @property
    def directory(self) -> Path:
        return self.run.directory

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        return self.run.history()

    @cached_property
    def final(self) -> dict[str, float | None]:
        """The last value of every metric; None for one that was not finite."""
        latest: dict[str, float | None] = {}
        for row in self.history:
            latest |= {name: value for name, value in row.items() if name not in ("step", "time")}
        return latest

    @property
    def last_step(self) -> int | None:
        return int(self.history[-1]["step"]) if self.history else None

    @property
    def steps(self) -> str:
        """Steps done of steps planned, "12/40"; "12" for a recipe that plans none."""
        planned = self.run.config.get("steps")
        done = "-" if self.last_step is None else str(self.last_step)
        return done if planned is None else f"{done}/{planned}"

    @property
    def status(self) -> str:
        """done, running, stopped (it can be resumed) or empty."""
        planned = self.run.config.get("steps")
        if isinstance(planned, int) and self.last_step is not None and self.last_step >= planned:
            return "done"
        if in_use(self.directory):
            return "running"
        return "empty" if self.last_step is None else "stopped"

    @property
    def changed(self) -> float:
        """Seconds since 1970 of the last row, or of the start."""
        if self.history:
            return float(self.history[-1]["time"])
        return self.run.path(CONFIG).stat().st_mtime


def in_use(directory: Path) -> bool:
    """Whether a process writes this run now: it then holds the lock that `Run` takes."""
    try:
        descriptor = os.open(directory / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)  # gives the lock back
    return False


def find_runs(root: Path) -> Iterator[Path]:
    """Run directories below `root`, `root` itself included. A run's own folders are not searched."""
    for folder, names, files in os.walk(root):
        if CONFIG in files and _is_run(Path(folder)):
            names.clear()
            yield Path(folder)
        else:
            names[:] = sorted(name for name in names if not name.startswith("."))


def _is_run(folder: Path) -> bool:
    """A model in Hugging Face format has a config.json, too."""
    try:
        stored = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return (folder / "metrics.jsonl").exists()  # a damaged run: listed as such
    return isinstance(stored, dict) and {"recipe", "seed", "config"} <= stored.keys()


def list_runs(directory: tyro.conf.Positional[Path] = Path("runs")) -> int:
    """Every run below a folder, the newest first: recipe, state, last held-out accuracies in percent, date.

    Args:
        directory: where to look, with all folders below.
    """
    if not directory.is_dir():
        raise UserError(f"there is no folder {directory}; `zerozoo runs list DIRECTORY` looks elsewhere")
    rows: list[tuple[float, list[object]]] = []
    for folder in find_runs(directory):
        label = str(folder.relative_to(directory)) if folder != directory else str(folder)
        try:
            rows.append(_list_row(label, Tracked.open(folder)))
        except UserError:
            rows.append((0.0, [label, None, "damaged", None, None, None]))
    if not rows:
        raise UserError(f"there is no run in {directory}; `zerozoo train` makes one")
    rows.sort(key=lambda row: row[0], reverse=True)
    columns = ["run", "recipe|", "state|", "greedy %>", "sampled %>", "changed|"]
    console().print(make_table(columns, [cells for _, cells in rows]))
    return 0


def _list_row(label: str, tracked: Tracked) -> tuple[float, list[object]]:
    when = datetime.fromtimestamp(tracked.changed)
    text = when.strftime("%d %b %H:%M" if when.year == datetime.now().year else "%d %b %Y")
    accuracies = [percent(tracked.final.get(name)) for name in (GREEDY, SAMPLED)]
    state = f"{tracked.steps} {tracked.status}"
    return tracked.changed, [label, tracked.run.recipe, state, *accuracies, text]


def show_run(directory: tyro.conf.Positional[Path]) -> int:
    """One run: what it was, its last metrics, its files.

    Args:
        directory: the run directory.
    """
    tracked = Tracked.open(directory)
    run, out = tracked.run, console()
    history = tracked.history
    out.print(f"{directory}: {run.recipe}, seed {run.seed}, {tracked.status}, steps {tracked.steps}", soft_wrap=True)
    if history:
        spent = sum(tracked_seconds(history).values())
        began = datetime.fromtimestamp(history[0]["time"]).strftime("%Y-%m-%d %H:%M")
        out.print(f"began {began}, {duration(spent)} in training steps and evaluations")
    made = _versions(run.path("versions.json"))
    if made:
        out.print(made, soft_wrap=True)
    out.print()
    out.print(make_table(["config|", "value"], [[name, _text(value)] for name, value in run.config.items()]))
    if history:
        out.print()
        rows = [[name, metric_text(tracked.final, name)] for name in shown_metrics(tracked.final)]
        out.print(make_table(["last value of|", "", "step"], [[*row, _step_of(history, row[0])] for row in rows]))
    out.print()
    out.print(make_table(["file|", "size>"], [[name, size(count)] for name, count in files_of(directory)]))
    return 0


def tracked_seconds(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of all steps and of all evaluations."""
    names = ("seconds/step", "seconds/evaluate")
    return {name: sum(row.get(name) or 0.0 for row in history) for name in names}


def _versions(path: Path) -> str:
    """One line about what the run was made with."""
    try:
        stored = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return ""
    commit = str(stored.get("commit") or "")[:10]
    parts = [f"{name} {stored[name]}" for name in ("zerozoo", "torch", "transformers", "python") if stored.get(name)]
    parts += [f"commit {commit}{' with changes' if stored.get('dirty') else ''}"] if commit else []
    parts += [str(stored["cpu"])] if stored.get("cpu") else []
    return "made with " + ", ".join(parts) if parts else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _step_of(history: Sequence[Mapping[str, Any]], name: str) -> int:
    return next(int(row["step"]) for row in reversed(history) if name in row)


def shown_metrics(final: Mapping[str, object]) -> list[str]:
    """Names of the metrics to show: ends of intervals stand beside their value and have no row of their own."""
    ends = {
        name for name in final if name.endswith(("_low", "_high")) and f"{name.rpartition('_')[0]}_accuracy" in final
    }
    names = [name for name in final if name not in ends]
    return sorted(names, key=lambda name: (not name.startswith("heldout/"), "accuracy" not in name, name))


def metric_text(final: Mapping[str, float | None], name: str) -> str:
    """A value as people read it: accuracies in percent with their interval."""
    value = final.get(name)
    if value is None or not name.endswith("_accuracy"):
        return number(value)
    low, high = (final.get(f"{name.removesuffix('accuracy')}{end}") for end in ("low", "high"))
    if low is None or high is None:
        return f"{percent(value)} %"
    return f"{percent_interval(Interval(value, low, high))} %"


def files_of(directory: Path) -> list[tuple[str, int]]:
    """Files of the run directory and its folders with their sizes in bytes."""
    found = []
    for path in sorted(directory.iterdir()):
        if path.name == LOCK:
            continue
        if path.is_dir():
            count = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            found.append((f"{path.name}/", count))
        else:
            found.append((path.name, path.stat().st_size))
    return found


def compare_runs(directories: tyro.conf.Positional[tuple[Path, ...]]) -> int:
    """Final metrics of several runs side by side, and where their configs differ.

    Accuracies are in percent with the 95 % interval over the held-out problems; it says nothing about other seeds.

    Args:
        directories: two run directories or more.
    """
    runs = open_runs(directories)
    if len(runs) < 2:
        raise UserError("give at least two run directories to compare; `zerozoo runs show` describes one")
    letters, out = [_letter(index) for index in range(len(runs))], console()
    for letter, run in zip(letters, runs, strict=True):
        out.print(f"{letter}  {run.directory}", soft_wrap=True)
    out.print()
    names = list(dict.fromkeys(name for run in runs for name in shown_metrics(run.final)))
    held = [name for name in names if name.startswith("heldout/")]
    rows = [["steps", *(run.steps for run in runs)]]
    for name in [*held, *(name for name in TRAINING if name in names)] if held else names:
        rows.append([name, *(metric_text(run.final, name) for run in runs)])
    rows.append(["time", *(duration(sum(tracked_seconds(run.history).values())) for run in runs)])
    out.print(make_table(["final metric|", *letters], rows))
    differences = config_differences(runs)
    out.print()
    if differences:
        out.print(make_table(["config|", *letters], differences))
    else:
        out.print("The configs are equal.")
    return 0


def open_runs(directories: Sequence[Path]) -> list[Tracked]:
    return [Tracked.open(directory) for directory in directories]


def _letter(index: int) -> str:
    """A, B, ... Z, A2, B2, ..."""
    return chr(ord("A") + index % 26) + (str(index // 26 + 1) if index >= 26 else "")


def label_runs(runs: Sequence[Tracked]) -> list[str]:
    """The last parts of the directories, as many as are needed to tell them apart."""
    parts = [run.directory.absolute().parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-count:]) for part in parts]
        if len(set(labels)) == len({*parts}):
            break
    return labels


def config_differences(runs: Sequence[Tracked]) -> list[list[str]]:
    """Rows (field, value in each run) of the fields that are not the same in all of them; "absent" where missing."""
    stored = [{"recipe": run.run.recipe, "seed": run.run.seed, **run.run.config} for run in runs]
    rows = []
    for field in dict.fromkeys(field for config in stored for field in config):
        values = [_text(config[field]) if field in config else "absent" for config in stored]
        if len(set(values)) > 1:
            rows.append([field, *values])
    return rows


def plot_runs(
    directories: tyro.conf.Positional[tuple[Path, ...]],
    metric: tyro.conf.DisallowNone[str | None] = None,
    output: tyro.conf.DisallowNone[Path | None] = None,
) -> int:
    """Draw curves: all figures of one run, or one metric of several runs in one figure.

    Runs that differ in their seed alone are drawn as one arm.

    Args:
        directories: run directories.
        metric: a name from metrics.jsonl; by default heldout/greedy_accuracy for several runs.
        output: PNG file of a metric's figure; by default named after the metric, in the current folder.
    """
    from zerozoo.runs.figures import arms_figure, training_figures

    runs, out = open_runs(directories), console()
    if not runs:
        raise UserError("give at least one run directory to plot")
    for run in runs:
        if not run.history:
            raise UserError(f"{run.directory} has no metrics yet, so there is nothing to draw")
    if len(runs) == 1 and metric is None and output is None:
        (one,) = runs
        title = f"{one.run.recipe}, seed {one.run.seed}"
        for path in training_figures(one.history, one.run.figures, title):
            out.print(path, soft_wrap=True)
        return 0
    metric = metric or GREEDY
    known = sorted({name for run in runs for name in run.final})
    if metric not in known:
        raise UserError(f"none of these runs has logged {metric!r}; they have: {', '.join(known)}")
    target = output or Path(f"{metric.replace('/', '-')}.png")
    if target.suffix.lower() != ".png":
        raise UserError(f"the figure is a PNG file, so its name must end in .png, not {target.name!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    arms_figure(arms_of(runs), metric, target)
    out.print(target, soft_wrap=True)
    return 0


def arms_of(runs: Sequence[Tracked]) -> dict[str, list[list[dict[str, Any]]]]:
    """Histories by arm: runs of one recipe whose configs differ in the seed alone, named after the first of them."""
    names: dict[str, str] = {}
    arms: dict[str, list[list[dict[str, Any]]]] = {}
    for run, label in zip(runs, label_runs(runs), strict=True):
        config = {name: value for name, value in run.run.config.items() if name != "seed"}
        key = json.dumps([run.run.recipe, config], sort_keys=True)
        arms.setdefault(names.setdefault(key, label), []).append(run.history)
    return arms

"""The quickstart, seed by seed, and TRL's GRPOTrainer on the same task: results/quickstart.json.

    python benchmarks/quickstart.py                      five seeds of `zerozoo train simplerl-zoo --preset laptop`
    python benchmarks/quickstart.py --arms float32 bfloat16       each seed with one, then with the other
    python benchmarks/quickstart.py --level two-digit --steps 150 --output ...    another level, more steps
    python benchmarks/quickstart.py --trl TRL_PYTHON     three seeds of benchmarks/trl_quickstart.py

Arms: with bfloat16 the factors of matrix products are rounded to it (in TRL's part by torch's own switch); sums,
weights and optimiser stay in float32. all-groups is float32 that also computes the groups without a gradient. int8
writes responses and computes gradients in int8; three more arms do one of the two, the last without importance weights.
Rows stand under the name of the system, with "-ARM" behind it.

TRL runs in an environment of its own (benchmarks/constraints-trl.txt). It gets the same weights, prompts, held-out
problems and settings, all taken from the preset, and leaves a metrics.jsonl with zerozoo's names, so that one piece of
arithmetic makes the rows of both. Every seed is a process of its own and its row is written as soon as it has ended.
Both systems compute with the threads that OMP_NUM_THREADS allows. Run it on a machine that does nothing else; the load
before each seed is in its row. One file holds rows of one kind of processor: quickstart-avx2.json is that of another.

What a row holds:
    before_, after_         accuracy on the held-out problems at step 0 and at the last step, greedy and sampled (T = 1)
    intervals               Wilson's 95 % interval of each
    train_seconds           all steps, from the sampling of responses to the changed weights; without evaluations,
                            checkpoints, loading
    seconds_to_050          the same up to the first greedy evaluation of at least 0.50, in step step_to_050; else null
    step_seconds            median over all steps; the first, slow ones are not left out
    curve                   greedy accuracy by step
    sampler_kl              mean over the steps of policy/sampler_kl: what wrote the tokens against the learner, nats
    first_step_seconds      from the start of the process until the first step was written: importing, loading, the
                            first evaluation and the step
    wall_seconds            the whole process, everything included
    peak_rss_mb             largest resident memory of the process, in 10^6 bytes
    load_average            of the machine before the process started: 1, 5 and 15 minutes
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zerozoo.runs.statistics import proportion_interval
from zerozoo.runs.versions import commit, machine

ROOT = Path(__file__).resolve().parents[1]
RECIPE, PRESET = "simplerl-zoo", "laptop"
FLOAT = "float32"
_WHOLE = ("--dtype", FLOAT)  # on every device: "auto" would round on a GPU
ARMS: dict[str, tuple[str, ...]] = {
    FLOAT: _WHOLE,
    "bfloat16": ("--dtype", "bfloat16"),
    "all-groups": (*_WHOLE, "--no-skip-uninformative"),
    "int8": (*_WHOLE, "--precision", "int8"),
    "int8-backward": (*_WHOLE, "--precision", "int8-backward"),
    "int8-rollout": (*_WHOLE, "--precision", "int8-rollout"),
    "int8-rollout-uncorrected": (*_WHOLE, "--precision", "int8-rollout", "--importance-cap", "0"),
}
TARGET = 0.50  # greedy held-out accuracy
SEEDS = {"zerozoo": range(5), "trl": range(3)}
MODES = ("greedy", "sampled")
MAX_RSS_BYTES = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss

# What is the same for both systems and stored with the rows.
SETTINGS = (
    "model",
    "data",
    "level",
    "prompts_per_step",
    "samples_per_prompt",
    "max_new_tokens",
    "stop",
    "temperature",
    "clip_low",
    "clip_high",
    "kl_coefficient",
    "entropy_coefficient",
    "learning_rate",
    "warmup_steps",
    "schedule",
    "weight_decay",
    "max_gradient_norm",
    "updates_per_step",
    "epochs",
    "steps",
    "evaluate_every",
    "advantage",
    "aggregation",
    "overlong",
    "refill_rounds",
    "reward",
)
# trl_quickstart.py is written for these; with others the two would not run the same algorithm.
REQUIRED = {
    "kl_coefficient": 0.0,
    "entropy_coefficient": 0.0,
    "warmup_steps": 0,
    "schedule": "constant",
    "updates_per_step": 1,
    "epochs": 1,
    "advantage": "group-normalised",
    "aggregation": "token-mean",
    "overlong": "keep",
    "refill_rounds": 0,
    "reward": "correctness",
}


@dataclass(frozen=True)
class Cost:
    """What a process took. `load_average` is from before it started.

    `peak_rss_mb` is never below what this script has held itself (about 700), which the system counts for its children.
    """

    wall_seconds: float
    peak_rss_mb: float
    load_average: tuple[float, ...]


def make_row(history: Sequence[Mapping[str, Any]], seed: int, problems: int) -> dict[str, Any]:
    """The numbers of one seed from the rows of its metrics.jsonl.

    Raises ValueError for a run whose first or last step has no held-out accuracy, that is for a run that did not end.
    """
    seconds = [row["seconds/step"] for row in history if "seconds/step" in row]
    measured = [row for row in history if "heldout/greedy_accuracy" in row]
    divergence = [row["policy/sampler_kl"] for row in history if row.get("policy/sampler_kl") is not None]
    ends = {"before": history[0], "after": history[-1]} if history else {}
    if not seconds or any(f"heldout/{mode}_accuracy" not in row for row in ends.values() for mode in MODES):
        raise ValueError(f"seed {seed} has no held-out accuracy of its first and last step: the run did not end")
    accuracies = {f"{when}_{mode}": row[f"heldout/{mode}_accuracy"] for when, row in ends.items() for mode in MODES}
    reached = next((row["step"] for row in measured if row["heldout/greedy_accuracy"] >= TARGET), None)
    return {
        "seed": seed,
        **accuracies,
        "intervals": {name: _interval(accuracy, problems) for name, accuracy in accuracies.items()},
        "heldout": {"problems": problems},
        "steps": len(seconds),
        "train_seconds": sum(seconds),
        "step_seconds": statistics.median(seconds),
        "step_to_050": reached,
        "seconds_to_050": None if reached is None else _seconds_until(history, reached),
        "curve": {str(row["step"]): row["heldout/greedy_accuracy"] for row in measured},
        "sampler_kl": statistics.fmean(divergence) if divergence else None,
    }


def _interval(accuracy: float, problems: int) -> list[float]:
    interval = proportion_interval(round(accuracy * problems), problems)
    return [interval.low, interval.high]


def _seconds_until(history: Sequence[Mapping[str, Any]], step: int) -> float:
    return sum((row.get("seconds/step", 0.0) for row in history if row["step"] <= step), 0.0)


def merged(results: Mapping[str, Any], system: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """`results` with the row of one seed put in or replaced; nothing else changes."""
    others = [other for other in results.get(system, []) if other["seed"] != row["seed"]]
    return {"zerozoo": [], "trl": [], **results, system: sorted([*others, row], key=lambda one: one["seed"])}


def check_settings(results: Mapping[str, Any], settings: Mapping[str, Any], path: Path) -> None:
    """Rows measured with other settings do not belong into one file: exits and names the first difference."""
    stored = results.get("settings", settings)
    for name in settings:
        if stored.get(name) != settings[name]:
            sys.exit(f"error: {path} was measured with {name} {stored.get(name)}, not {settings[name]}: move it away")


def check_machine(results: Mapping[str, Any], here: Mapping[str, Any], path: Path) -> None:
    """One file stands for one kind of processor: exits when its rows come from another one."""
    stored = results.get("machine", here)["cpu"]
    if stored != here["cpu"]:
        sys.exit(f"error: {path} was measured on {stored}, and this is {here['cpu']}: give another --output")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_results(path: Path) -> dict[str, Any]:
    """The results so far; empty when there are none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Replaces the file at once, so that a kill leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    working = path.with_name(path.name + ".new")
    working.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    working.replace(path)


def measure(command: Sequence[str], log: Path) -> Cost:
    """Runs one process to its end with its output in `log`; exits with the last lines of it when the process fails."""
    load = os.getloadavg()
    began = time.perf_counter()
    # No downloads: everything is local, and a look at the hub would be time of neither system.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
        try:
            _, status, usage = os.wait4(process.pid, 0)  # the memory of this process alone, not of earlier ones
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        sys.exit(f"{tail}\nerror: {' '.join(command)} ended with code {process.returncode}; all it wrote: {log}")
    return Cost(time.perf_counter() - began, usage.ru_maxrss * MAX_RSS_BYTES / 1e6, load)


def load_config(steps: int | None, level: str | None = None) -> Any:
    """The quickstart's config, shortened or lengthened when `steps` is given, with the problems of a `level`."""
    from zerozoo.cli.registry import load_recipe

    recipe = load_recipe(RECIPE)
    given = {"steps": steps, "level": level}
    return recipe.module.complete(recipe.make_config({name: value for name, value in given.items() if value}, PRESET))


def export_problems(config: Any, path: Path) -> None:
    """Writes what TRL needs to know: settings, rendered prompts and answers. Exits when it could not do the same."""
    from zerozoo.language.task_choice import load_tasks_for
    from zerozoo.tasks.prompts import render

    for name, value in REQUIRED.items():
        if getattr(config, name) != value:
            sys.exit(f"error: TRL's part does {name} {value} only, and the preset says {getattr(config, name)}")
    tasks = load_tasks_for(config)
    if tasks.extractor != "first-number":
        sys.exit("error: TRL's part takes the first number of a response as the answer")
    if any(len(stop) != 1 for stop in tasks.stop):
        # A text of one character ends a response at the token that holds it, which is what TRL can do.
        sys.exit("error: TRL's part can stop at single characters only")
    parts = {
        part: [{"prompt": render(tasks.template, task.question), "answer": task.answer} for task in chosen]
        for part, chosen in (("train", tasks.train), ("heldout", tasks.heldout))
    }
    path.write_text(json.dumps({"settings": _settings(config), **parts}, indent=1), encoding="utf-8")


def _settings(config: Any) -> dict[str, Any]:
    chosen = {name: value for name, value in asdict(config).items() if name in SETTINGS}
    return dict(json.loads(json.dumps(chosen)))  # tuples as lists, as a results file gives them back


def zerozoo_command(config: Any, seed: int, directory: Path, arm: str = FLOAT) -> list[str]:
    """One seed of the quickstart."""
    train = [sys.executable, "-m", "zerozoo.cli.main", "train", RECIPE, "--preset", PRESET]
    train += ["--level", config.level, "--seed", str(seed), "--steps", str(config.steps)]
    return [*train, "--directory", str(directory), *ARMS[arm]]


def trl_command(
    python: str, config: Any, model: Path, seed: int, directory: Path, rows: int | None = None, dtype: str = FLOAT
) -> list[str]:
    """One seed of TRL's part, whose problems are written beside its directory."""
    problems = directory.with_name("trl-problems.json")
    export_problems(config, problems)
    script = [python, str(ROOT / "benchmarks/trl_quickstart.py"), "--model", str(model), "--problems", str(problems)]
    script += ["--dtype", dtype, *(["--rows", str(rows)] if rows else [])]
    return [*script, "--seed", str(seed), "--directory", str(directory)]


def run_seed(command: Sequence[str], seed: int, directory: Path, problems: int, keep: bool) -> dict[str, Any]:
    """Runs one seed afresh and gives its row. Without `keep` only the weights in its directory are deleted."""
    shutil.rmtree(directory, ignore_errors=True)
    began = time.time()
    cost = measure(command, directory.with_name(directory.name + ".log"))
    made_with = json.loads((directory / "versions.json").read_text(encoding="utf-8"))
    if not keep:
        for weights in ("checkpoints", "model"):
            shutil.rmtree(directory / weights, ignore_errors=True)
    history = read_rows(directory / "metrics.jsonl")
    row = make_row(history, seed, problems)
    row["first_step_seconds"] = next(one["time"] for one in history if one["step"] == 1) - began
    return {**row, **asdict(cost), **commit(), "versions": made_with}


def store(path: Path, system: str, row: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Puts a row into the file; the versions of a system are those of its newest row."""
    row = dict(row)
    made_with = row.pop("versions")
    results = merged(read_results(path), system, row)
    results |= {"machine": machine(), **commit(), "settings": dict(settings)}
    results["versions"] = {**results.get("versions", {}), system: made_with}
    write_results(path, results)


def describe(system: str, row: Mapping[str, Any]) -> str:
    """One line for the watcher."""
    reached = row["seconds_to_050"]
    return (
        f"{system} seed {row['seed']}: greedy {row['before_greedy']:.1%} -> {row['after_greedy']:.1%},"
        f" sampled {row['before_sampled']:.1%} -> {row['after_sampled']:.1%},"
        f" {TARGET:.0%} {'never' if reached is None else f'after {reached:.0f} s'},"
        f" {row['step_seconds']:.2f} s a step, {row['train_seconds']:.0f} s of training,"
        f" {row['peak_rss_mb'] / 1000:.1f} GB, load before {row['load_average'][0]:.1f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", metavar="PYTHON", help="run TRL's part instead, with the Python of its environment")
    parser.add_argument("--trl-rows", type=int, help="completions in one forward pass of TRL; default: all of a step")
    parser.add_argument("--arms", nargs="+", default=[FLOAT], choices=list(ARMS), help="TRL has the first two")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 to 4, for TRL 0 to 2")
    parser.add_argument("--steps", type=int, help="default: those of the preset")
    parser.add_argument("--level", help="default: that of the preset")
    parser.add_argument("--output", type=Path, default=ROOT / "results/quickstart.json")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/bench/quickstart", help="where the runs go")
    parser.add_argument("--keep", action="store_true", help="keep checkpoints and models (about 2 GB a seed)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a killed benchmark ends its process as well
    system = "trl" if options.trl else "zerozoo"
    if options.trl and not {*options.arms} <= {FLOAT, "bfloat16"}:
        sys.exit("error: TRL's part has the arms float32 and bfloat16 only")
    config = load_config(options.steps, options.level)
    settings = _settings(config)
    check_settings(read_results(options.output), settings, options.output)
    check_machine(read_results(options.output), machine(), options.output)
    from zerozoo.language.models import built_in_directory
    from zerozoo.language.task_choice import load_tasks_for

    model = built_in_directory(config.model)  # unpacked before the first seed, so that no seed pays for it
    if model is None:
        sys.exit(f"error: {config.model} is not built in, and TRL's part needs its folder")
    problems = len(load_tasks_for(config).heldout)
    runs = options.runs.resolve()
    runs.mkdir(parents=True, exist_ok=True)
    for seed, arm in itertools.product(options.seeds or SEEDS[system], options.arms):
        name = system if arm == FLOAT else f"{system}-{arm}"
        directory = runs / f"{name}-seed-{seed}"
        if options.trl:
            command = trl_command(options.trl, config, model, seed, directory, options.trl_rows, arm)
        else:
            command = zerozoo_command(config, seed, directory, arm)
        row = run_seed(command, seed, directory, problems, options.keep)
        store(options.output, name, row, settings)
        print(describe(name, row), flush=True)


if __name__ == "__main__":
    main()

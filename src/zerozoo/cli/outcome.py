"""What is printed when a run has ended: before and after, figures, samples, where the model is, what to try next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zerozoo.cli.registry import Recipe
from zerozoo.language.profile import Phase, phase_table, read_machine
from zerozoo.runs.figures import training_figures
from zerozoo.runs.run import Run

SAMPLES_SHOWN = 10
ROWS = (
    ("accuracy", "{:.1%}"),
    ("length", "{:.1f} tokens"),
    ("stopped_length", "{:.1f} tokens"),
    ("clip_ratio", "{:.1%}"),
    ("box_ratio", "{:.1%}"),
    ("repeat_ratio", "{:.1%}"),
)
RETURNS = (
    ("evaluation/return", "return", "{:.1f}"),
    ("evaluation/score", "normalised score", "{:.1f}"),
    ("evaluation/success", "successful episodes", "{:.0%}"),
    ("evaluation/length", "length", "{:.0f} steps"),
)


def show_outcome(console: Console, recipe: Recipe, run: Run) -> None:
    """Print the end of a run and draw its figures."""
    history = run.history()
    evaluated = [row for row in history if "evaluation/return" in row]
    if evaluated:
        console.print(returns_table(evaluated))
    scored = [row for row in history if "heldout/sampled_accuracy" in row]
    if scored:
        console.print(before_after(scored[0], scored[-1]))
    rows = [row for row in run.samples() if row.get("phase") == "heldout-greedy"]
    if rows and scored:
        console.print(sample_table(rows, scored[0]["step"], scored[-1]["step"]))
    figures = training_figures(history, run.figures, f"{recipe.slug}, seed {run.seed}")
    trained = sum(row.get("seconds/step") or row.get("seconds/train") or 0.0 for row in history)
    if trained:
        console.print(
            f"Training took {trained:.0f} s in {history[-1]['step']} steps, evaluation apart.", highlight=False
        )
    machine = read_machine(run)
    if machine is not None:
        console.print(profile_table(phase_table(history, machine), machine))
    console.print(f"Figures: {', '.join(str(path) for path in figures)}", highlight=False, soft_wrap=True)
    where, language = shlex.quote(str(run.directory)), bool(scored)
    if language:
        console.print(f"Model:   {run.path('model')} (Hugging Face format)", highlight=False, soft_wrap=True)
    next_commands = [f"zerozoo evaluate {where} --suite heldout --samples 8"] if language else []
    if "steps" in recipe.extendable:
        longer = 2 * history[-1]["step"]
        next_commands.append(f"zerozoo train {recipe.slug} --resume {where} --steps {longer}")
    if next_commands:
        console.print("Next:", highlight=False)
    for command in next_commands:
        console.print(f"  {command}", highlight=False, soft_wrap=True)


def returns_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What episodes earn at the first, the best and the last evaluation; the last one is the result, not the best."""
    best = max(rows, key=lambda row: row["evaluation/return"] if row["evaluation/return"] is not None else -math.inf)
    table = Table(title="Evaluation, in the environment's own rewards", title_justify="left")
    table.add_column("")
    for when, row in (("first", rows[0]), ("best", best), ("last", rows[-1])):
        table.add_column(f"{when}: step {row['step']}", justify="right")
    for name, label, text in RETURNS:
        if any(row.get(name) is not None for row in rows):
            cells = [_with_interval(row, name, text) for row in (rows[0], best, rows[-1])]
            table.add_row(label, *cells)
    return table


def _with_interval(row: Mapping[str, Any], name: str, text: str) -> str:
    value = row.get(name)
    if value is None:
        return "-"
    low, high = row.get("evaluation/low"), row.get("evaluation/high")
    interval = f" ({low:.1f} to {high:.1f})" if name == "evaluation/return" and None not in (low, high) else ""
    return text.format(value) + interval


def before_after(before: dict[str, Any], after: dict[str, Any]) -> Table:
    """Held-out metrics at the first and the last step, greedy and sampled, accuracy with its 95 % interval."""
    table = Table(title="Held-out problems, never trained on", title_justify="left")
    table.add_column("")
    for column in (f"step {before['step']}", f"step {after['step']}"):
        table.add_column(column, justify="right")
    for mode in ("greedy", "sampled"):
        for name, text in ROWS:
            key = f"heldout/{mode}_{name}"
            if key not in before and key not in after:
                continue
            cells = []
            for row in (before, after):
                value = row.get(key)
                cell = "-" if value is None else text.format(value)
                if name == "accuracy" and value is not None:
                    low, high = row[f"heldout/{mode}_low"], row[f"heldout/{mode}_high"]
                    cell = f"{cell} ({100 * low:.1f} to {100 * high:.1f})"
                cells.append(cell)
            table.add_row(f"{name.replace('_', ' ')}, {mode}", *cells)
    return table


def profile_table(phases: Sequence[Phase], machine: Mapping[str, Any]) -> Table:
    """Where the time of a step goes, and how near the phases come to the speed of a plain matrix product."""
    rate = machine["matrix_gflops"]
    table = Table(
        title=f"Where the time goes, medians over the steps; a matrix product runs at {rate:.0f} GFLOP/s here",
        title_justify="left",
    )
    table.add_column("phase")
    for column in ("seconds", "share", "tokens / s", "useful", "GFLOP/s", "of the product", "peak memory"):
        table.add_column(column, justify="right")
    whole = sum(phase.seconds for phase in phases if phase.name != "evaluate")
    for phase in phases:
        table.add_row(
            phase.name,
            f"{phase.seconds:.2f}",
            f"{phase.seconds / whole:.0%}" if phase.name != "evaluate" and whole else "apart",
            "" if phase.tokens is None else f"{phase.tokens / phase.seconds:.0f}",
            "" if phase.useful is None else f"{phase.useful:.0%}",
            "" if phase.gflops is None else f"{phase.gflops:.0f}",
            "" if phase.gflops is None else f"{phase.gflops / rate:.0%}",
            "" if phase.peak_mb is None else f"{phase.peak_mb / 1000:.2f} GB",
        )
    return table


def sample_table(rows: list[dict[str, Any]], first: int, last: int) -> Table:
    """The greedy answers to the same held-out problems, before and after."""
    before = {row["task"]: row for row in rows if row["step"] == first}
    after = {row["task"]: row for row in rows if row["step"] == last}
    table = Table(title="Ten held-out problems, answered greedily", title_justify="left")
    for column in ("question", "gold", f"step {first}", f"step {last}"):
        table.add_column(column, overflow="fold")
    for task in [task for task in before if task in after][:SAMPLES_SHOWN]:
        row = before[task]
        table.add_row(escape(row["question"]), escape(row["gold"]), _answer(row), _answer(after[task]))
    return table


def _answer(row: dict[str, Any]) -> str:
    """A response on one line, coloured by its verdict; control characters of model text are shown, not obeyed."""
    text = repr(row["response"])[1:-1]
    text = text if len(text) <= 60 else text[:57] + "..."
    colour = "green" if row["verdict"] == "right" else "red"
    return f"[{colour}]{escape(text)}[/{colour}]"

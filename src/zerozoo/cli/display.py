"""What a person sees while a run trains: progress, metrics and the last samples; plain lines outside a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from zerozoo.cli.tables import STYLES

WATCHED = (
    ("reward", "reward", "{:.2f}"),
    ("heldout/greedy_accuracy", "held-out", "{:.1%}"),
    ("response/length", "length", "{:.1f}"),
    ("response/clip_ratio", "clipped", "{:.0%}"),
    ("groups/informative", "informative", "{:.0%}"),
    ("preference/margin", "margin", "{:.2f}"),
    ("seconds/step", "step", "{:.1f} s"),
    ("episode/return", "return while exploring", "{:.1f}"),
    ("evaluation/return", "return", "{:.1f}"),
    ("evaluation/success", "success", "{:.0%}"),
    ("updates_per_second", "updates/s", "{:.0f}"),
)


SAMPLES = 3  # shown at a time
WIDTH = 60  # characters of a question or a response that are shown


class TrainingDisplay:
    """A metrics sink that shows the numbers that matter. Use as a context manager.

    Args:
        console: where to write; a live view when it is a terminal, one line a step when it is not.
        steps: steps of the run; 0 when it counts in something else.
    """

    def __init__(self, console: Console, steps: int) -> None:
        self.console, self.steps = console, steps
        self.latest: dict[str, float] = {}
        self.samples: list[Mapping[str, Any]] = []
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("\n{task.fields[numbers]}"),
        )
        self.task = self.progress.add_task("training", total=steps or None, numbers="loading ...")
        self.live = Live(get_renderable=self._view, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> TrainingDisplay:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, text: str) -> None:
        """One line that stays on the screen."""
        self.console.print(text, highlight=False)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.latest |= metrics
        numbers = self.numbers()
        self.progress.update(self.task, completed=step, numbers=numbers)
        if not self.console.is_terminal:
            of = f"/{self.steps}" if self.steps else ""
            self.console.print(f"step {step}{of}  {numbers}", highlight=False, soft_wrap=True)

    def show(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the last of the responses that have been logged, for the live view; rows of another kind are left."""
        self.samples = [row for row in rows if "response" in row][-SAMPLES:] or self.samples

    def numbers(self) -> str:
        """The watched metrics known so far, on one line."""
        known = [f"{label} {text.format(self.latest[name])}" for name, label, text in WATCHED if name in self.latest]
        return "  ".join(known)

    def close(self) -> None:
        self.live.stop()

    def _view(self) -> Group:
        return Group(self.progress, *([sample_table(self.samples)] if self.samples else []))


def sample_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Question, response and verdict, one line each; what a model wrote is text and moves no cursor."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in rows:
        verdict = str(row.get("verdict", ""))
        style = {"right": STYLES["ok"], "wrong": STYLES["fail"]}.get(verdict, "")
        question, response = (_one_line(str(row.get(name, ""))) for name in ("question", "response"))
        table.add_row(Text(question, style="dim"), Text(response), Text(verdict, style=style))
    return table


def _one_line(text: str) -> str:
    visible = "".join(letter if letter.isprintable() else " " for letter in text)
    words = " ".join(visible.split())
    return words if len(words) <= WIDTH else words[: WIDTH - 1] + "\u2026"

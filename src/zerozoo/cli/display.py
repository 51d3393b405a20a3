"""What a person sees while a run trains: one progress bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

WATCHED = (
    ("reward", "reward", "{:.2f}"),
    ("heldout/greedy_accuracy", "held-out", "{:.1%}"),
    ("response/length", "length", "{:.1f}"),
    ("response/clip_ratio", "clipped", "{:.0%}"),
    ("groups/informative", "informative", "{:.0%}"),
    ("seconds/step", "step", "{:.1f} s"),
    ("episode/return", "return while exploring", "{:.1f}"),
    ("evaluation/return", "return", "{:.1f}"),
    ("evaluation/success", "success", "{:.0%}"),
    ("updates_per_second", "updates/s", "{:.0f}"),
)


class TrainingDisplay:
    """A metrics sink that shows the numbers that matter. Use as a context manager.

    Args:
        console: where to write; a bar when it is a terminal, one line a step when it is not.
        steps: steps of the run.
    """

    def __init__(self, console: Console, steps: int) -> None:
        self.console, self.steps = console, steps
        self.latest: dict[str, float] = {}
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("\n{task.fields[numbers]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("training", total=steps, numbers="loading ...")

    def __enter__(self) -> TrainingDisplay:
        self.progress.start()
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
            self.console.print(f"step {step}/{self.steps}  {numbers}", highlight=False, soft_wrap=True)

    def numbers(self) -> str:
        """The watched metrics known so far, on one line."""
        known = [f"{label} {text.format(self.latest[name])}" for name, label, text in WATCHED if name in self.latest]
        return "  ".join(known)

    def close(self) -> None:
        self.progress.stop()

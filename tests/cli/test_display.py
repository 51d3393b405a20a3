"""The view of a running training: plain lines in a file, progress and samples in a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from zerozoo.cli.display import SAMPLES, TrainingDisplay

ROWS = [
    {"question": f"What is {number} + 1?", "response": f" {number + 1}\n", "verdict": verdict}
    for number, verdict in enumerate(["right", "wrong", "right", "wrong", "unscorable"])
]


def written(display: TrainingDisplay) -> str:
    """The live view as plain text."""
    target = io.StringIO()
    Console(file=target, width=160, color_system=None).print(display._view())
    return target.getvalue()


def test_outside_a_terminal_every_step_is_one_line_and_samples_are_not_shown():
    target = io.StringIO()
    with TrainingDisplay(Console(file=target, width=40), steps=7) as display:
        display.log(1, {"reward": 0.25, "seconds/step": 1.26, "unwatched": 3.0})
        display.show(ROWS)
        display.log(2, {"response/length": 4.0})
    assert target.getvalue().splitlines() == [
        "step 1/7  reward 0.25  step 1.3 s",
        "step 2/7  reward 0.25  length 4.0  step 1.3 s",
    ]


def test_a_run_that_counts_in_epochs_names_no_total():
    target = io.StringIO()
    with TrainingDisplay(Console(file=target), steps=0) as display:
        display.log(36, {"loss": 0.5, "preference/margin": 1.234})  # the loss is no headline (trap 28)
    assert target.getvalue() == "step 36  margin 1.23\n"


def test_in_a_terminal_the_last_samples_stand_below_the_progress():
    display = TrainingDisplay(Console(file=io.StringIO(), force_terminal=True), steps=7)
    display.log(3, {"reward": 0.5})
    assert "3/7" in written(display)
    display.show(ROWS)
    display.show([{"episode": 1, "return": 3.0}])  # of a control run: nothing to read
    lines = written(display).splitlines()[-SAMPLES:]
    assert [line.split() for line in lines] == [
        ["What", "is", "2", "+", "1?", "3", "right"],
        ["What", "is", "3", "+", "1?", "4", "wrong"],
        ["What", "is", "4", "+", "1?", "5", "unscorable"],
    ]


def test_what_a_model_wrote_moves_no_cursor_and_fills_no_screen():
    display = TrainingDisplay(Console(file=io.StringIO(), force_terminal=True), steps=7)
    display.show([{"question": "q", "response": "\x1b[2J\x07[red]" + "a" * 500, "verdict": "wrong"}])
    (line,) = [line for line in written(display).splitlines() if "wrong" in line]
    assert "\x1b" not in line
    assert "\x07" not in line
    assert "[2J [red]aaa" in line
    assert "\u2026" in line
    assert len(line.strip()) < 100


def test_the_terminal_is_left_as_it_was():
    target = io.StringIO()
    with TrainingDisplay(Console(file=target, force_terminal=True, width=100), steps=2) as display:
        display.say("Run directory: runs/x")
        display.log(2, {"reward": 1.0})
    text = target.getvalue()
    assert "Run directory: runs/x" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor comes back

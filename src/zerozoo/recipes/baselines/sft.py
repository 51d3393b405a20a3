"""Supervised fine-tuning (SFT): make given responses more likely, token by token.

The plainest way to teach a model how to answer, and the stage before most preference and RL methods. The loss is the
cross-entropy of the response tokens; the prompt is read and not learned, the end of the response is learned once.

Examples come from a JSONL file, or are the problems of a task set with their right answers.

What differs from Tulu 3, whose settings the defaults are: the loss is a mean over the response tokens of the whole
batch (Tulu 3 sums them), and examples that are too long are left out and not cut.

What is not reproduced: the 940,000 examples of Tulu 3's mixture and its models of 8B and more.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.language.example_files import Row, read_examples
from zerozoo.language.fine_tuning import FineTuning, solved_tasks
from zerozoo.language.tuning import LAPTOP, SMOKE, TINY, TuningConfig, describe_tuning, open_bench
from zerozoo.runs.run import Run

PAPER = (
    "Finetuned Language Models Are Zero-Shot Learners (2021), arXiv 2109.01652; settings of Tulu 3, arXiv 2411.15124"
)


@dataclass(frozen=True)
class Config(TuningConfig):
    """Fields carry the settings of Tulu 3's SFT stage."""

    style: str = "plain"  # of made responses: plain (the answer), and for word-sums also sentence, boxed, steps
    batch_size: int = 128  # examples of a gradient step
    epochs: int = 2  # passes over the examples
    learning_rate: float = 5e-6  # of AdamW
    warmup: float = 0.03  # share of the steps in which it rises from 0


EXTENDABLE = ("checkpoint_every",)
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**LAPTOP, "learning_rate": 2e-5, "epochs": 3},
    "tiny": {**TINY, "style": "steps", "learning_rate": 1e-3},
    "smoke": {**SMOKE, "style": "steps", "learning_rate": 1e-3},
}
plan = describe_tuning


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to the last step, resuming where the run directory stands; the newest value of every metric."""
    with open_bench(config, run) as bench:

        def make() -> list[Row]:
            tasks = bench.tasks()
            return solved_tasks(tasks.train, bench.policy, tasks.template, config.style, config.seed)

        parts = bench.examples(("prompt", "response"), make, read_examples)
        return bench.fit(*(FineTuning(bench.scorer, part) for part in parts))

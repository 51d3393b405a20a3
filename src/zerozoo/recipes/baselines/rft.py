"""Rejection-sampling fine-tuning (RFT): sample answers, keep the right ones, learn them.

The model writes several responses to every problem, a verifier says which are right, and the distinct right ones become
examples for supervised fine-tuning. One round of it is also the first step of ReST and of expert iteration.

What differs from the paper: the model that samples is also the one that is fine-tuned (the paper samples from a
fine-tuned model and trains the pretrained one); the gold solutions are not added; responses are the same solution when
they spell the same apart from blanks (the paper compares lists of equations); right responses that were cut off at the
length limit are left out. The sampled examples are kept in the run directory, so a resumed run learns from the same.

What is not reproduced: the paper's LLaMA models and its pool of samples of several models.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.language.example_files import Row, read_examples
from zerozoo.language.fine_tuning import FineTuning, right_answers
from zerozoo.language.tuning import LAPTOP, SMOKE, TINY, SamplingConfig, describe_tuning, open_bench
from zerozoo.runs.run import Run

PAPER = "Scaling Relationship on Learning Mathematical Reasoning with Large Language Models (2023), arXiv 2308.01825"


@dataclass(frozen=True)
class Config(SamplingConfig):
    """Samples and temperature are the paper's, the optimiser's settings are those of our SFT."""

    samples_per_prompt: int = 100  # responses to each problem
    temperature: float = 0.7  # of sampling
    most_per_problem: int = 0  # right responses kept of each problem; 0: all distinct ones
    batch_size: int = 128  # examples of a gradient step
    epochs: int = 3  # passes over the examples
    learning_rate: float = 5e-6  # of AdamW
    warmup: float = 0.03  # share of the steps in which it rises from 0


EXTENDABLE = ("checkpoint_every",)
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**LAPTOP, "samples_per_prompt": 4, "temperature": 1.0, "learning_rate": 2e-5, "epochs": 2},
    "tiny": {**TINY, "samples_per_prompt": 4, "temperature": 1.0, "learning_rate": 3e-4, "epochs": 1},
    "smoke": {**SMOKE, "samples_per_prompt": 4, "temperature": 1.0, "problems": 20, "learning_rate": 3e-4},
}
plan = describe_tuning


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to the last step, resuming where the run directory stands; the newest value of every metric."""
    with open_bench(config, run) as bench:

        def make() -> list[Row]:
            rows = right_answers(bench.draw(), config.most_per_problem)
            run.say(f"They hold {len(rows)} distinct right answers.")
            return rows

        parts = bench.examples(("prompt", "response"), make, read_examples)
        return bench.fit(*(FineTuning(bench.scorer, part) for part in parts))

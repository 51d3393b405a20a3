"""KTO: learn from single responses with a thumb up or down; no pairs are needed.

A desirable response gains by standing above a reference point, an undesirable one by standing below it, and both gains
level off, as in prospect theory. The reference point is an estimate of the KL between policy and reference, from
responses set to other prompts.

Examples come from a JSONL file, or are the responses that the untrained policy draws: right ones are desirable, wrong
ones are not.

What differs from the paper: the response that is set to another prompt is drawn once for every example and not taken
from the neighbour in the batch, so that its log-prob under the reference is computed once; the weights balance the two
kinds unless both are given (the authors keep w_D n_D / (w_U n_U) between 1 and 4/3); learning rate and batch are common
ones, beta is the authors'.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.language.preference_data import JUDGED_COLUMNS, Judged, judged_from_rollouts, read_judged
from zerozoo.language.preference_loop import UnpairedPreferences, balanced_weights, with_mismatched
from zerozoo.language.scoring import kept_logprobs
from zerozoo.language.tuning import LAPTOP, SMOKE, TINY, SamplingConfig, describe_tuning, open_bench
from zerozoo.runs.run import Run

PAPER = "KTO: Model Alignment as Prospect Theoretic Optimization (2024), arXiv 2402.01306"


@dataclass(frozen=True)
class Config(SamplingConfig):
    """The paper's beta and common settings."""

    beta: float = 0.1  # how much the reference holds the policy, in 1/nat
    desirable_weight: float = 1.0  # of right or good responses
    undesirable_weight: float = 0.0  # of the others; 0: both kinds weigh the same over all examples
    batch_size: int = 64  # responses of a gradient step; the reference point is noisy in small batches
    learning_rate: float = 5e-6  # of AdamW
    schedule: str = "constant"  # after the warm-up; or linear or cosine, down to 0


EXTENDABLE = ("checkpoint_every",)
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**LAPTOP, "samples_per_prompt": 4, "batch_size": 64, "learning_rate": 1e-5},
    "tiny": {**TINY, "samples_per_prompt": 4, "batch_size": 64, "learning_rate": 1e-4},
    "smoke": {**SMOKE, "samples_per_prompt": 4, "problems": 20, "learning_rate": 1e-4},
}
plan = describe_tuning


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to the last step, resuming where the run directory stands; the newest value of every metric."""
    with open_bench(config, run) as bench:
        learned, measured = bench.examples(JUDGED_COLUMNS, lambda: judged_from_rollouts(bench.draw()), read_judged)
        weights = balanced_weights(learned, config.desirable_weight, config.undesirable_weight)

        def objective(name: str, judged: list[Judged]) -> UnpairedPreferences:
            rows = with_mismatched(judged, [*learned, *measured], config.seed)
            reference = kept_logprobs(run, name, bench.scorer, rows)
            return UnpairedPreferences(bench.scorer, judged, rows, reference, config.beta, weights)

        return bench.fit(objective("reference", learned), objective("reference-heldout", measured))

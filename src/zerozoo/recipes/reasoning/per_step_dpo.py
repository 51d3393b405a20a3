"""Per-step DPO: a wrong solution teaches at the step where it got lost, and nowhere else.

Setlur et al. 2024. A model fine-tuned on worked solutions samples its own, right and wrong. Completing the prefixes of
a wrong one many times shows the step after which the right answer is out of reach: its first pit. DPO then prefers a
good step to the pit, both behind the same first steps, and so gives credit to single steps without any reward model.

    Q(y_1:i) = P[ a completion of y_1:i is right ],  by sampling; one trial is the best of K completions
    pit        the first step of a wrong trace with the lowest Q;  advantage A_i = Q_i - Q_(i-1)
    L        = - mean log sigma( beta ( log pi/ref(good step | x, y_1:c-1) - log pi/ref(y_c | x, y_1:c-1) ) )

Stages: fine-tuning on worked solutions; traces, from which examples or pairs are made; learning from these. `method`
chooses what is learned: `per-step`, or one of the baselines `sft` (nothing more), `rft` (own right traces) and `dpo`
(right against wrong whole traces).

What differs from the paper, and why: the good step is the first step of a completion that turned out right (the form
that the theory covers; other descriptions prefer a whole solution to the prefix with the pit); prefixes behind the
first one with Q = 0 are not completed, which changes no pit; equal prefixes are completed once; every method goes on
from the fine-tuned model, RFT as well. Learning rates, beta and the number of trials are ours: the paper's are not
known. Worked chains of sums have an idle line in three of ten, in place of the spurious steps of GPT-4's solutions.

Not reproduced: the problems and solutions written by GPT-4 and Gemini, DeepSeek-Math-7B and Llama-2-7B, scaling curves
over many sizes of data, a second round. The file is longer than 200 lines because it holds the three rivals as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zerozoo.language.algorithm import choose
from zerozoo.language.device import set_up_machine
from zerozoo.language.example_files import KEPT, Row, kept_rows
from zerozoo.language.fine_tuning import right_answers
from zerozoo.language.parallel import join_ranks
from zerozoo.language.preference_data import pairs_from_rollouts
from zerozoo.language.preference_loop import dpo_loss
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.stages import Outputs, Stage, run_stages
from zerozoo.language.staging import fine_tune, model_of, model_output
from zerozoo.language.step_audit import audit_samples
from zerozoo.language.step_pairs import per_step_pairs
from zerozoo.language.step_values import StepSplitter, StepValues
from zerozoo.language.task_choice import load_tasks_for
from zerozoo.language.tuning import LAPTOP, SMOKE, TINY, Bench, PairConfig, describe_tuning, fit_pairs, open_bench
from zerozoo.language.worked_sums import worked_sums
from zerozoo.rewards.verifier import Verdict
from zerozoo.runs.claims import Claim, all_of, at_least, difference_claim
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.runs.streams import Streams
from zerozoo.tasks.splits import hash_order

PAPER = (
    "RL on Incorrect Synthetic Data Scales the Efficiency of LLM Math Reasoning by Eight-Fold (2024), arXiv 2406.14532"
)
METHODS = ("sft", "rft", "dpo", "per-step")


@dataclass(frozen=True)
class Config(PairConfig):
    """Traces, K and the rule of the pit are the paper's; the other numbers are ours."""

    method: str = "per-step"  # or a baseline: sft, rft, dpo (whole responses)
    sft_problems: int = 0  # training problems whose worked solutions are learned first; 0: all
    problems: int = 0  # training problems of the traces; 0: all
    distractors: float = 0.3  # share of made solutions of word sums with an idle step; `examples` has others
    sft_epochs: int = 3  # passes over the worked solutions; of RFT, over the model's own right traces
    sft_learning_rate: float = 1e-5  # of AdamW, of fine-tuning and RFT
    samples_per_prompt: int = 8  # traces of each problem
    trials: int = 5  # completions of each prefix, each the best of best_of
    best_of: int = 5  # K of the policy that completes
    steps_by: str = "lines"  # where a step ends: lines, sentences, numbered
    pairs_per_problem: int = 0  # most pairs that one problem gives; 0: all
    beta: float = 0.1  # how much the reference holds the policy, in 1/nat
    learning_rate: float = 1e-6  # of AdamW, of DPO


EXTENDABLE = ("checkpoint_every",)
_CHAIN = {"data": "word-sums", "split": "chain", "best_of": 1}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**LAPTOP, **_CHAIN, "stop": (), "max_new_tokens": 64, "max_prompt_tokens": 96, "problems": 200}
    | {"sft_epochs": 1, "sft_learning_rate": 2e-5, "samples_per_prompt": 4, "learning_rate": 1e-5},
    "tiny": {**TINY, **_CHAIN, "model": "tiny-base-micro", "heldout_size": 500, "tokens_per_microbatch": 4096}
    | {"sft_epochs": 5, "sft_learning_rate": 5e-3, "samples_per_prompt": 4, "learning_rate": 2e-4}
    | {"evaluate_every": 1000},
    "paper": {"model": "deepseek-ai/deepseek-math-7b-base", "data": "math", "examples": "solutions.jsonl"},
    "smoke": {**SMOKE, **_CHAIN, "split": "easy", "sft_learning_rate": 1e-3, "learning_rate": 1e-4, "problems": 24}
    | {"samples_per_prompt": 4, "trials": 2},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run all stages, resuming where the run directory stands; the last stage's metrics, and those of the traces."""
    _check(config)
    stages = [Stage("sft", lambda part, before: _fine_tune(config, part))]
    if config.method != "sft":
        stages.append(Stage("traces", lambda part, before: _trace(config, part, before)))
        stages.append(Stage("learn", lambda part, before: _learn(config, part, before)))
    machine = set_up_machine(config)
    outputs = run_stages(run, stages, join_ranks(machine.device))
    return {name: value for stage in outputs.values() for name, value in stage.metrics.items()}


def _fine_tune(config: Config, run: Run) -> Outputs:
    def make(bench: Bench) -> list[Row]:
        tasks = bench.tasks()
        chosen = hash_order(tasks.train, config.seed)[: config.sft_problems or None]
        return worked_sums(chosen, bench.policy, tasks.template, config.distractors, config.seed)

    rate = replace(config, learning_rate=config.sft_learning_rate, epochs=config.sft_epochs)
    return _audited(fine_tune(rate, run, make), config, run)


def _trace(config: Config, run: Run, before: Mapping[str, Outputs]) -> Outputs:
    """Traces of the fine-tuned model, and what is learned from them."""
    start = replace(config, model=model_of(before, "sft", otherwise=config.model), examples="")
    with open_bench(start, run) as bench:
        drawn = bench.draw()
        metrics = {
            "traces/number": float(len(drawn)),
            "traces/right": float(drawn.rewards.mean()),
            "traces/length": float(drawn.samples.lengths.float().mean()),
            "traces/tokens": float(drawn.samples.lengths.sum()),
        }

        def make() -> Sequence[Row]:
            if config.method == "rft":
                return right_answers(drawn)
            if config.method == "dpo":
                return pairs_from_rollouts(drawn, config.pairs_per_problem, config.seed)
            rows, found = _step_pairs(config, bench, drawn)
            metrics.update(found)
            return rows

        rows = make()
        run.say(f"The traces make {len(rows)} examples for {config.method}.")
        kept_rows(run, lambda: rows, ("prompt",), bench.ranks)
    return Outputs({"examples": run.path(KEPT)}, {**metrics, "traces/examples": float(len(rows))})


def _step_pairs(config: Config, bench: Bench, drawn: Rollouts) -> tuple[list[Row], dict[str, float]]:
    assert bench.verifier is not None
    splitter = StepSplitter(bench.policy, bench.tasks().stop, config.steps_by)
    generator = Streams(config.seed).torch("completions")
    values = StepValues(
        bench.policy,
        bench.sampler,
        bench.verifier,
        splitter,
        bench.decoding(),
        config.trials,
        generator,
        config.best_of,
    )
    values.learn_of(drawn)
    verdicts = [one.verdict for one in drawn.verifications]
    wrong = [splitter.trace(drawn, row) for row, verdict in enumerate(verdicts) if verdict is Verdict.WRONG]
    pairs = per_step_pairs(wrong, values, config.pairs_per_problem)
    lengths = [len(trace.spans) for trace in wrong]
    return pairs.rows, {
        **pairs.metrics,
        "traces/wrong_steps": sum(lengths) / max(len(lengths), 1),
        "completions/number": float(values.drawn),
        "completions/tokens": float(values.tokens),
    }


def _learn(config: Config, run: Run, before: Mapping[str, Outputs]) -> Outputs:
    start = replace(
        config, model=model_of(before, "sft", otherwise=config.model), examples=str(before["traces"].files["examples"])
    )
    if config.method == "rft":
        rate = replace(start, learning_rate=config.sft_learning_rate, epochs=config.sft_epochs)
        return _audited(fine_tune(rate, run, lambda bench: []), config, run)
    with open_bench(start, run) as bench:
        metrics = fit_pairs(bench, dpo_loss(config.beta))
    return _audited(model_output(run.directory, metrics), config, run)


def _audited(outputs: Outputs, config: Config, run: Run) -> Outputs:
    """With what the oracle says of the steps of the held-out responses, where there is one."""
    found = audit_samples(run, load_tasks_for(config).heldout, "greedy", config.steps_by)
    return replace(outputs, metrics={**outputs.metrics, **found})


def plan(config: Config) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    _check(config)
    learned = {"sft": "nothing more", "rft": "own right traces", "dpo": "right against wrong traces"}
    words = f"a good step against the pit, by {config.trials} trials of the best of {config.best_of}"
    return [*describe_tuning(config), ("learns then", learned.get(config.method, words))]


def _check(config: Config) -> None:
    choose("method", config.method, METHODS)
    if not 0 <= config.distractors <= 1:
        raise UserError(f"distractors is {config.distractors}, but is a share, between 0 and 1.")
    for name, least in {"trials": 1, "best_of": 1, "sft_epochs": 1, "sft_problems": 0, "sft_learning_rate": 0}.items():
        if not getattr(config, name) >= least:
            raise UserError(f"{name} is {getattr(config, name)}, but must be at least {least}.")


_ARMS = {method: {"method": method} for method in METHODS}
_HOLDS = all_of(
    difference_claim("per-step", "rft", threshold=0.02),
    difference_claim("per-step", "dpo"),
    difference_claim("sft", "dpo", threshold=-0.01),
    at_least("per-step", 0.6, metric="pits/found"),
)
_STATEMENT = (
    "Pairs of single steps beat both DPO on whole responses and RFT at an equal number of sampled traces"
    " to {} problems, and show where traces went wrong."
)
CLAIM = (
    Claim(
        statement=_STATEMENT.format(250),
        # The last arm draws traces in place of the completions of per-step; it is shown and not judged.
        arms={**_ARMS, "rft-tokens": {"method": "rft", "samples_per_prompt": 16}},
        metric="heldout/greedy_accuracy",
        holds=_HOLDS,
        seeds=(0, 1, 2),
        budget="15 trainings of a model of 0.1M parameters on one core",
        base={**PRESETS["tiny"], "problems": 250},
        smoke=PRESETS["smoke"],
    ),
    Claim(
        statement=_STATEMENT.format(1000),
        arms=_ARMS,
        metric="heldout/greedy_accuracy",
        holds=_HOLDS,
        seeds=(0, 1, 2),
        budget="12 trainings of a model of 0.1M parameters on one core",
        base={**PRESETS["tiny"], "problems": 1000},
        smoke=PRESETS["smoke"],
        name="1000-problems",
    ),
)

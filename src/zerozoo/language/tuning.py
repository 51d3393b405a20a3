"""Fields and parts that the recipes share which learn from written examples: SFT, RFT, DPO, IPO, KTO.

A recipe's Config derives from one of the two classes here and gives its own defaults; `open_bench` makes the parts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from zerozoo.language.build import make_optimizer, make_sampler, open_policy, open_verifier, prompt_maker, save_policy
from zerozoo.language.device import Machine, set_up_machine
from zerozoo.language.evaluation import evaluate_tasks
from zerozoo.language.example_files import Row, kept_rows, prompt_text, read_rows, split_off
from zerozoo.language.heldout import Heldout
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import Ranks, join_ranks
from zerozoo.language.preference_data import PAIR_COLUMNS, chosen_first, pairs_from_rollouts, read_pairs
from zerozoo.language.preference_loop import PairLoss, PairPreferences
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import Decoding, Sampler
from zerozoo.language.scoring import Scorer, kept_logprobs
from zerozoo.language.supervised import Evaluate, Objective, SupervisedLoop, SupervisedSettings, measure
from zerozoo.language.task_choice import AUTO, fit_tasks, load_tasks_for
from zerozoo.rewards.verifier import Verifier
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.runs.streams import Streams
from zerozoo.tasks.splits import hash_order
from zerozoo.tasks.task import TaskSet


@dataclass(frozen=True)
class TuningConfig:
    """Learning from written examples."""

    seed: int = 0  # of everything random
    model: str = "Qwen/Qwen2.5-0.5B"  # smollm2-135m, tiny-base, a folder, or a hub id

    # What to learn from

    examples: str = ""  # a JSONL file (docs/fine-tuning.md); "": made from the training problems
    heldout_examples: int = 0  # about so many examples are not trained on; their loss is measured
    max_tokens: int = 0  # longer examples, prompt included, are left out; 0: what the model has room for
    data: str = ""  # problems: arithmetic, word-sums, gsm8k, a file ...; "" with a file of examples: none
    level: str = ""  # arithmetic: one-digit, twenty, two-digit, multiplication, steps; "": the task's default
    split: str = ""  # easy, medium or hard; "": the model's row, or all
    heldout: str = ""  # a file of held-out problems; "": split them off
    heldout_size: int = 0  # how many to split off, never trained on; 0: the task's own number (200 for files)
    question_column: str = ""  # "": found by its usual names
    answer_column: str = ""  # "": found by its usual names
    template: str = ""  # of prompts: simple, complex, plain-qa, chat, or a text with {question}; "": what suits
    stop: tuple[str, ...] = ()  # texts that end a response, besides those of the model's row and the template
    extractor: str = ""  # how the final answer is found: lenient, boxed, first-number, last-number; "": the task's
    max_prompt_tokens: int = 1024  # longer problems are dropped
    max_new_tokens: int = 1024  # longest response that is sampled

    # Optimisation

    batch_size: int = 64  # examples or pairs of a gradient step
    epochs: int = 1  # passes over the examples
    steps: int = 0  # gradient steps in place of epochs; 0: epochs count
    learning_rate: float = 5e-6  # of AdamW
    warmup: float = 0.1  # share of the steps in which it rises from 0
    schedule: str = "linear"  # then down to 0; or cosine, or constant
    weight_decay: float = 0.0  # of AdamW
    max_gradient_norm: float = 1.0  # longer gradients are scaled down to it
    lora_rank: int = 0  # 0: train all weights
    lora_alpha: int = 32  # adapters are scaled by alpha / rank

    # Watching

    evaluate_every: int = 50  # steps between evaluations
    checkpoint_every: int = 50  # steps between checkpoints

    # Machine

    device: str = "auto"  # cpu, cuda, cuda:1, mps
    dtype: str = "auto"  # of the products: float32 or bfloat16; weights and optimiser are float32
    tokens_per_microbatch: int = 0  # 0: what suits the device
    rows_at_once: int = 0  # responses written side by side; 0: what suits the device
    packed: bool = False  # examples behind one another in place of padding
    gradient_checkpointing: bool = False  # less memory, more time


@dataclass(frozen=True)
class SamplingConfig(TuningConfig):
    """Learning from examples that the model itself has written, unless a file has them."""

    problems: int = 0  # training problems to sample on; 0: all
    samples_per_prompt: int = 8  # responses to each
    temperature: float = 1.0  # of sampling


@dataclass(frozen=True)
class PairConfig(SamplingConfig):
    """Learning from pairs of a chosen and a rejected response."""

    pairs_per_problem: int = 4  # most pairs that one problem gives, no response in two; 0: all


# What most presets of the same name begin with.
LAPTOP = {
    "model": "smollm2-135m",
    "data": "arithmetic",
    "stop": ("\n",),
    "max_prompt_tokens": 64,
    "max_new_tokens": 12,
    "batch_size": 32,
    "evaluate_every": 20,
}
TINY = {
    "model": "tiny-base",
    "data": "word-sums",
    "split": "easy",
    "heldout_size": 200,
    "max_prompt_tokens": 128,
    "max_new_tokens": 64,
    "batch_size": 32,
    "evaluate_every": 20,
}
SMOKE = {
    **TINY,
    "model": "tiny-base-micro",
    "heldout_size": 10,
    "batch_size": 8,
    "steps": 3,
    "evaluate_every": 2,
    "checkpoint_every": 2,
}

_LEAST = {
    **dict.fromkeys(("max_prompt_tokens", "max_new_tokens", "batch_size", "evaluate_every", "checkpoint_every"), 1),
    **dict.fromkeys(("lora_alpha", "samples_per_prompt"), 1),
    **dict.fromkeys(("most_per_problem", "desirable_weight", "undesirable_weight"), 0),
    **dict.fromkeys(
        ("heldout_examples", "max_tokens", "heldout_size", "epochs", "steps", "warmup", "weight_decay", "lora_rank"), 0
    ),
    **dict.fromkeys(("learning_rate", "tokens_per_microbatch", "rows_at_once", "problems", "pairs_per_problem"), 0),
}


def check_tuning(config: Any) -> None:
    """Raises UserError for a number that no run could use."""
    for name, least in _LEAST.items():
        if not getattr(config, name, least) >= least:  # NaN is not either
            raise UserError(f"{name} is {getattr(config, name)}, but must be at least {least}.")
    for name in ("max_gradient_norm", "temperature", "beta", "tau"):
        if not getattr(config, name, 1.0) > 0:
            raise UserError(f"{name} is {getattr(config, name)}, but must be above 0.")
    if config.warmup > 1:
        raise UserError(f"warmup is {config.warmup}, but is a share of the steps, at most 1.")
    if config.split == AUTO and not hasattr(config, "samples_per_prompt"):
        raise UserError("split auto needs samples of the model, which this recipe does not draw; choose another split.")


class _Sized(Protocol):
    """An example as token ids."""

    @property
    def prompt(self) -> list[int]: ...

    @property
    def tokens(self) -> int: ...


E = TypeVar("E", bound=_Sized)


@dataclass
class Bench:
    """The parts of a run: everything but what is learned.

    Attributes:
        problems: None when there is a file of examples and no `data`.
    """

    config: Any
    run: Run
    machine: Machine
    ranks: Ranks
    policy: LanguageModel
    sampler: Sampler
    problems: TaskSet | None
    verifier: Verifier | None

    @property
    def scorer(self) -> Scorer:
        config = self.config
        return Scorer(self.policy, self.machine.tokens_per_microbatch, config.packed, self.ranks)

    def examples(
        self,
        columns: Sequence[str],
        make: Callable[[], Sequence[Row]],
        read: Callable[[LanguageModel, Sequence[Row]], Sequence[E]],
    ) -> tuple[list[E], list[E]]:
        """(examples to learn from, examples to measure on) of the config's file, or those that `make` gives.

        Args:
            columns: what every row must have.
            make: rows, when there is no file; they are kept in the run directory.
            read: makes token ids of rows.
        """
        config, policy = self.config, self.policy
        if config.examples:
            rows = read_rows(config.examples, columns)
            rows = [{**row, "prompt": prompt_text(policy, row["prompt"], config.template)} for row in rows]
        else:
            rows = kept_rows(self.run, make, columns, self.ranks)
        longest = min(config.max_tokens or policy.max_context, policy.max_context)
        every = read(policy, rows)
        fitting = [one for one in every if one.tokens <= longest]
        if len(fitting) < len(every):
            self.run.say(f"{len(every) - len(fitting)} examples were left out: they have more than {longest} tokens.")
        if not fitting:
            raise UserError("There are no examples to learn from.")
        return split_off(fitting, config.heldout_examples, lambda one: one.prompt)

    def tasks(self) -> TaskSet:
        """The problems. Raises UserError when there are none."""
        if self.problems is None:
            raise UserError("Say which problems to take with --data.")
        return self.problems

    def decoding(self) -> Decoding:
        """How responses to the problems are drawn; the config is a `SamplingConfig`."""
        config = self.config
        return Decoding(config.max_new_tokens, config.temperature, stop_strings=self.tasks().stop)

    def draw(self) -> Rollouts:
        """Responses of the untrained policy to the training problems, judged; the numbers depend on the seed alone."""
        tasks, config = self.tasks(), self.config
        assert self.verifier is not None
        chosen = hash_order(tasks.train, config.seed)[: config.problems or None]
        prompt = prompt_maker(self.policy, tasks.template)
        drawn = evaluate_tasks(
            self.sampler,
            chosen,
            [prompt(task) for task in chosen],
            self.verifier,
            self.decoding(),
            Streams(config.seed).torch("examples"),
            samples=config.samples_per_prompt,
        )
        right = drawn.rollouts.rewards.mean()
        self.run.say(f"Drew {len(drawn.rollouts)} responses to {len(chosen)} problems; {right:.1%} are right.")
        return drawn.rollouts

    def fit(self, objective: Objective, heldout: Objective) -> dict[str, float]:
        """Train the policy, resuming where the run directory stands, and save it; the newest value of every metric.

        heldout: data that is only measured, under names that begin with "heldout/"; may be empty.
        """
        config = self.config
        optimizer = make_optimizer(self.policy, config.learning_rate, config.weight_decay)
        metrics = SupervisedLoop(
            model=self.policy.model,
            optimizer=optimizer,
            objective=objective,
            settings=_settings(config, self.machine),
            run=self.run,
            evaluate=self._evaluator(heldout),
            ranks=self.ranks,
        ).train()
        save_policy(self.policy, self.run)
        return metrics

    def _evaluator(self, heldout: Objective) -> Evaluate | None:
        answered = self._heldout_problems()
        if answered is None and not len(heldout):
            return None

        def evaluate(step: int, thorough: bool) -> dict[str, float]:
            metrics = answered.metrics(step, thorough) if answered else {}
            if len(heldout):
                means = measure(heldout, self.machine.tokens_per_microbatch, self.ranks)
                metrics |= {f"heldout/{name}": value for name, value in means.items()}
            return metrics

        return evaluate

    def _heldout_problems(self) -> Heldout | None:
        tasks, config = self.problems, self.config
        if tasks is None or self.verifier is None:
            return None
        prompt = prompt_maker(self.policy, tasks.template)
        prompts = [prompt(task) for task in tasks.heldout]
        decoding = Decoding(config.max_new_tokens, getattr(config, "temperature", 1.0), stop_strings=tasks.stop)
        return Heldout(self.sampler, tasks.heldout, prompts, self.verifier, decoding, self.run)


@contextmanager
def open_bench(config: Any, run: Run, tasks: TaskSet | None = None) -> Iterator[Bench]:
    """The parts that a config names, with `tasks` in place of its problems; the verifier is closed at the end."""
    check_tuning(config)
    machine = set_up_machine(config)
    if tasks is None and (config.data or not config.examples):
        tasks = load_tasks_for(config)
    ranks, policy = join_ranks(machine.device), open_policy(config, machine)
    sampler = make_sampler("native", policy, machine, ranks)
    if tasks is None:
        yield Bench(config, run, machine, ranks, policy, sampler, None, None)
        return
    tasks = fit_tasks(config, tasks, policy, sampler, run, ranks)
    with open_verifier(tasks, ranks) as verifier:
        yield Bench(config, run, machine, ranks, policy, sampler, tasks, verifier)


def _settings(config: Any, machine: Machine) -> SupervisedSettings:
    return SupervisedSettings(
        batch_size=config.batch_size,
        epochs=config.epochs,
        steps=config.steps,
        warmup=config.warmup,
        schedule=config.schedule,
        max_gradient_norm=config.max_gradient_norm,
        tokens_per_microbatch=machine.tokens_per_microbatch,
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
    )


def fit_pairs(bench: Bench, loss: PairLoss) -> dict[str, float]:
    """Learn from the pairs of the config's file, or of right against wrong responses that the untrained policy draws.

    The config is a `PairConfig`.
    """

    def make() -> list[Row]:
        rows = pairs_from_rollouts(bench.draw(), bench.config.pairs_per_problem, bench.config.seed)
        bench.run.say(f"They make {len(rows)} pairs.")
        return rows

    parts = bench.examples(PAIR_COLUMNS, make, read_pairs)
    objectives = []
    for name, pairs in zip(("reference", "reference-heldout"), parts, strict=True):
        reference = kept_logprobs(bench.run, name, bench.scorer, chosen_first(pairs))
        objectives.append(PairPreferences(bench.scorer, pairs, reference, loss))
    return bench.fit(*objectives)


def describe_tuning(config: Any) -> list[tuple[str, str]]:
    """Lines (what, how much) for `--plan`."""
    check_tuning(config)
    machine = set_up_machine(config)
    source = (
        config.examples or f"examples made from {' '.join((config.data or 'the problems of the model', config.split))}"
    )
    samples = getattr(config, "samples_per_prompt", 0)
    if samples and not config.examples:
        source += f", {samples} responses to each of {config.problems or 'all'} problems"
    length = f"{config.steps} steps" if config.steps else f"{config.epochs} epoch(s)"
    rate = f"learning rate {config.learning_rate:g}, {config.schedule} after a warm-up of {config.warmup:.0%}"
    return [
        ("model", config.model + (f", LoRA of rank {config.lora_rank}" if config.lora_rank else "")),
        ("learns from", source.strip()),
        ("optimisation", f"{length} of {config.batch_size} examples, {rate}"),
        (
            "machine",
            f"{machine.device}, products in {machine.products},"
            f" micro-batches of {machine.tokens_per_microbatch:,} tokens",
        ),
    ]

"""ReST-MCTS*: self-training on the traces of a tree search, whose guide learns from the same trees.

Zhang et al. 2024. A value model scores partial solutions; MCTS* searches with it; the final answers are checked, and
the tree then tells how far each step was from a right answer. Right traces train the policy, these distances train the
value model, and the next round searches with both.

    search     select by V + c sqrt(2 ln n_parent / n); expand b steps; simulate greedily;
               V_child <- (1 - alpha) V + alpha (highest met); above: V = sum n_i V_i / sum n_i
    targets    v_k = max( v_(k-1) + (1 - v_(k-1)) / (m_k + 1) (1 - 2 r_k), 0 ),  trained by squared error

Stages: the policy learns worked solutions; the value model learns from trees of plain samples with the worked solution
in them; then rounds of search, policy (from the start again, on worked solutions and all traces) and value model; at
the end held-out problems are searched. `search` names what is searched with at the end, `traces` what the rounds learn
from: MCTS* or plain samples (`best-of-n`, which makes the round ReST-EM's), with equal numbers of generated steps.

What differs from the paper and its code, and why: no self-critic step; a simulated step stays in the tree, for it has
been paid for; what can only repeat itself is not selected; the first value model learns from trees of samples, not from
worked solutions with one generated wrong step; an answer is an ended solution, never an open node; problems whose tree
has no right answer give no targets. The budget is the number of generated steps. The tiny task has small sums, taken in
the order of the question: with a free order and products such models err in copying and adding before they can plan.

Not reproduced: Llama-3-8B, Mistral-7B and SciGLM on MATH, SciBench and GPQA, Self-Rewarding, ORM and Math-Shepherd as
rivals of the value model. The file is longer than 200 lines because a round has four stages and the card two claims.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from zerozoo.language.algorithm import choose
from zerozoo.language.demonstrations import Lessons
from zerozoo.language.device import set_up_machine
from zerozoo.language.example_files import KEPT, Row, prompt_text, read_rows
from zerozoo.language.parallel import join_ranks
from zerozoo.language.process_rewards import labelled_reward_stage
from zerozoo.language.reward_stage import REWARD_MODEL
from zerozoo.language.reward_training import squared_error
from zerozoo.language.self_training import kept_row_list, sampled_trees, search_problems, write_rows
from zerozoo.language.stages import Outputs, Stage, run_stages
from zerozoo.language.staging import fine_tune, model_of
from zerozoo.language.tree_search import SEARCHES, Search, SearchSettings
from zerozoo.language.tuning import LAPTOP, SMOKE, TINY, Bench, SamplingConfig, describe_tuning, open_bench
from zerozoo.language.value_targets import policy_rows, value_rows
from zerozoo.runs.claims import Claim, difference_claim
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.prompts import render
from zerozoo.tasks.splits import hash_order
from zerozoo.tasks.task import Task

PAPER = "ReST-MCTS*: LLM Self-Training via Process Reward Guided Tree Search (2024), arXiv 2406.03816"
NONE = "none"


@dataclass(frozen=True)
class Config(SamplingConfig):
    """The constants of the search are those of the released evaluation script."""

    search: str = "mcts"  # of held-out problems at the end: mcts, tree-of-thoughts, best-of-n, or none
    searched: int = 0  # how many of these; 0: all
    rounds: int = 1  # of self-training
    traces: str = "mcts"  # what the rounds learn from: mcts, or best-of-n for plain samples
    traces_per_problem: int = 1  # right traces of each problem that are learned; 0: all
    problems: int = 0  # training problems that a round searches, none of those below; 0: all
    worked: int = 1000  # training problems whose worked solutions are learned
    branch: int = 3  # steps proposed at an expansion
    exploration: float = 0.4  # c of the selection
    unvisited: float = 0.8  # what a child without visits gets in its place
    alpha: float = 0.5  # weight of the highest value that a simulation met
    gate: float = 0.9  # a solution of this value ends the search
    roll_branch: int = 1  # steps proposed at each step of a simulation
    roll_steps: int = 2  # its length
    iterations: int = 100  # most rounds of a search
    budget: int = 60  # most steps that are generated for a problem
    step_tokens: int = 256  # longest step
    most_steps: int = 16  # longest solution, in steps
    temperature: float = 0.7  # of steps and samples
    samples_per_prompt: int = 8  # plain samples in each tree of the first value model
    value_problems: int = 400  # worked problems with such a tree
    value_steps: int = 300  # gradient steps of the value model
    value_rate: float = 3e-6  # learning rate of these


EXTENDABLE = ("checkpoint_every",)
_STEPS = {"data": "countdown:steps", "split": "", "max_new_tokens": 40, "step_tokens": 16, "most_steps": 4}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**LAPTOP, **_STEPS, "stop": (), "worked": 200, "problems": 40, "value_problems": 40, "value_steps": 40}
    | {"searched": 40, "budget": 20, "learning_rate": 2e-5, "value_rate": 2e-5},
    "tiny": {**TINY, **_STEPS, "model": "tiny-base-micro", "heldout_size": 200, "tokens_per_microbatch": 4096}
    | {"epochs": 4, "learning_rate": 5e-3, "temperature": 1.0, "value_rate": 3e-3, "worked": 1600, "problems": 300}
    | {"traces_per_problem": 4, "value_problems": 600, "value_steps": 300, "evaluate_every": 1000},
    "paper": {"model": "mistralai/Mistral-7B-v0.1", "data": "math", "max_new_tokens": 2048},
    "smoke": {**SMOKE, **_STEPS, "learning_rate": 1e-3, "value_rate": 1e-3, "worked": 24, "problems": 5, "budget": 10}
    | {"value_problems": 8, "value_steps": 3, "samples_per_prompt": 2, "searched": 5},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run all stages, resuming where the run directory stands; metrics of the last policy, value model and search."""
    _check(config)
    stages = [Stage("policy-0", _Policy(config, 0))]
    for number in range(config.rounds + 1):
        if number:
            stages += [
                Stage(f"search-{number}", _Round(config, number)),
                Stage(f"policy-{number}", _Policy(config, number)),
            ]
        if number < config.rounds or config.search != NONE:
            stages.append(Stage(f"value-{number}", _Value(config, number)))
    if config.search != NONE:
        stages.append(Stage("heldout", lambda part, before: _heldout(config, part, before)))
    machine = set_up_machine(config)
    outputs = run_stages(run, stages, join_ranks(machine.device))
    return {name: value for stage in outputs.values() for name, value in stage.metrics.items()}


@dataclass(frozen=True)
class _Policy:
    """The policy of a round, from the start again: worked solutions, and the traces of all rounds until then."""

    config: Config
    number: int

    def __call__(self, run: Run, before: Mapping[str, Outputs]) -> Outputs:
        def make(bench: Bench) -> list[Row]:
            rows = worked_rows(bench, self.config)
            for number in range(1, self.number + 1):
                rows += kept_row_list(before[f"search-{number}"].files["traces"])
            return rows

        return fine_tune(replace(self.config, examples=""), run, make)


@dataclass(frozen=True)
class _Value:
    """The value model of a round, from its policy: trees of samples, and those of all searches until then."""

    config: Config
    number: int

    def __call__(self, run: Run, before: Mapping[str, Outputs]) -> Outputs:
        start = _with_policy(self.config, before, self.number)
        lessons = Lessons(self.config.value_steps, 32, self.config.value_rate)

        def make(config: Config, run: Run) -> list[Row]:
            if self.number == 0:
                with open_bench(replace(config, problems=config.value_problems), run) as bench:
                    return value_rows(*sampled_trees(bench, worked_texts(bench)))
            first = before["value-0"].files[REWARD_MODEL].parent / KEPT
            later = [before[f"search-{number}"].files["values"] for number in range(1, self.number + 1)]
            return [row for path in (first, *later) for row in kept_row_list(path)]

        return labelled_reward_stage(lessons, lambda _: start, make, squared_error).work(run, before)


@dataclass(frozen=True)
class _Round:
    """The search of a round, by the policy and the value model of the one before."""

    config: Config
    number: int

    def __call__(self, run: Run, before: Mapping[str, Outputs]) -> Outputs:
        config = self.config
        with open_bench(_with_policy(config, before, self.number - 1), run) as bench:
            tasks = hash_order(bench.tasks().train, config.seed)[config.worked :][: config.problems or None]
            if not tasks:
                every = len(bench.tasks().train)
                raise UserError(f"worked is {config.worked} of {every} training problems: none is left to be searched.")
            name, value = f"search-{self.number}", before[f"value-{self.number - 1}"].files[REWARD_MODEL]
            searches, metrics = _search(bench, config, value, tasks, config.traces, name)
        files = {
            "traces": write_rows(run.path("traces.jsonl"), policy_rows(searches, tasks, config.traces_per_problem)),
            "values": write_rows(run.path("values.jsonl"), value_rows(searches, tasks)),
        }
        return Outputs(files, {f"traces/{name}": number for name, number in metrics.items()})


def _heldout(config: Config, run: Run, before: Mapping[str, Outputs]) -> Outputs:
    """Held-out problems, searched by the last policy and value model."""
    with open_bench(_with_policy(config, before, config.rounds), run) as bench:
        tasks = bench.tasks().heldout[: config.searched or None]
        value = before[f"value-{config.rounds}"].files[REWARD_MODEL]
        _, metrics = _search(bench, config, value, tasks, config.search, "heldout")
    return Outputs(metrics={f"search/{name}": number for name, number in metrics.items()})


def _search(
    bench: Bench, config: Config, value: Path, tasks: Sequence[Task], method: str, stream: str
) -> tuple[list[Search], dict[str, float]]:
    return search_problems(
        bench, value, tasks, method, search_settings(config), config.step_tokens, config.most_steps, stream
    )


def search_settings(config: Config) -> SearchSettings:
    """The constants of the search."""
    return SearchSettings(**{field.name: getattr(config, field.name) for field in fields(SearchSettings)})


def worked_rows(bench: Bench, config: Config) -> list[Row]:
    """Worked solutions: of the file of examples, or those that the problems come with."""
    tasks = bench.tasks()
    if config.examples:
        rows = read_rows(config.examples, ("prompt", "response"))
        return [{**row, "prompt": prompt_text(bench.policy, row["prompt"], tasks.template)} for row in rows]
    texts = worked_texts(bench)
    chosen = hash_order(tasks.train, config.seed)[: config.worked]
    if not all(task.id in texts for task in chosen):
        raise UserError(f"The problems of {tasks.name} come without worked solutions: give them with --examples.")
    tokenizer = bench.policy.tokenizer
    return [{"prompt": render(tasks.template, task.question, tokenizer), "response": texts[task.id]} for task in chosen]


def worked_texts(bench: Bench) -> dict[str, str]:
    """Task id -> worked solution, where the problems come with one."""
    return {task.id: task.answer for task in bench.tasks().train if "solution" in task.metadata}


def _with_policy(config: Config, before: Mapping[str, Outputs], number: int) -> Config:
    return replace(config, model=model_of(before, f"policy-{number}", otherwise=config.model), examples="")


def plan(config: Config) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    _check(config)
    words = (
        f"{config.rounds} round(s) of {config.traces} with {config.budget} steps a problem; held out: {config.search}"
    )
    return [*describe_tuning(config), ("search", words)]


def _check(config: Config) -> None:
    search_settings(config)
    choose("search", config.search, (*SEARCHES, NONE))
    choose("traces", config.traces, tuple(SEARCHES))
    for name in ("rounds", "problems", "searched", "traces_per_problem", "value_rate"):
        if not getattr(config, name) >= 0:
            raise UserError(f"{name} is {getattr(config, name)}, but must not be negative.")
    for name in ("worked", "step_tokens", "most_steps", "value_problems", "value_steps"):
        if not getattr(config, name) >= 1:
            raise UserError(f"{name} is {getattr(config, name)}, but must be at least 1.")
    if config.budget < config.most_steps:
        raise UserError(f"budget is {config.budget}, but one solution may take {config.most_steps} steps.")


CLAIM = (
    Claim(
        statement="With the same number of generated steps, value-guided tree search solves more held-out problems than"
        " best-of-n with the same value model.",
        arms={method: {"search": method} for method in SEARCHES},
        metric="search/solved",
        holds=difference_claim("mcts", "best-of-n", threshold=0.03),
        seeds=(0, 1, 2),
        budget="9 trainings and searches of models of 0.1M parameters on one core",
        base={**PRESETS["tiny"], "rounds": 0},
        smoke=PRESETS["smoke"],
    ),
    Claim(
        statement="With the same number of generated steps, self-training on the traces of tree search beats"
        " self-training on sampled traces.",
        arms={"mcts": {"traces": "mcts"}, "sampling": {"traces": "best-of-n"}, "start": {"rounds": 0}},
        metric="heldout/sampled_accuracy",
        holds=difference_claim("mcts", "sampling", threshold=0.02),
        seeds=(0, 1, 2),
        budget="9 trainings of models of 0.1M parameters on one core, with their searches",
        base={**PRESETS["tiny"], "search": NONE},
        smoke={**PRESETS["smoke"], "search": NONE},
        name="self-training",
    ),
)

"""SCoRe: a model learns to correct itself, from two-turn episodes of its own and with no hint on what was wrong.

The model answers, is told only that there may be an error, and answers again. Policy gradients on both turns at once
end in a second answer that repeats the first, because that is the nearest way to a good second reward. SCoRe first
trains the second turn alone while a strong KL holds the first one where it was (stage I), then both, with a bonus for
every step from wrong to right and a malus for the way back (stage II).

    stage I     max E[ r(y2) - b1 KL_2 - (b1 + b2) KL_1 ]
    stage II    max E[ r(y1) + r(y2) + alpha (r(y2) - r(y1)) - b1 (KL_1 + KL_2) ],  the bonus in turn 2 only

Each turn is credited with its own reward alone (gamma 0), against the mean of the other episodes of the problem.

What differs from the paper, which has no released code: the KL is a k3 estimate in the loss of each token; how the
steps are shared between the stages and how many episodes a problem gets is not said there (half and half, 4); one
baseline a turn, leave-one-out; the last weights are kept and not those of the highest training reward; no first answers
of the base model are mixed in; on tiny models `whiten` divides the advantages of each turn by their deviation. The tiny
model first learns from made transcripts how a model with the bias answers: quick, often wrong, and the same again.

Not reproduced: Gemini, MATH and MBPP at scale, the baselines STaR, Pair-SFT and Self-Refine, more than two turns.
"""

from dataclasses import dataclass, replace
from typing import Any

from zerozoo.language import settings
from zerozoo.language.algorithm import DIVERGENCES, Algorithm, KLPenalty, choose
from zerozoo.language.build import make_objective
from zerozoo.language.demonstrations import Lessons, demonstration_stage, turn_rows
from zerozoo.language.example_files import Row
from zerozoo.language.models import LanguageModel
from zerozoo.language.stages import prepare
from zerozoo.language.task_choice import load_tasks_for
from zerozoo.language.training import complete, plan_zero_rl, train_zero_rl
from zerozoo.language.turn_credit import TurnCredit, TurnPhase
from zerozoo.runs.claims import Claim, all_of, difference_claim
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.runs.streams import Streams
from zerozoo.tasks.prompts import render
from zerozoo.tasks.revisions import revision

PAPER = "Training Language Models to Self-Correct via Reinforcement Learning (2024), arXiv 2409.12917"
INSTRUCTION = (
    "\n\nThere may be an error in the answer above. Correct it if there is one, and write the whole solution again.\n"
)


@dataclass(frozen=True)
class Config(settings.ZeroRLConfig):
    """The paper's settings for MATH."""

    prompts_per_step: int = 512  # problems in a step
    samples_per_prompt: int = 4  # episodes of each
    instruction: str = INSTRUCTION  # text between the two answers
    alpha: float = 10.0  # weight of the progress bonus in stage II
    first_steps: int = 1500  # steps of stage I; 0: both turns are trained from the start
    first_turn_kl: float = 0.1  # b2: what holds the first turn in stage I, besides kl_coefficient
    kl_coefficient: float = 0.01  # b1, of both turns in both stages
    whiten: bool = False  # advantages of each turn to deviation 1
    aggregation: str = "constant"  # sums over tokens, as policy gradients are; or token-mean, sequence-mean
    updates_per_step: int = 1  # gradient steps in a rollout
    learning_rate: float = 5e-6  # of AdamW (the paper: Adam)
    weight_decay: float = 0.0  # of AdamW
    steps: int = 3000  # of both stages together
    evaluate_every: int = 50  # steps between greedy evaluations

    transcript_steps: int = 0  # first, gradient steps on made transcripts of word sums; 0: none
    transcript_rate: float = 1e-3  # learning rate of these
    copied: float = 0.9  # share of them whose second answer is the first again

    @property
    def advantage(self) -> str:
        """What the plan calls it."""
        return "leave-one-out of each turn" + (", whitened" if self.whiten else "")


TRANSCRIPTS = 4  # of each problem
EXTENDABLE = settings.EXTENDABLE
TINY = {
    **settings.TINY,
    "model": "tiny-base-micro",
    "instruction": "\ncheck:",
    "max_new_tokens": 28,
    "kl_coefficient": 0.01,
    "first_turn_kl": 0.1,
    "whiten": True,
    "samples_per_prompt": 4,
    "steps": 80,
    "first_steps": 40,
    "learning_rate": 1e-3,
    "transcript_steps": 300,
    "transcript_rate": 3e-3,
    "evaluate_every": 40,
    "checkpoint_every": 40,
}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**settings.LAPTOP, "instruction": "\nCheck that. The answer is", "first_steps": 20, "whiten": True}
    | {"kl_coefficient": 0.01},
    "tiny": TINY,
    "paper": {"model": "Qwen/Qwen2.5-7B-Instruct", "data": "math", "template": "chat", "max_new_tokens": 2048},
    "smoke": {**TINY, "prompts_per_step": 4, "heldout_size": 20, "steps": 2, "first_steps": 1, "transcript_steps": 3},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the final held-out metrics of both turns."""
    config = _check(complete(config))
    if config.transcript_steps:
        lessons = Lessons(config.transcript_steps, learning_rate=config.transcript_rate)
        most = lessons.examples
        stage = demonstration_stage(config, lessons, lambda policy: transcripts(config, policy, most), "transcripts")
        config = replace(config, model=str(prepare(run, [stage])[stage.name].files["model"]))
    credit = TurnCredit(*phases(config), config.first_steps, config.whiten)
    return train_zero_rl(config, run, objective(config), lambda parts: credit, instructions=(config.instruction,))


def objective(config: Config) -> Algorithm:
    """Policy gradient with a KL of weight b1 + b2, of which a turn gets the share that its phase says."""
    total = config.kl_coefficient + config.first_turn_kl
    estimator = DIVERGENCES[choose("KL estimator", config.kl_estimator, DIVERGENCES)]
    return replace(make_objective(config), kl=KLPenalty(total, estimator, config.kl_place))


def phases(config: Config) -> tuple[TurnPhase, TurnPhase]:
    """Stage I and stage II."""
    total = config.kl_coefficient + config.first_turn_kl
    small = config.kl_coefficient / total if total else 0.0
    return TurnPhase((0.0, 1.0), (1.0, small)), TurnPhase((1.0, 1.0), (small, small), config.alpha)


def transcripts(config: Config, policy: LanguageModel, most: int) -> list[Row]:
    """Transcripts of every training problem, two rows each: the first answer, and the second one."""
    tasks, rng = load_tasks_for(config), Streams(config.seed).python("transcripts")
    rows: list[Row] = []
    for task in tasks.train:
        prompt = render(tasks.template, task.question, policy.tokenizer)
        for _ in range(TRANSCRIPTS):
            answers = revision(task, rng, copied=config.copied)
            rows += turn_rows(policy, prompt, answers, [config.instruction])
        if len(rows) >= most:
            break
    return rows


def plan(config: Config) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    config = _check(complete(config))
    first = min(config.first_steps, config.steps)
    words = f"{first} steps of the second turn alone, then {config.steps - first} of both with alpha {config.alpha:g}"
    return [*plan_zero_rl(config), ("stages", words)]


def _check(config: Config) -> Config:
    for name in ("alpha", "first_steps", "first_turn_kl", "transcript_steps", "transcript_rate"):
        if not getattr(config, name) >= 0:
            raise UserError(f"{name} is {getattr(config, name)}, but must not be negative.")
    if not 0 <= config.copied <= 1:
        raise UserError(f"copied is {config.copied}, but is a share, between 0 and 1.")
    if config.samples_per_prompt < 2:
        raise UserError(f"samples_per_prompt is {config.samples_per_prompt}, but a baseline needs at least 2 episodes.")
    if not config.instruction:
        raise UserError("The instruction between the two answers is empty.")
    return config


CLAIM = Claim(
    statement="Without the bonus and stage I, two-turn RL raises both accuracies but not their difference;"
    " SCoRe raises the difference.",
    arms={"score": {}, "plain": {"alpha": 0.0, "first_steps": 0}, "base": {"steps": 0}},
    metric="heldout/greedy_1_to_2_gain",
    holds=all_of(
        difference_claim("score", "plain", threshold=0.03),
        difference_claim("score", "plain", threshold=-0.01, metric="heldout/greedy_accuracy_2"),
        difference_claim("score", "base", threshold=-0.05, metric="heldout/greedy_accuracy_1"),
    ),
    seeds=(0, 1, 2),
    budget="6 trainings and 3 base models of 0.1M parameters on one core, about a minute each",
    base=TINY,
    smoke=PRESETS["smoke"],
    curve="heldout/greedy_1_to_2_gain",
)

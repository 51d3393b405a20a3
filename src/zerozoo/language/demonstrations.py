"""Fine-tuning on demonstrations as the first stage of a training: how a base model learns the form of a task."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zerozoo.language.build import make_optimizer, open_policy, save_policy
from zerozoo.language.device import Machine, set_up_machine
from zerozoo.language.example_files import Row, kept_rows, read_examples
from zerozoo.language.fine_tuning import FineTuning
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import join_ranks
from zerozoo.language.scoring import Scorer
from zerozoo.language.stages import Outputs, Stage
from zerozoo.language.supervised import SupervisedLoop, SupervisedSettings
from zerozoo.language.task_choice import load_tasks_for
from zerozoo.runs.run import Run
from zerozoo.runs.streams import Streams
from zerozoo.tasks.prompts import render
from zerozoo.tasks.task import Task

Make = Callable[[LanguageModel], Sequence[Row]]
Write = Callable[[Task, random.Random], str]


@dataclass(frozen=True)
class Lessons:
    """How much is learned from demonstrations.

    More rows than `examples` are never all learned from, so none need be made.

    Attributes:
        steps: gradient steps, over as many passes as they make.
        batch_size: examples of a step.
        learning_rate: of AdamW; it rises over the first tenth of the steps and falls to 0.
    """

    steps: int
    batch_size: int = 64
    learning_rate: float = 1e-3

    @property
    def examples(self) -> int:
        """Of all steps together."""
        return self.steps * self.batch_size

    def settings(self, config: Any, machine: Machine) -> SupervisedSettings:
        """Those of the loop that learns them, with the gradient norm of a config."""
        return SupervisedSettings(
            batch_size=self.batch_size,
            steps=self.steps,
            warmup=0.1,
            max_gradient_norm=config.max_gradient_norm,
            tokens_per_microbatch=machine.tokens_per_microbatch,
        )


def demonstration_stage(config: Any, lessons: Lessons, make: Make, name: str = "demonstrations") -> Stage:
    """A stage that fine-tunes the model of a zero-RL config on rows {"prompt", "response"} and gives it as "model".

    Args:
        config: names model and machine.
        make: makes the rows, texts or ids; called once, they are kept in the stage's directory.
    """

    def work(run: Run, outputs: Mapping[str, Outputs]) -> Outputs:
        machine = set_up_machine(config)
        ranks, policy = join_ranks(machine.device), open_policy(config, machine)
        rows = kept_rows(run, lambda: make(policy), ("prompt", "response"), ranks)
        scorer = Scorer(policy, machine.tokens_per_microbatch, config.packed, ranks)
        metrics = SupervisedLoop(
            model=policy.model,
            optimizer=make_optimizer(policy, lessons.learning_rate, config.weight_decay),
            objective=FineTuning(scorer, read_examples(policy, rows)),
            settings=lessons.settings(config, machine),
            run=run,
            ranks=ranks,
        ).train()
        save_policy(policy, run)
        return Outputs({"model": run.path("model")}, metrics)

    return Stage(name, work)


def turn_rows(policy: LanguageModel, prompt: str, answers: Sequence[str], instructions: Sequence[str]) -> list[Row]:
    """Rows of an episode, one a turn: the prompt of a turn is all that stands before its answer, as ids.

    So the answers are learned, and neither the prompt nor the instructions between them. The ids are those that
    `turns.TurnSampler` would put behind one another.

    Raises ValueError unless there is one instruction fewer than answers.
    """
    if len(instructions) != len(answers) - 1:
        raise ValueError(f"{len(answers)} answers need {len(answers) - 1} instructions, not {len(instructions)}")
    start = policy.encode(prompt)
    rows: list[Row] = []
    for answer, instruction in zip(answers, [*instructions, ""], strict=True):
        response = [*_ids(policy, answer), policy.eos_ids[0]]
        rows.append({"prompt": start, "response": response})
        start = [*start, *response, *_ids(policy, instruction)]
    return rows


def task_rows(
    config: Any, policy: LanguageModel, name: str, write: Mapping[str, Write], copies: int = 1, most: int = 0
) -> list[Row]:
    """A response to every training problem of a config: written by the function of its source, else its gold answer.

    Args:
        name: of the random stream that the functions draw from; it depends on `config.seed` besides.
        write: functions by the source of the tasks.
        copies: responses to each problem that a function writes.
        most: problems are taken until there are so many rows; 0: all.
    """
    tasks, rng = load_tasks_for(config), Streams(config.seed).python(name)
    rows: list[Row] = []
    for task in tasks.train:
        known = task.source in write
        texts = [write[task.source](task, rng) for _ in range(copies)] if known else [task.answer]
        prompt = render(tasks.template, task.question, policy.tokenizer)
        rows += [{"prompt": prompt, "response": text} for text in texts]
        if most and len(rows) >= most:
            break
    return rows


def _ids(policy: LanguageModel, text: str) -> list[int]:
    return list(policy.tokenizer.encode(text, add_special_tokens=False))

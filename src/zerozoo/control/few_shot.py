"""Evaluation in tasks that an agent has not seen, with prompts from its own earlier episodes there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from zerozoo.control.episodes import Episodes, Recorder
from zerozoo.control.evaluation import EVALUATION_SEED, Evaluator, Player
from zerozoo.control.prompts import Prompt, PromptPool, best_of_tasks, draw_trajectories
from zerozoo.environments.batched.world import BatchedWorld
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run


class Prompted(Protocol):
    """An agent that may be shown a prompt."""

    def player(self, target_return: Tensor, prompt: Prompt | None = None) -> Player: ...


class FewShotEvaluator(Evaluator):
    """Plays `rounds` episodes in each task; all but the first with a prompt from the earlier episodes there.

    So the first shows what an agent does without a prompt, and the steps of all rounds are those that it needs to
    become as good as in the later ones. Scores are 0 at the mean return reference[0] and 1 at reference[1]:

        score             mean of the rounds from the second on
        score/first       the first round
        score/<name>      as score, for every further rule of `targets`

    Args:
        world: of one copy for each task, extras["task"] of its episodes the number of the copy.
        targets: the returns (tasks,) to ask for, by the name of the rule; "task" is that of score and score/first.
        rounds: at least 2.
        pool: makes the prompts from episodes; None: none are shown.
        best: prompts come from this many best episodes of a task.
    """

    def __init__(
        self,
        world: BatchedWorld,
        targets: Mapping[str, Tensor],
        reference: tuple[float, float],
        rounds: int,
        pool: Callable[[Episodes], PromptPool] | None,
        best: int,
    ) -> None:
        if rounds < 2:
            raise UserError(f"rounds must be at least 2, not {rounds}: the first is without a prompt.")
        self.world, self.targets, self.ends, self.rounds = world, targets, reference, rounds
        self.pool, self.best = pool, best

    def __call__(self, agent: Any, run: Run, step: int) -> dict[str, float]:
        scores = {rule: self.play(agent, rule, run, step) for rule in self.targets}
        later = {f"score/{rule}": float(np.mean(values[1:])) for rule, values in scores.items()}
        return {"score": later.pop("score/task"), "score/first": scores["task"][0], **later}

    def play(self, agent: Prompted, rule: str, run: Run, step: int) -> list[float]:
        """The score of each round; one row of samples.jsonl for each episode."""
        generator = Generator().manual_seed(EVALUATION_SEED)
        low, high = self.ends
        memory: Episodes | None = None
        scores = []
        for number in range(self.rounds):
            prompt = None if memory is None or self.pool is None else self.prompt(memory, generator)
            played = self.one_round(agent, self.targets[rule], prompt)
            returns = played.returns()
            row = {"step": step, "phase": "evaluation", "target": rule, "round": number}
            run.sample({**row, "task": task, "return": float(value)} for task, value in enumerate(returns))
            scores.append(float((returns.mean() - low) / (high - low)))
            memory = played if memory is None else Episodes.concatenate([memory, played])
        return scores

    def prompt(self, memory: Episodes, generator: Generator) -> Prompt:
        """One for each task."""
        assert self.pool is not None
        best = best_of_tasks(memory, self.best)
        return self.pool(memory).draw(draw_trajectories(best, torch.arange(len(best)), generator), generator)

    def one_round(self, agent: Prompted, target: Tensor, prompt: Prompt | None) -> Episodes:
        """One episode in each task, all at once; they all last until the time limit."""
        world, recorder, player = self.world, Recorder(), agent.player(target, prompt)
        obs = world.reset(np.random.Generator(np.random.PCG64(EVALUATION_SEED)))
        for _ in range(world.time_limit):
            action = player.act(torch.from_numpy(obs)).numpy()
            after = world.step(action)
            recorder.add(obs, action, after.reward, after.terminated, after.truncated, after.next_obs, **after.info)
            player.observe(after.reward)
            obs = after.next_obs
        return recorder.episodes()

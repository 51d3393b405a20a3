"""The zero-RL loop: collect (draw tasks, sample, score), credit, update, log, evaluate, checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from zerozoo.language.algorithm import Algorithm
from zerozoo.language.collect import Collector, Reward
from zerozoo.language.credit import Credit, GroupCredit
from zerozoo.language.deck import Deck
from zerozoo.language.evaluation import Evaluation, evaluate_modes
from zerozoo.language.loop_settings import LoopSettings
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import ALONE, Ranks
from zerozoo.language.profile import peak_memory, reset_peak_memory, write_machine
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import Decoding, Sampler
from zerozoo.language.snapshot import restore, save, snapshot
from zerozoo.language.turns import TurnSampler, evaluate_turns
from zerozoo.language.update import Updater
from zerozoo.rewards.verifier import Verifier
from zerozoo.runs.checkpoints import Checkpoint
from zerozoo.runs.errors import DivergedError, UserError
from zerozoo.runs.interrupts import Interrupts
from zerozoo.runs.parts import under
from zerozoo.runs.run import Run
from zerozoo.runs.streams import Streams
from zerozoo.tasks.task import Task, TaskSet

ExtraReward = Callable[[Rollouts], Tensor]
CREDIT = "credit/"  # names of its tensors in a checkpoint begin so


@dataclass
class ZeroRL:
    """One training run; it knows no algorithm by name.

    Attributes:
        policy: the model being trained.
        reference: log-probs of the frozen start, (rollouts) -> (N, T); needed by a KL term only.
        credit: from rewards to advantages; None: the algorithm's advantage, over the groups.
        extra_reward: what is added to the rewards of the verdicts: (N,) of responses, or (N, T) of tokens. It has no
            say in which groups are replaced by `refill_rounds`. Where it has a method `metrics`, what that says of the
            rollouts seen last goes into the row of the step.
        sampler: draws from the policy's current weights, or from those that it was told of (`AsyncSampler`).
        tasks: training and held-out problems.
        prompt: token ids of a task's prompt; the same in training and evaluation.
        verifier: judges training and held-out responses alike.
        reward: verdict -> reward.
        decoding: how training responses are drawn.
        run: directory, streams and metrics.
        episodes: draws and judges episodes of several turns in place of single responses, in training and evaluation;
            they cannot be replaced by `refill_rounds`.
        evaluation_sampler: answers the held-out problems; None: `sampler`.
        ranks: the processes that train together; sampler, verifier and updater must know of them, too.
        profile: also measure the memory of every phase and the speed of the machine (see `profile`).
    """

    policy: LanguageModel
    sampler: Sampler
    tasks: TaskSet
    prompt: Callable[[Task], list[int]]
    verifier: Verifier
    reward: Reward
    algorithm: Algorithm
    updater: Updater
    decoding: Decoding
    settings: LoopSettings
    run: Run
    reference: Callable[[Rollouts], Tensor] | None = None
    credit: Credit | None = None
    extra_reward: ExtraReward | None = None
    episodes: TurnSampler | None = None
    evaluation_sampler: Sampler | None = None
    ranks: Ranks = ALONE
    profile: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.decoding.top_p != 1 or self.decoding.temperature == 0:
            raise UserError(
                "Training needs samples of the whole distribution (temperature above 0, top_p 1):"
                " the policy gradient of truncated samples is another one."
            )
        learner = self.updater.settings.temperature
        if self.decoding.temperature != learner:
            raise ValueError(f"sampling temperature {self.decoding.temperature} is not the learner's, {learner}")
        kl = self.algorithm.kl
        if kl.coefficient and self.reference is None:
            raise ValueError("a KL term needs a reference")
        self.deck = Deck(self.tasks.train, self.settings.prompts_per_step, self.run.stream("tasks"))
        self.collector = self._collector()
        self.creditor = self.credit or GroupCredit(self.algorithm.advantage)
        self.base_rates = _rates(self.updater.optimizer)
        self.credit_rates = [_rates(optimizer) for optimizer in self.creditor.optimizers]

    def _collector(self) -> Collector:
        return Collector(
            deck=self.deck,
            prompt=self.prompt,
            sampler=self.sampler,
            verifier=self.verifier,
            reward=self.reward,
            decoding=self.decoding,
            algorithm=self.algorithm,
            settings=self.settings,
            run=self.run,
            pad_id=self.policy.pad_id,
            timed=self._timed,
            episodes=self.episodes,
        )

    def train(self) -> dict[str, float]:
        """Run to the last step from wherever the run directory stands; the last held-out metrics and some means.

        Raises:
            DivergedError: loss or gradient is not finite; the newest checkpoint is from before that.
            KeyboardInterrupt: after a checkpoint was saved.
        """
        start = self.run.resume(self._go_back)
        self.collector.begin(start)
        if self.profile:
            write_machine(self.run, self.policy)
        if start == 0:
            self.run.log(0, self.evaluate(0, sampled=True))
        with Interrupts(self.run.say) as interrupts:
            for step in range(start + 1, self.settings.steps + 1):
                self._log_step(step)
                last = step == self.settings.steps
                interrupted = bool(self.ranks.highest(interrupts.requested))  # all of them stop after the same step
                if last or interrupted or step % self.settings.checkpoint_every == 0:
                    self._save(step)
                if interrupted and not last:
                    raise KeyboardInterrupt
        return self.ranks.from_first(self._summary)

    def _summary(self) -> dict[str, float]:
        """The last held-out metrics, and means over all steps of what tells how the training went."""
        history = self.run.history()
        last = [row for row in history if "heldout/sampled_accuracy" in row][-1]
        trained = [row for row in history if "reward" in row]
        means = {
            f"mean/{name}": sum(row[name] for row in trained) / len(trained)
            for name in ("reward", "correct", "groups/informative", "groups/all_wrong", "seconds/step")
            if trained
        }
        return {name: value for name, value in last.items() if name != "time"} | means

    def step(self, step: int) -> tuple[Rollouts, dict[str, float]]:
        """One rollout and its gradient steps."""
        self.seconds, self.memory = {}, {}
        began = time.perf_counter()
        self._set_rates(self.settings.learning_rate_factor(step))
        rollouts, metrics = self.collector.collect(step)
        rollouts.step = step
        with self._timed("score"):
            metrics |= self._add_reward(rollouts)
        with self._timed("credit"):
            logprobs = self._credit(rollouts)
        with self._timed("update"):
            if step > self.settings.frozen_steps:
                anchor = logprobs.reference if self.algorithm.kl.in_loss else None
                metrics |= self.updater.update(rollouts, anchor, logprobs.policy)
            metrics |= self.creditor.learn()
        for optimizer in (self.updater.optimizer, *self.creditor.optimizers):
            optimizer.zero_grad(set_to_none=True)  # the sampler has better use for that memory
        self.collector.publish(step)
        self.seconds["step"] = time.perf_counter() - began
        metrics |= {f"seconds/{name}": value for name, value in self.seconds.items()}
        metrics |= {f"memory/{name}": value for name, value in self.memory.items()}
        metrics |= {
            "learning_rate": self.updater.optimizer.param_groups[0]["lr"],
            "advantage/highest": float(rollouts.flat_advantages().max()),
            "advantage/lowest": float(rollouts.flat_advantages().min()),
            "tasks/passes": float(self.collector.passes),
        }
        return rollouts, metrics

    def evaluate(self, step: int, sampled: bool) -> dict[str, float]:
        """Held-out accuracy: greedy, and with `sampled` also as in training; its random numbers depend on the step
        alone, so that evaluating more often changes no training run."""
        began = time.perf_counter()
        metrics: dict[str, float] = {}
        for mode, result in self._answer_heldout(step, sampled).items():
            names = {"accuracy", "low", "high"}
            metrics |= {f"heldout/{mode}_{name}": value for name, value in result.metrics.items() if name in names}
            metrics |= {
                f"heldout/{mode}_{name.partition('/')[2]}": value
                for name, value in result.metrics.items()
                if name.startswith(("response/", "turns/"))
            }
            if sampled:
                rows = result.rollouts.rows_for_log(step, spell=self._spell)
                self.run.sample({**row, "phase": f"heldout-{mode}"} for row in rows)
        metrics["seconds/evaluate"] = time.perf_counter() - began
        return metrics

    def _answer_heldout(self, step: int, sampled: bool) -> dict[str, Evaluation]:
        """By mode."""
        tasks, seed, stream = self.tasks.heldout, self.run.seed, f"evaluation/{step}"
        prompts = [self.prompt(task) for task in tasks]
        if self.episodes is None:
            sampler = self.evaluation_sampler or self.sampler
            return evaluate_modes(sampler, tasks, prompts, self.verifier, self.decoding, seed, stream, sampled)
        results = {}
        for mode in ("greedy", "sampled") if sampled else ("greedy",):
            decoding = replace(self.decoding, temperature=0.0) if mode == "greedy" else self.decoding
            episodes = replace(self.episodes, decoding=decoding)
            results[mode] = evaluate_turns(episodes, tasks, prompts, Streams(seed).torch(stream))
        return results

    def _log_step(self, step: int) -> None:
        last = step == self.settings.steps
        try:
            rollouts, metrics = self.step(step)
            if last or step % self.settings.evaluate_every == 0:
                metrics |= self.evaluate(step, sampled=last)
        except DivergedError as error:
            raise DivergedError(
                f"{error} Training stopped at step {step}; {self.run.kept()}. Try a lower learning rate."
            ) from error
        rows = rollouts.with_row_advantages().rows_for_log(step, self.settings.samples_logged, self._spell)
        self.run.sample({**row, "phase": "train"} for row in rows)
        self.run.log(step, metrics)

    def _spell(self, token: int) -> str:
        return self.policy.decode([token], skip_special=False)

    def _add_reward(self, rollouts: Rollouts) -> dict[str, float]:
        """Rewards beyond the verdict, of responses or of tokens."""
        if self.extra_reward is None:
            return {}
        extra = self.extra_reward(rollouts)
        if extra.ndim == 1:
            rollouts.rewards = rollouts.rewards + extra
        else:
            rollouts.token_rewards = extra
        return {"reward/extra": float(extra.sum()) / len(rollouts), **getattr(self.extra_reward, "metrics", dict)()}

    def _credit(self, rollouts: Rollouts) -> _Logprobs:
        """Fill in the advantages, and mark as not trained what the selection leaves out."""
        selection, rows = self.algorithm.selection, torch.arange(len(rollouts))
        kept = torch.ones(len(rollouts), dtype=torch.bool)
        if selection is not None:
            kept = selection.keep(rollouts, self.run.stream("selection"))
            rows = kept.nonzero()[:, 0] if selection.before_credit else rows
            if rollouts.trained.ndim == 1:  # what gives the credit may look at it; of tokens it tells who wrote them
                rollouts.trained = rollouts.trained & kept
        logprobs = _Logprobs(None, None)
        if len(rows):
            part = rollouts if len(rows) == len(rollouts) else rollouts.take_rows(rows)
            logprobs, kl = self._logprobs(part), None
            if self.algorithm.kl.in_reward and logprobs.policy is not None and logprobs.reference is not None:
                kl = self.algorithm.kl.estimator(logprobs.policy, logprobs.reference)
            advantages = self.creditor.give(part, kl, self.algorithm.kl.coefficient)
            rollouts.advantages = _spread(advantages, rows, len(rollouts))
        rollouts.kl_weights = self.creditor.kl_weights(rollouts)
        if rollouts.trained.ndim == 2:
            rollouts.trained = rollouts.trained & kept[:, None]
        return _Logprobs(*(None if one is None else _spread(one, rows, len(rollouts)) for one in logprobs))

    def _logprobs(self, rollouts: Rollouts) -> _Logprobs:
        """What a KL term needs."""
        kl = self.algorithm.kl
        reference = self.reference(rollouts) if kl.coefficient and self.reference is not None else None
        policy = self.updater.scores(self.policy.model, rollouts) if kl.in_reward else None
        return _Logprobs(policy, reference)

    def _set_rates(self, factor: float) -> None:
        """The learning rates of a step; `factor` is the same for the policy and for what gives the credit."""
        optimizers = (self.updater.optimizer, *self.creditor.optimizers)
        for optimizer, rates in zip(optimizers, (self.base_rates, *self.credit_rates), strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        if self.profile:
            reset_peak_memory(self.policy.model.device)
        began = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began
        if self.profile:
            self.memory[phase] = max(self.memory.get(phase, 0.0), peak_memory(self.policy.model.device))

    def _save(self, step: int) -> None:
        tensors = snapshot(self.policy.model, self.updater.optimizer)
        tensors |= {CREDIT + name: value for name, value in self.creditor.tensors().items()}
        with self.collector.as_collected():
            state = {"deck": self.deck.state(), "falls_until": self.settings.falls_until}
            save(self.run, self.ranks, step, tensors, state)

    def _go_back(self, checkpoint: Checkpoint) -> None:
        if checkpoint.state["falls_until"] != self.settings.falls_until:
            raise UserError(
                f"The learning rate of this run falls to 0 at step {checkpoint.state['falls_until']}, so the run"
                " cannot be made longer or shorter: start another one with the number of steps that you want."
            )
        restore(self.policy.model, self.updater.optimizer, checkpoint.tensors)
        self.creditor.load(under(checkpoint.tensors, CREDIT))
        self.deck.load_state(checkpoint.state["deck"])


class _Logprobs(NamedTuple):
    """(N, T) log-probs before the update, where a KL term has asked for them."""

    policy: Tensor | None
    reference: Tensor | None


def _spread(values: Tensor, rows: Tensor, number: int) -> Tensor:
    """Values of the given rows among `number` rows, zero in the others."""
    if len(rows) == number:
        return values
    return values.new_zeros((number, *values.shape[1:])).index_copy_(0, rows, values)


def _rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]

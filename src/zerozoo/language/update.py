"""One rollout becomes gradient steps: mini-batches of whole groups, micro-batches by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from zerozoo.language.algorithm import Algorithm
from zerozoo.language.logprobs import TokenScores, response_scores, split_by_tokens
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import ALONE, Ranks
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.shared_prompts import can_share
from zerozoo.losses.aggregation import token_weights
from zerozoo.losses.policy import clipped_surrogate, clipped_tokens
from zerozoo.runs.errors import DivergedError


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass.

    Attributes:
        rows: of the rollouts.
        shared: whether rows of a group share their prompt.
        tokens, padded: positions that are computed, without and with padding.
    """

    rows: list[int]
    shared: bool
    tokens: int
    padded: int


@dataclass(frozen=True)
class UpdateSettings:
    """How a rollout is cut into gradient steps.

    Attributes:
        updates_per_step: optimiser steps per pass over the rollout, each on its own share of the groups.
        epochs: passes over the rollout.
        tokens_per_microbatch: most padded tokens in one forward pass; changes memory, not the numbers.
        packed: rows of a micro-batch behind one another without padding.
        share_prompts: run the prompt of a group once where that is possible; changes time, not the numbers.
        max_gradient_norm: gradients are scaled down to this norm.
        temperature: the sampling temperature, which the log-probs must share (trap 10).
    """

    updates_per_step: int = 1
    epochs: int = 1
    tokens_per_microbatch: int = 2048
    packed: bool = False
    share_prompts: bool = True
    max_gradient_norm: float = 1.0
    temperature: float = 1.0


class Updater:
    """Trains a policy on rollouts.

    Args:
        policy: the model to train.
        optimizer: over its trainable parameters.
        algorithm: the objective.
        settings: how rollouts are cut.
        ranks: the processes that share the work of an update.
    """

    def __init__(
        self,
        policy: LanguageModel,
        optimizer: torch.optim.Optimizer,
        algorithm: Algorithm,
        settings: UpdateSettings,
        ranks: Ranks = ALONE,
    ) -> None:
        self.policy, self.optimizer = policy, optimizer
        self.algorithm, self.settings = algorithm, settings
        self.ranks = ranks
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def scores(self, model: torch.nn.Module, rollouts: Rollouts) -> Tensor:
        """(N, T) log-probs of the drawn tokens under `model`, zero where padded; no gradient, no dropout."""
        result = torch.zeros_like(rollouts.samples.logprobs)
        training = model.training
        model.eval()
        with torch.no_grad():
            for batch in self._microbatches(rollouts, self._my_rows(rollouts, range(len(rollouts)))):
                flat = self._forward(model, rollouts, batch).logprobs.cpu()
                picked = torch.tensor(batch.rows)
                mask = torch.arange(result.shape[1]) < rollouts.samples.lengths[picked, None]
                part = result.new_zeros(mask.shape)
                part[mask] = flat
                result[picked] = part
        model.train(training)
        self.ranks.add([result])
        return result

    def update(self, rollouts: Rollouts, reference: Tensor | None = None) -> dict[str, float]:
        """Train on one rollout whose credit has been given.

        The first gradient step is on-policy: its old log-probs are the new ones, detached, so the ratio is
        exactly 1 (trap 16). Only when more steps follow are the old log-probs computed beforehand, by the
        learner itself (M1).

        Args:
            reference: (N, T) log-probs under the reference model when the algorithm has a KL term in the loss.

        Raises:
            DivergedError: when loss or gradient is not finite; the weights are those before that step.
        """
        batches = self._minibatches(rollouts)
        steps = [batch for _ in range(self.settings.epochs) for batch in batches]
        old = self.scores(self.policy.model, rollouts) if len(steps) > 1 else None
        totals = _Totals(has_kl=reference is not None)
        _prepare(self.policy.model)
        for number, rows in enumerate(steps):
            self._gradient_step(rollouts, rows, old if number else None, reference, totals)
        totals.add(self.ranks)
        return totals.metrics()

    def _minibatches(self, rollouts: Rollouts) -> list[list[int]]:
        """Rows of each mini-batch: consecutive groups, in the order in which they were drawn."""
        groups = rollouts.groups.unique(sorted=True)
        # More updates than groups would make empty mini-batches.
        parts = torch.tensor_split(groups, min(self.settings.updates_per_step, len(groups)))
        return [torch.isin(rollouts.groups, part).nonzero()[:, 0].tolist() for part in parts]

    def _my_rows(self, rollouts: Rollouts, rows: Sequence[int]) -> list[int]:
        """Those of the given rows that this process works on: whole groups, dealt in turn."""
        group_of = rollouts.groups.tolist()
        groups = list(dict.fromkeys(group_of[row] for row in rows))
        mine = set(groups[self.ranks.rank :: self.ranks.size])
        return [row for row in rows if group_of[row] in mine]

    def _microbatches(self, rollouts: Rollouts, rows: list[int]) -> list[MicroBatch]:
        budget = self.settings.tokens_per_microbatch
        groups: dict[int, list[int]] = {}
        for row in rows:
            groups.setdefault(int(rollouts.groups[row]), []).append(row)
        together, alone = [], []
        for members in groups.values():
            sequences = rollouts.sequences(members)
            prompt, responses = len(sequences.prompts[0]), [len(response) for response in sequences.responses]
            if self.settings.share_prompts and can_share(self.policy.model, prompt, responses):
                together.append((members, prompt + sum(responses) - len(responses)))
            else:
                alone += [([row], length) for row, length in zip(members, sequences.lengths, strict=True)]
        batches = []
        for units, shared in ((together, True), (alone, False)):
            for batch in split_by_tokens([length for _, length in units], budget):
                lengths = [units[index][1] for index in batch]
                padded = sum(lengths) if self.settings.packed and not shared else len(batch) * max(lengths)
                members = [row for index in batch for row in units[index][0]]
                batches.append(MicroBatch(members, shared, sum(lengths), padded))
        return batches

    def _forward(
        self,
        model: torch.nn.Module,
        rollouts: Rollouts,
        batch: MicroBatch,
        entropy_gradient: bool = False,
    ) -> TokenScores:
        with self.policy.precision():
            return response_scores(
                model,
                rollouts.sequences(batch.rows),
                temperature=self.settings.temperature,
                packed=self.settings.packed,
                shared=batch.shared,
                entropy_gradient=entropy_gradient,
            )

    def _gradient_step(
        self, rollouts: Rollouts, rows: list[int], old: Tensor | None, reference: Tensor | None, totals: _Totals
    ) -> None:
        """One optimiser step on the given rows; none when no row carries a gradient."""
        picked = torch.tensor(rows)
        trained = rollouts.trained[picked]
        # The weights come from all rows of the mini-batch before any is left out, so leaving out rows without
        # advantage changes no number.
        lengths = rollouts.samples.lengths[picked] * trained
        weights = torch.zeros(len(rollouts))
        weights[picked] = token_weights(lengths, self.algorithm.aggregation, self.algorithm.length_constant)
        live = trained & (rollouts.advantages[picked] != 0) if self.algorithm.skips_rows else trained
        live_rows = picked[live].tolist()
        totals.rows += len(rows)
        totals.live_rows += len(live_rows)
        if not live_rows:
            totals.skipped_steps += 1
            return
        self.optimizer.zero_grad(set_to_none=True)
        for batch in self._microbatches(rollouts, self._my_rows(rollouts, live_rows)):
            scores = self._forward(self.policy.model, rollouts, batch, self.algorithm.entropy_coefficient != 0)
            self._loss(scores, rollouts, batch.rows, weights, old, reference, totals).backward()
            totals.positions += batch.tokens
            totals.padded += batch.padded
        self._add_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_gradient_norm)
        if not torch.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise DivergedError(f"The gradient norm became {float(norm)}; the step was not taken.")
        self.optimizer.step()
        totals.norms.append(norm.detach())

    def _add_gradients(self) -> None:
        """Every process gets the gradient of the whole mini-batch; one that had no row of it brings zeros."""
        if self.ranks.size == 1:
            return
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.ranks.add(parameter.grad for parameter in self.parameters if parameter.grad is not None)

    def _loss(
        self,
        scores: TokenScores,
        rollouts: Rollouts,
        rows: list[int],
        weights: Tensor,
        old: Tensor | None,
        reference: Tensor | None,
        totals: _Totals,
    ) -> Tensor:
        """This micro-batch's share of the loss of its mini-batch; shares add up to the whole."""
        algorithm, clip = self.algorithm, self.algorithm.clip
        device = scores.logprobs.device
        picked = torch.tensor(rows)
        repeats = rollouts.samples.lengths[picked]
        advantages = rollouts.advantages[picked].repeat_interleave(repeats).to(device)  # (M,)
        weight = weights[picked].repeat_interleave(repeats).to(device)  # (M,)
        behaviour = rollouts.flat(rollouts.samples.logprobs, rows).to(device)
        before = scores.logprobs.detach() if old is None else rollouts.flat(old, rows).to(device)
        token_loss = clipped_surrogate(scores.logprobs, before, advantages, clip.low, clip.high)
        if algorithm.entropy_coefficient:
            token_loss = token_loss - algorithm.entropy_coefficient * scores.entropy
        if reference is not None:
            anchor = rollouts.flat(reference, rows).to(device)
            divergence = algorithm.kl.estimator(scores.logprobs, anchor)
            token_loss = token_loss + algorithm.kl.coefficient * divergence
            totals.kl = totals.kl + divergence.detach().sum()
        loss = (weight * token_loss).sum()
        totals.tokens += len(scores.logprobs)
        totals.loss = totals.loss + loss.detach()
        totals.entropy = totals.entropy + scores.entropy.detach().sum()
        clipped = clipped_tokens(scores.logprobs, before, advantages, clip.low, clip.high)
        totals.clipped = totals.clipped + clipped.sum()
        if not totals.norms:  # later steps have moved the weights: only the first compares like with like
            totals.mismatch = torch.maximum(
                totals.mismatch.to(device), (scores.logprobs.detach() - behaviour).abs().max()
            )
        return loss


def _prepare(model: torch.nn.Module) -> None:
    """No dropout between sampler and learner (trap 16), but gradient checkpointing where it was asked for."""
    model.eval()
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            # transformers checkpoints a layer only in training mode; the dropouts are in its parts, which stay as
            # they are.
            layer.training = layer.gradient_checkpointing


class _Totals:
    """Sums over all tokens of a rollout's update, kept as tensors so that nothing waits for the device."""

    def __init__(self, has_kl: bool) -> None:
        self.has_kl = has_kl
        self.rows = self.live_rows = self.skipped_steps = self.tokens = self.positions = self.padded = 0
        self.loss = torch.zeros(())
        self.entropy = torch.zeros(())
        self.clipped = torch.zeros(())
        self.kl = torch.zeros(())
        self.mismatch = torch.zeros(())
        self.norms: list[Tensor] = []

    def add(self, ranks: Ranks) -> None:
        """Sums over all processes; rows, steps and norms are the same in each already."""
        if ranks.size == 1:
            return
        sums = torch.stack([torch.as_tensor(float(one)) for one in self._sums()]).double()
        ranks.add([sums])
        self.loss, self.entropy, self.clipped, self.kl = sums[:4].unbind()
        self.tokens, self.positions, self.padded = (int(one) for one in sums[4:])
        self.mismatch = torch.as_tensor(ranks.highest(float(self.mismatch)))

    def _sums(self) -> tuple[float | Tensor, ...]:
        return self.loss, self.entropy, self.clipped, self.kl, self.tokens, self.positions, self.padded

    def metrics(self) -> dict[str, float]:
        """Means per token of the rows in the update; entropy in nats, whatever the aggregation (trap 28).

        Rows that were left out (share: `update/row_share`) are in no mean. Loss and gradient norm are means over the
        gradient steps; a step that was skipped has the loss 0.
        """
        result = {
            "update/rows": float(self.live_rows),
            "update/row_share": self.live_rows / max(1, self.rows),
            "update/skipped_steps": float(self.skipped_steps),
            "update/response_tokens": float(self.tokens),
            "update/tokens": float(self.positions),
            "update/padded_tokens": float(self.padded),
        }
        if self.tokens:
            result |= {
                "policy/loss": float(self.loss) / (len(self.norms) + self.skipped_steps),
                "policy/entropy": float(self.entropy) / self.tokens,
                "policy/clip_fraction": float(self.clipped) / self.tokens,
                "policy/gradient_norm": float(torch.stack(self.norms).mean()),
                "policy/sampler_mismatch": float(self.mismatch),
            }
            if self.has_kl:
                result["policy/kl"] = float(self.kl) / self.tokens
        return result

"""One rollout becomes gradient steps: mini-batches of whole groups, micro-batches by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zerozoo.language.algorithm import Algorithm
from zerozoo.language.batches import (
    MicroBatch,
    evened,
    microbatches,
    minibatches,
    prepare,
    sequences_of,
    share_of_rank,
    take_step,
)
from zerozoo.language.logprobs import TokenScores, response_scores
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import ALONE, Ranks
from zerozoo.language.rollouts import Rollouts
from zerozoo.losses.aggregation import token_weights
from zerozoo.losses.divergences import k3
from zerozoo.losses.weights import truncated_importance_weight


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
        importance_cap: above 0, the loss of a token is weighted by the ratio of the learner's probability before the
            update to the sampler's, at most this (`losses.weights`); for samplers that compute otherwise, and for older
            weights (decoupled PPO: Hilton et al. 2022; with the truncation: AReaL, Fu et al. 2025).
    """

    updates_per_step: int = 1
    epochs: int = 1
    tokens_per_microbatch: int = 2048
    packed: bool = False
    share_prompts: bool = True
    max_gradient_norm: float = 1.0
    temperature: float = 1.0
    importance_cap: float = 0.0


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
            for batch in self._microbatches(rollouts, range(len(rollouts))):
                flat = self._forward(model, rollouts, batch).logprobs.cpu()
                if not batch.rows:
                    continue
                picked = torch.tensor(batch.rows)
                mask = torch.arange(result.shape[1]) < rollouts.samples.lengths[picked, None]
                part = result.new_zeros(mask.shape)
                part[mask] = flat
                result[picked] = part
        model.train(training)
        self.ranks.add([result])
        return result

    def update(
        self, rollouts: Rollouts, reference: Tensor | None = None, old: Tensor | None = None
    ) -> dict[str, float]:
        """Train on one rollout whose credit has been given.

        The first gradient step is on-policy: its old log-probs are the new ones, detached, so the ratio is
        exactly 1 (trap 16). Only when more steps follow are the old log-probs computed beforehand, by the
        learner itself (M1).

        Args:
            reference: (N, T) log-probs under the reference model when the algorithm has a KL term in the loss.
            old: (N, T) log-probs under the policy as it is now, where somebody has computed them already.

        Raises:
            DivergedError: when loss or gradient is not finite; the weights are those before that step.
        """
        batches = self._minibatches(rollouts)
        steps = [batch for _ in range(self.settings.epochs) for batch in batches]
        if old is None and len(steps) > 1:
            old = self.scores(self.policy.model, rollouts)
        totals = _Totals(has_kl=reference is not None, has_importance=self.settings.importance_cap > 0)
        prepare(self.policy.model)
        for number, rows in enumerate(steps):
            self._gradient_step(rollouts, rows, old if number else None, reference, totals)
        totals.add(self.ranks)
        return totals.metrics()

    def _minibatches(self, rollouts: Rollouts) -> list[list[int]]:
        return minibatches(rollouts, self.settings.updates_per_step)

    def _microbatches(self, rollouts: Rollouts, rows: Sequence[int]) -> list[MicroBatch]:
        """Those of this process."""
        settings, mine = self.settings, share_of_rank(rollouts, rows, self.ranks)
        model = self.policy.model
        batches = microbatches(
            model, rollouts, mine, settings.tokens_per_microbatch, settings.share_prompts, settings.packed
        )
        return evened(model, batches, self.ranks)

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
                sequences_of(rollouts, batch),
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
        # The weights come from all rows of the mini-batch before any is left out, so leaving out rows without
        # advantage changes no number.
        weights = torch.zeros(len(rollouts))
        lengths = _trained_lengths(rollouts, picked)
        weights[picked] = token_weights(lengths, self.algorithm.aggregation, self.algorithm.length_constant)
        live = lengths > 0
        if self.algorithm.skips_rows:
            live &= _has_advantage(rollouts, picked)
        live_rows = picked[live].tolist()
        totals.rows += len(rows)
        totals.live_rows += len(live_rows)
        if not live_rows:
            totals.skipped_steps += 1
            return
        self.optimizer.zero_grad(set_to_none=True)
        for batch in self._microbatches(rollouts, live_rows):
            scores = self._forward(self.policy.model, rollouts, batch, self.algorithm.entropy_coefficient != 0)
            if not batch.rows:
                (0 * scores.logprobs.sum()).backward()
                continue
            self._loss(scores, rollouts, batch.rows, weights, old, reference, totals).backward()
            totals.positions += batch.tokens
            totals.padded += batch.padded
        totals.norms.append(take_step(self.optimizer, self.parameters, self.settings.max_gradient_norm, self.ranks))

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
        tokens = _Tokens(rollouts, rows, device)
        logprobs, entropy = tokens.only(scores.logprobs), tokens.only(scores.entropy)
        weight = tokens.of_rows(weights)
        before = logprobs.detach() if old is None else tokens.of_tokens(old)
        arguments = (logprobs, before, tokens.advantages(), tokens.lengths, clip.low, clip.high)
        token_loss = algorithm.policy_loss.tokens(*arguments)
        behaviour = tokens.of_tokens(rollouts.samples.logprobs)
        if self.settings.importance_cap:
            importance = truncated_importance_weight(before, behaviour, self.settings.importance_cap)
            token_loss = importance * token_loss
            totals.importance = totals.importance + importance.sum()
            totals.capped = totals.capped + (importance >= self.settings.importance_cap).sum()
        if algorithm.entropy_coefficient:
            token_loss = token_loss - algorithm.entropy_coefficient * entropy
        if reference is not None:
            divergence = algorithm.kl.estimator(logprobs, tokens.of_tokens(reference))
            weighted = divergence if rollouts.kl_weights is None else tokens.of_tokens(rollouts.kl_weights) * divergence
            token_loss = token_loss + algorithm.kl.coefficient * weighted
            totals.kl = totals.kl + divergence.detach().sum()
        loss = (weight * token_loss).sum()
        totals.tokens += len(logprobs)
        totals.loss = totals.loss + loss.detach()
        totals.entropy = totals.entropy + entropy.detach().sum()
        totals.clipped = totals.clipped + algorithm.policy_loss.clipped(*arguments).sum()
        if not totals.norms:  # later steps have moved the weights: only the first compares like with like
            totals.mismatch = torch.maximum(totals.mismatch.to(device), (logprobs.detach() - behaviour).abs().max())
            totals.mismatch_kl = totals.mismatch_kl + k3(behaviour, logprobs.detach()).sum()
            totals.compared += len(logprobs)
        return loss


def _trained_lengths(rollouts: Rollouts, picked: Tensor) -> Tensor:
    """(n,) tokens of the given rows that enter the loss."""
    lengths, trained = rollouts.samples.lengths[picked], rollouts.trained[picked]
    if trained.ndim == 1:
        return lengths * trained
    return (trained & (torch.arange(trained.shape[1]) < lengths[:, None])).sum(1)


def _has_advantage(rollouts: Rollouts, picked: Tensor) -> Tensor:
    """(n,) bool: the given rows with an advantage other than 0 somewhere."""
    moves = rollouts.advantages[picked] != 0
    return moves if moves.ndim == 1 else moves.any(1)


class _Tokens:
    """The tokens of the given rows that enter the loss, behind one another; M of them.

    Those that an environment wrote are left out here, so no loss, no ratio of a response and no mean ever sees them.
    """

    def __init__(self, rollouts: Rollouts, rows: list[int], device: torch.device) -> None:
        self.rollouts, self.rows, self.device = rollouts, rows, device
        self.picked = torch.tensor(rows)
        by_token = rollouts.trained.ndim == 2
        self.mask = rollouts.flat(rollouts.trained, rows) if by_token else None
        self.lengths = _trained_lengths(rollouts, self.picked).to(device)

    def only(self, flat: Tensor) -> Tensor:
        """The trained ones of all tokens of the rows."""
        return flat if self.mask is None else flat[self.mask.to(flat.device)]

    def of_tokens(self, values: Tensor) -> Tensor:
        """(N, T) -> (M,)."""
        return self.only(self.rollouts.flat(values, self.rows)).to(self.device)

    def of_rows(self, values: Tensor) -> Tensor:
        """(N,) -> (M,)."""
        return values[self.picked].to(self.device).repeat_interleave(self.lengths)

    def advantages(self) -> Tensor:
        values = self.rollouts.advantages
        return self.of_rows(values) if values.ndim == 1 else self.of_tokens(values)


class _Totals:
    """Sums over all tokens of a rollout's update, kept as tensors so that nothing waits for the device."""

    def __init__(self, has_kl: bool, has_importance: bool) -> None:
        self.has_kl, self.has_importance = has_kl, has_importance
        self.rows = self.live_rows = self.skipped_steps = self.tokens = self.positions = self.padded = 0
        self.loss = torch.zeros(())
        self.entropy = torch.zeros(())
        self.clipped = torch.zeros(())
        self.kl = torch.zeros(())
        self.importance = torch.zeros(())
        self.capped = torch.zeros(())  # tokens whose weight has reached the cap
        self.mismatch = torch.zeros(())
        self.mismatch_kl = torch.zeros(())
        self.compared = 0  # tokens of the first gradient step
        self.norms: list[Tensor] = []

    def add(self, ranks: Ranks) -> None:
        """Sums over all processes; rows, steps and norms are the same in each already."""
        if ranks.size == 1:
            return
        sums = torch.stack([torch.as_tensor(float(one)) for one in self._sums()]).double()
        ranks.add([sums])
        self.loss, self.entropy, self.clipped, self.kl, self.mismatch_kl = sums[:5].unbind()
        self.importance, self.capped = sums[5:7].unbind()
        self.tokens, self.positions, self.padded, self.compared = (int(one) for one in sums[7:])
        self.mismatch = torch.as_tensor(ranks.highest(float(self.mismatch)))

    def _sums(self) -> tuple[float | Tensor, ...]:
        averaged = self.loss, self.entropy, self.clipped, self.kl, self.mismatch_kl, self.importance, self.capped
        return *averaged, self.tokens, self.positions, self.padded, self.compared

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
                "policy/sampler_kl": float(self.mismatch_kl) / max(1, self.compared),
            }
            if self.has_kl:
                result["policy/kl"] = float(self.kl) / self.tokens
            if self.has_importance:
                result["policy/importance_weight"] = float(self.importance) / self.tokens
                result["policy/importance_capped"] = float(self.capped) / self.tokens
        return result

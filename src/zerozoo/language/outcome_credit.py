"""Credit for tokens from outcomes alone: a reward model of tokens says which of them decided right and wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zerozoo.language.algorithm import Advantage
from zerozoo.language.batches import take_step
from zerozoo.language.credit import Credit, GroupCredit
from zerozoo.language.example_files import Example
from zerozoo.language.logprobs import Sequences
from zerozoo.language.models import load_model
from zerozoo.language.parallel import ALONE, Ranks
from zerozoo.language.reward_models import RewardModel, RewardScorer
from zerozoo.language.reward_training import TokenOutcomeReward
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.selection import right_and_ended
from zerozoo.language.snapshot import restore, snapshot
from zerozoo.language.supervised import batch_means
from zerozoo.language.training import Parts
from zerozoo.losses.outcomes import side_factors
from zerozoo.losses.preferences import TokenWeights, outcome_token_weights

Probe = Callable[[Rollouts, Tensor, TokenWeights], Mapping[str, float]]


@dataclass
class TokenModel:
    """A reward model of tokens that learns along with the policy.

    Attributes:
        model: the network, with a head of zeros in the paper.
        optimizer: over its weights.
        tokens_per_microbatch: most positions in a forward pass; changes memory, not the numbers.
        max_gradient_norm: gradients are scaled down to this norm.
        probe: (rollouts, trained rows, their weights) -> metrics, for what only a task knows; None: none.
    """

    model: RewardModel
    optimizer: torch.optim.Optimizer
    tokens_per_microbatch: int = 2048
    max_gradient_norm: float = 1.0
    probe: Probe | None = None


def open_token_model(config: Any, parts: Parts, probe: Probe | None = None) -> TokenModel:
    """A copy of `config.model` with a head of zeros, trained with `config.token_learning_rate`; all its weights are."""
    backbone = load_model(config.model, dtype="float32", device=parts.machine.device)
    backbone.autocast = parts.policy.autocast
    model = RewardModel(backbone)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.token_learning_rate, weight_decay=config.weight_decay, fused=True
    )
    return TokenModel(model, optimizer, parts.machine.tokens_per_microbatch, config.max_gradient_norm, probe)


class OutcomeCredit(Credit):
    """A_it = f_i A_i w_it: the advantage of the response, the factor of its side, the weight of the token.

    A_i compares all responses of the group, kept or not; f_i weighs right and wrong against each other among the kept
    ones (`losses.outcomes.side_factors`); w_it comes from the reward model of tokens, as it was before the step
    (`losses.preferences.outcome_token_weights`), or is 1 without one. A response that was cut off counts as wrong.

    Args:
        advantage: (rewards (N,), groups (N,)) -> (N,); above 0 for right responses of a mixed group.
        right_weight, wrong_weight: of the two sides.
        tokens: the reward model of tokens; it learns from the kept responses after each step. None: all w are 1.
    """

    def __init__(
        self,
        advantage: Advantage,
        right_weight: float,
        wrong_weight: float,
        tokens: TokenModel | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.group, self.right_weight, self.wrong_weight = GroupCredit(advantage), right_weight, wrong_weight
        self.tokens, self.ranks = tokens, ranks
        self.optimizers = (tokens.optimizer,) if tokens else ()
        self.seen: tuple[Rollouts, Tensor] | None = None
        self.weights: dict[str, float] = {}

    def give(self, rollouts: Rollouts, kl: Tensor | None, coefficient: float) -> Tensor:
        """(N, T). Raises ValueError for a mask of tokens: OREAL has responses of one turn."""
        if rollouts.trained.ndim == 2:
            raise ValueError("credit from outcomes needs responses that the policy has written itself")
        right, lengths = right_and_ended(rollouts), rollouts.samples.lengths
        factors = side_factors(lengths, right, rollouts.trained, self.right_weight, self.wrong_weight)
        advantages = factors * self.group.give(rollouts, kl, coefficient)
        rows = rollouts.trained.nonzero()[:, 0]
        weights = rollouts.written().float()
        self.seen, self.weights = (rollouts, rows), {}
        if self.tokens is not None and len(rows):
            chosen = self._weigh(rollouts, rows)
            weights = weights.index_copy(0, rows, torch.where(right[rows, None], chosen.right, chosen.wrong))
            self.weights = self._describe(rollouts, rows, right, chosen)
        return advantages[:, None] * weights

    def learn(self) -> dict[str, float]:
        """A gradient step of the reward model on the rows that were trained on; metrics from before it."""
        if self.seen is None or self.tokens is None:
            return {}
        (rollouts, rows), self.seen = self.seen, None
        if not len(rows):
            return {}
        part, sequences = self.tokens, rollouts.sequences(rows.tolist())
        examples = [Example(*row) for row in zip(sequences.prompts, sequences.responses, strict=True)]  # type: ignore[arg-type]
        objective = TokenOutcomeReward(part.model, examples, right_and_ended(rollouts)[rows].float().tolist())
        part.optimizer.zero_grad(set_to_none=True)
        means = batch_means(objective, range(len(examples)), part.tokens_per_microbatch, self.ranks, part.model)
        parameters = [parameter for group in part.optimizer.param_groups for parameter in group["params"]]
        norm = take_step(part.optimizer, parameters, part.max_gradient_norm, self.ranks)
        return {
            "token_reward/loss": means["loss"],
            "token_reward/accuracy": means["reward/accuracy"],
            "token_reward/score": means["reward/score"],
            "token_reward/gradient_norm": float(norm),
            **self.weights,
        }

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.tokens is None else snapshot(self.tokens.model, self.tokens.optimizer)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        if self.tokens is not None:
            restore(self.tokens.model, self.tokens.optimizer, tensors)

    def _weigh(self, rollouts: Rollouts, rows: Tensor) -> TokenWeights:
        """Weights of the tokens of the given rows, (n, T)."""
        assert self.tokens is not None
        scorer = RewardScorer(self.tokens.model, self.tokens.tokens_per_microbatch, self.ranks, normalised=False)
        sequences: Sequences = rollouts.sequences(rows.tolist())
        scores = scorer.tokens(sequences)
        wide = scores.new_zeros((len(rows), rollouts.samples.tokens.shape[1]))
        wide[:, : scores.shape[1]] = scores
        return outcome_token_weights(wide, rollouts.samples.lengths[rows])

    def _describe(self, rollouts: Rollouts, rows: Tensor, right: Tensor, weights: TokenWeights) -> dict[str, float]:
        """Mean weight of the tokens of each side, and what the probe says."""
        assert self.tokens is not None
        written, metrics = rollouts.written()[rows], {}
        for name, side, values in (("right", right[rows], weights.right), ("wrong", ~right[rows], weights.wrong)):
            chosen = written & side[:, None]
            if bool(chosen.any()):
                metrics[f"token_reward/weight_{name}"] = float(values[chosen].mean())
        return metrics | dict(self.tokens.probe(rollouts, rows, weights) if self.tokens.probe else {})

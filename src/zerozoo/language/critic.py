"""A value model for responses, and the credit it gives: PPO with generalised advantage estimation over tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

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
from zerozoo.language.credit import Credit, rewards_of_tokens
from zerozoo.language.decoder import can_pack
from zerozoo.language.heads import decoder_hidden, enter
from zerozoo.language.models import LanguageModel
from zerozoo.language.packing import pack, packed_hidden
from zerozoo.language.parallel import ALONE, Ranks
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import pad_rows
from zerozoo.language.shared_prompts import shared_hidden
from zerozoo.language.snapshot import restore, snapshot
from zerozoo.losses.aggregation import token_weights
from zerozoo.losses.sequence_policy import (
    TokenCredit,
    clipped_value_loss,
    clipped_values,
    explained_variance,
    length_adaptive_lambda,
    token_credit,
    whitened,
)
from zerozoo.runs.errors import UserError


@dataclass(frozen=True)
class CriticSettings:
    """How values become advantages, and how the critic learns.

    Attributes:
        gamma: discount of a token; 1 in nearly all of the literature.
        lam: lambda of the advantages.
        length_alpha: above 0: lambda of the advantages is 1 - 1 / (length_alpha * length) in place of `lam` (VAPO).
        critic_lam: lambda of the returns that the critic learns; 1 is the plain reward to go.
        bootstrap: whether the value of the state in which a response was cut off stands for what would have come; False
            counts it as ended, for recipes that punish the missing end themselves.
        whiten: advantages get mean 0 and deviation 1 over all tokens of the step.
        value_clip: a value learns only until it is this far from what it was; None: no limit.
        updates_per_step, epochs: gradient steps in a pass over the rollouts, and passes.
        tokens_per_microbatch: most padded tokens in one forward pass.
        share_prompts: run the prompt of a group once where that is possible.
        max_gradient_norm: gradients are scaled down to this norm.

    Raises UserError for numbers that no critic could use.
    """

    gamma: float = 1.0
    lam: float = 0.95
    length_alpha: float = 0.0
    critic_lam: float = 0.95
    bootstrap: bool = True
    whiten: bool = True
    value_clip: float | None = 0.2
    updates_per_step: int = 1
    epochs: int = 1
    tokens_per_microbatch: int = 2048
    share_prompts: bool = True
    max_gradient_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("gamma", "lam", "critic_lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}, but must lie between 0 and 1.")
        if not self.length_alpha >= 0:
            raise UserError(f"length_alpha is {self.length_alpha}, but must not be negative.")
        if self.value_clip is not None and not self.value_clip > 0:
            raise UserError(f"value_clip is {self.value_clip}, but must be above 0.")
        for name in ("updates_per_step", "epochs"):
            if getattr(self, name) < 1:
                raise UserError(f"The critic's {name} is {getattr(self, name)}, but must be at least 1.")

    def lambdas(self, lengths: Tensor) -> float | Tensor:
        """Lambda of the advantages: a number, or one a row."""
        return length_adaptive_lambda(lengths, self.length_alpha) if self.length_alpha else self.lam


class ValueModel(nn.Module):
    """A backbone of its own with a scalar head: V of the state before each token of a response, and of its end.

    Args:
        language_model: is taken over; its vocabulary head is dropped.
        head: (H -> 1); None: weights and bias of zero, so that the first values are 0 and say nothing. It works in
            float32 at least, whatever the backbone's products are rounded to: values differ little from token to token.
    """

    def __init__(self, language_model: LanguageModel, head: nn.Linear | None = None) -> None:
        super().__init__()
        self.language_model = language_model
        backbone: Any = language_model.model
        backbone.lm_head = nn.Identity()
        self.backbone = backbone
        if head is None:
            dtype = torch.promote_types(backbone.dtype, torch.float32)
            head = nn.Linear(backbone.config.get_text_config().hidden_size, 1, dtype=dtype, device=backbone.device)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.head = head

    def forward(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], shared: bool) -> Tensor:
        """Values of all rows behind one another, length + 1 of each row: before every token, and after the last.

        Args:
            shared: rows with equal prompts run them once (see `shared_prompts.can_share`).
        """
        device = self.head.weight.device
        with self.language_model.precision():
            # A token behind the last, which itself is never run: now the state after the last one counts, too.
            longer = [[*row, 0] for row in responses]
            if can_pack(self.backbone):
                hidden = packed_hidden(self.backbone, pack(prompts, longer, shared).to(device))
            elif shared:
                hidden = shared_hidden(self.backbone, prompts, longer, device)
            else:
                rows = [[*prompt, *row] for prompt, row in zip(prompts, responses, strict=True)]
                ids, mask = pad_rows(rows, 0, "right")
                places = torch.arange(ids.shape[1])
                starts = torch.tensor([len(prompt) - 1 for prompt in prompts])
                hidden = decoder_hidden(
                    self.backbone, ids.to(device), mask.to(device), places.expand_as(ids).to(device)
                )[(mask & (places >= starts[:, None])).to(device)]
        return self.head(hidden.to(self.head.weight.dtype))[:, 0].clone()  # FSDP wants no view


class Critic(Credit):
    """Advantages of single tokens by GAE, from a value model that learns along with the policy.

    The values of a step are those before its update, for the advantages as for the targets.

    Args:
        model: the value model.
        optimizer: over its weights.
        ranks: the processes that share the work.
    """

    def __init__(
        self, model: ValueModel, optimizer: torch.optim.Optimizer, settings: CriticSettings, ranks: Ranks = ALONE
    ) -> None:
        self.model, self.optimizer, self.settings, self.ranks = model, optimizer, settings, ranks
        self.optimizers = (optimizer,)
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.seen: _Seen | None = None

    def values(self, rollouts: Rollouts) -> Tensor:
        """(N, T + 1) values before every token and, at place `length`, after the last; zero beyond. No gradient."""
        longest = rollouts.samples.tokens.shape[1]
        result = torch.zeros((len(rollouts), longest + 1), dtype=self.model.head.weight.dtype)
        self.model.eval()
        with torch.no_grad():
            for batch in self._microbatches(rollouts, range(len(rollouts))):
                values = self._forward(rollouts, batch).cpu()
                if not batch.rows:
                    continue
                picked = torch.tensor(batch.rows)
                mask = torch.arange(longest + 1) <= rollouts.samples.lengths[picked, None]
                part = result.new_zeros(mask.shape)
                part[mask] = values
                result[picked] = part
        self.ranks.add([result])
        return result

    def give(self, rollouts: Rollouts, kl: Tensor | None, coefficient: float) -> Tensor:
        """(N, T). Raises ValueError for a mask of tokens: which states are decisions is not known here."""
        if rollouts.trained.ndim == 2:
            raise ValueError("a critic needs responses that the policy has written itself, every token of them")
        settings, lengths = self.settings, rollouts.samples.lengths
        every = self.values(rollouts)
        values, rewards = every[:, :-1], rewards_of_tokens(rollouts, kl, coefficient)
        # Nothing comes after a response that ended itself; one that was cut off would have gone on.
        after = every.gather(1, lengths[:, None])[:, 0].masked_fill(rollouts.samples.stopped, 0.0)

        def estimate(lam: float | Tensor) -> TokenCredit:
            beyond = after if settings.bootstrap else None
            return token_credit(rewards.to(values.dtype), values, lengths, settings.gamma, lam, beyond)

        written = rollouts.written()
        advantages = estimate(settings.lambdas(lengths)).advantages
        self.seen = _Seen(rollouts, values, estimate(settings.critic_lam).returns)
        if settings.whiten:
            advantages = whitened(advantages, written)
        return advantages.to(rewards.dtype)

    def learn(self) -> dict[str, float]:
        """Gradient steps on the rollouts that `give` saw last, each on whole groups; means per token.

        Raises:
            DivergedError: the gradient is not finite; the weights are those before that step.
        """
        if self.seen is None:
            return {}
        seen, self.seen = self.seen, None
        totals = _Totals()
        prepare(self.model)
        for _ in range(self.settings.epochs):
            for rows in minibatches(seen.rollouts, self.settings.updates_per_step):
                self._gradient_step(seen, rows, totals)
        return totals.metrics(self.ranks) | seen.metrics()

    def tensors(self) -> dict[str, Tensor]:
        return snapshot(self.model, self.optimizer)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        restore(self.model, self.optimizer, tensors)

    def _microbatches(self, rollouts: Rollouts, rows: Sequence[int]) -> list[MicroBatch]:
        settings, mine = self.settings, share_of_rank(rollouts, rows, self.ranks)
        batches = microbatches(
            self.model.backbone, rollouts, mine, settings.tokens_per_microbatch, settings.share_prompts, states=1
        )
        return evened(self.model, batches, self.ranks)

    def _forward(self, rollouts: Rollouts, batch: MicroBatch) -> Tensor:
        sequences = sequences_of(rollouts, batch)
        return enter(self.model, partial(self.model.forward, sequences.prompts, sequences.responses, batch.shared))

    def _gradient_step(self, seen: _Seen, rows: list[int], totals: _Totals) -> None:
        rollouts, picked = seen.rollouts, torch.tensor(rows)
        weight = float(token_weights(rollouts.samples.lengths[picked], "token-mean")[0])  # the same for every token
        self.optimizer.zero_grad(set_to_none=True)
        for batch in self._microbatches(rollouts, rows):
            every = self._forward(rollouts, batch)
            if not batch.rows:
                (0 * every.sum()).backward()
                continue
            ends = (rollouts.samples.lengths[torch.tensor(batch.rows)] + 1).cumsum(0) - 1
            before_end = torch.ones(len(every), dtype=torch.bool)
            before_end[ends] = False
            values = every[before_end.to(every.device)]
            old, returns = (rollouts.flat(one, batch.rows).to(values.device) for one in (seen.values, seen.returns))
            loss = weight * clipped_value_loss(values, old, returns, self.settings.value_clip).sum()
            loss.backward()
            totals.tokens += len(values)
            totals.loss = totals.loss + loss.detach()
            totals.clipped = totals.clipped + clipped_values(values, old, returns, self.settings.value_clip).sum()
        norm = take_step(self.optimizer, self.parameters, self.settings.max_gradient_norm, self.ranks)
        totals.norms.append(norm)


@dataclass(frozen=True)
class _Seen:
    """Rollouts with the values before the update and what they should have been, both (N, T)."""

    rollouts: Rollouts
    values: Tensor
    returns: Tensor

    def metrics(self) -> dict[str, float]:
        written = self.rollouts.written()
        values, returns = self.values[written], self.returns[written]
        explained = float(explained_variance(values, returns))
        metrics = {"critic/value": float(values.mean()), "critic/return": float(returns.mean())}
        return metrics if explained != explained else metrics | {"critic/explained_variance": explained}


class _Totals:
    """Sums over the gradient steps of one `learn`."""

    def __init__(self) -> None:
        self.tokens = 0
        self.loss = torch.zeros(())
        self.clipped = torch.zeros(())
        self.norms: list[Tensor] = []

    def metrics(self, ranks: Ranks) -> dict[str, float]:
        sums = torch.tensor([float(self.loss), float(self.clipped), float(self.tokens)], dtype=torch.float64)
        ranks.add([sums])
        loss, clipped, tokens = sums.tolist()
        return {
            "critic/loss": loss / len(self.norms),
            "critic/clip_fraction": clipped / tokens,
            "critic/gradient_norm": float(torch.stack(self.norms).mean()),
        }

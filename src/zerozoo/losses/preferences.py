"""Losses on preferences and on outcomes: of the policy (DPO and its kin) and of reward models.

Log-probs here are those of whole responses, sums over their tokens (`sequence_policy.row_sums`); tokens that a pair
shares (the prompt, or the common steps of a per-step pair) belong to the prompt and are in no sum. All losses are to be
MINIMISED and given per pair or per response; the batch mean is the caller's, over the whole batch (trap 17). They
compute -log sigma(x) as softplus(-x), which stays finite and keeps its gradient for every x. A pair's loss may fall
while both of its log-probs do (likelihood displacement): log the chosen log-probs.

Shape letters: P pairs, N responses, T tokens of the longest response.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from zerozoo.losses.shapes import check_floating, check_integer, check_rank, check_same_shape


class Pairs(NamedTuple):
    """Log-probs (P,) of the chosen and the rejected response of each pair, under the policy and under the reference."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor

    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """(P,) log pi - log pi_ref of the chosen and of the rejected responses; the reference gets no gradient.

        Raises ValueError unless all are floating point and of one length.
        """
        check_rank("chosen", self.chosen, 1)
        check_floating(**self._asdict())
        check_same_shape(**self._asdict())
        return self.chosen - self.reference_chosen.detach(), self.rejected - self.reference_rejected.detach()


# --- preference losses of the policy ---


def dpo(pairs: Pairs, beta: float) -> Tensor:
    """l = -log sigma( beta [ log pi(y+)/ref(y+) - log pi(y-)/ref(y-) ] ).

    Shapes: pairs of (P,) -> (P,). beta > 0, in units of 1/nat: a small one lets the policy go far. Raises ValueError
    for other shapes and beta <= 0.
    Source: Rafailov et al. 2023, arXiv 2305.18290, equation 7; per step: arXiv 2406.14532, section 6.
    """
    _check_positive(beta=beta)
    chosen, rejected = pairs.log_ratios()
    return softplus(-beta * (chosen - rejected))


def dpo_length_normalised(pairs: Pairs, chosen_lengths: Tensor, rejected_lengths: Tensor, beta: float) -> Tensor:
    """l = -log sigma( beta/|y+| log pi(y+)/ref(y+) - beta/|y-| log pi(y-)/ref(y-) ).

    The mean log-ratio of a token counts and not the sum, so a longer response is no larger move; beta is larger in
    turn (5 in the paper).

    Shapes: pairs of (P,), lengths (P,) integer, at least 1 -> (P,). Raises ValueError otherwise.
    Source: Tulu 3, arXiv 2411.15124, section 5 (length-normalised DPO).
    """
    _check_positive(beta=beta)
    chosen, rejected = pairs.log_ratios()
    chosen, rejected = _per_token(chosen, chosen_lengths), _per_token(rejected, rejected_lengths)
    return softplus(-beta * (chosen - rejected))


def ipo(pairs: Pairs, tau: float) -> Tensor:
    """l = ( log pi(y+)/ref(y+) - log pi(y-)/ref(y-) - 1 / (2 tau) )^2.

    The gap is led to a finite value, where DPO would widen it for ever on pairs that are always ranked alike.

    Shapes: pairs of (P,) -> (P,). tau > 0 weighs the reference. Raises ValueError for other shapes and tau <= 0.
    Source: Azar et al. 2023, arXiv 2310.12036, equation 17, with sums of log-probs (some libraries take means).
    """
    _check_positive(tau=tau)
    chosen, rejected = pairs.log_ratios()
    return (chosen - rejected - 1 / (2 * tau)).square()


def kto(
    logprobs: Tensor,
    reference: Tensor,
    desirable: Tensor,
    kl: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """l_i = w (1 - sigma(beta (r_i - z)))  if y_i is desirable,  w (1 - sigma(beta (z - r_i)))  otherwise,

        r_i = log pi(y_i) - log ref(y_i),  z = max(0, kl), without gradient.

    Needs no pairs, only a thumb up or down. `kl` is `kto_reference_point`, one number for the batch.

    Shapes: logprobs, reference (N,), desirable (N,) bool, kl () -> (N,). Raises ValueError for other shapes, beta <= 0
    and negative weights.
    Source: Ethayarajh et al. 2024, arXiv 2402.01306, section 4; the authors keep w_D n_D / (w_U n_U) in 1 to 4/3 (n:
    how many responses of each kind).
    """
    _check_positive(beta=beta)
    if desirable_weight < 0 or undesirable_weight < 0:
        raise ValueError(f"weights must not be negative, but are {desirable_weight} and {undesirable_weight}")
    check_rank("logprobs", logprobs, 1)
    check_rank("kl", kl, 0)
    check_floating(logprobs=logprobs, reference=reference, kl=kl)
    check_same_shape(logprobs=logprobs, reference=reference, desirable=desirable)
    _check_bool(desirable=desirable)
    gain = beta * (logprobs - reference.detach() - kl.detach().clamp(min=0))
    # 1 - sigma(x) = sigma(-x), without cancellation
    return torch.where(desirable, desirable_weight * (-gain).sigmoid(), undesirable_weight * gain.sigmoid())


def kto_reference_point(mismatched: Tensor, reference: Tensor) -> Tensor:
    """kl = mean over the batch of log pi(y'|x) - log ref(y'|x), y' being a response to ANOTHER prompt.

    The paper's cheap estimate of the KL of policy and reference, with y' from the same batch; it may be negative, `kto`
    cuts it at 0.

    Shapes: mismatched, reference (N,) -> (). No gradient. Raises ValueError for other shapes or no row.
    Source: Ethayarajh et al. 2024, arXiv 2402.01306, section 4.1.
    """
    check_rank("mismatched", mismatched, 1)
    check_floating(mismatched=mismatched, reference=reference)
    check_same_shape(mismatched=mismatched, reference=reference)
    if not mismatched.numel():
        raise ValueError("the reference point needs at least one response")
    return (mismatched.detach() - reference.detach()).mean()


# --- losses of reward models ---


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> Tensor:
    """l = -log sigma(s+ - s- - margin): P(y+ beats y-) = sigma(s+ - s-), scores in nats up to one constant a prompt.

    Shapes: chosen, rejected (P,) scores, margin (P,) or None for 0 -> (P,). Raises ValueError for other shapes.
    Source: Bradley and Terry 1952; as a reward model: Ouyang et al. 2022, arXiv 2203.02155, equation 1; margin:
    Touvron et al. 2023 (Llama 2), arXiv 2307.09288, section 3.2.2.
    """
    check_rank("chosen", chosen, 1)
    check_floating(chosen=chosen, rejected=rejected)
    check_same_shape(chosen=chosen, rejected=rejected)
    gap = chosen - rejected
    if margin is not None:
        check_same_shape(chosen=chosen, margin=margin)
        gap = gap - margin.detach()
    return softplus(-gap)


def outcome_loss(scores: Tensor, outcomes: Tensor) -> Tensor:
    """l = -y log sigma(s) - (1 - y) log(1 - sigma(s)): pointwise, for outcome and process reward models.

    y is 0 or 1, or the share of continuations that came right (soft step labels of Monte-Carlo rollouts).

    Shapes: scores (logits) and outcomes the same, any -> the same. Raises ValueError for other shapes and for outcomes
    outside of 0..1. Source: Cobbe et al. 2021, arXiv 2110.14168; steps: Wang et al. 2023 (Math-Shepherd), arXiv
    2312.08935, equations 1 to 4.
    """
    check_floating(scores=scores, outcomes=outcomes)
    check_same_shape(scores=scores, outcomes=outcomes)
    if not bool(((outcomes >= 0) & (outcomes <= 1)).all()):  # False for NaN
        raise ValueError("outcomes must be between 0 and 1")
    return binary_cross_entropy_with_logits(scores, outcomes.detach(), reduction="none")


def token_outcome_loss(scores: Tensor, lengths: Tensor, outcomes: Tensor) -> Tensor:
    """l_i = outcome_loss( mean over the tokens of row i of w_it, y_i ): a reward of each token, learned from outcomes.

    Shapes: scores w (N, T), lengths (N,) integer, 1 to T, outcomes (N,) -> (N,). Padded scores may be anything, NaN
    too. Raises ValueError otherwise. Source: Lyu et al. 2025 (OREAL), arXiv 2502.06781, section 2.3.
    """
    return outcome_loss(_running_means(scores, lengths).gather(1, lengths[:, None] - 1)[:, 0], outcomes)


class TokenWeights(NamedTuple):
    """Weights (N, T) of the tokens of right and of wrong responses, 0 where padded."""

    right: Tensor
    wrong: Tensor


def outcome_token_weights(scores: Tensor, lengths: Tensor) -> TokenWeights:
    """w+_t = max(2 sigma(m_t) - 1, 0),  w-_t = max(1 - 2 sigma(m_t), 0),  m_t = mean of the scores up to token t.

    A token of a right response counts where the model believes in success so far, one of a wrong response where it does
    not. A model whose scores are all 0 (zero-initialised head) gives weights 0: train it before the policy learns.

    Shapes: scores (N, T), lengths (N,) integer, 1 to T -> two of (N, T). No gradient. Raises ValueError otherwise.
    Source: Lyu et al. 2025 (OREAL), arXiv 2502.06781, section 2.3; the running mean as in the released code.
    """
    running = _running_means(scores.detach(), lengths)
    belief = 2 * running.sigmoid() - 1
    valid = _valid(lengths, scores)
    zeros = torch.zeros_like(belief)
    right, wrong = (torch.where(valid, weight.clamp(min=0), zeros) for weight in (belief, -belief))
    return TokenWeights(right, wrong)


def _running_means(scores: Tensor, lengths: Tensor) -> Tensor:
    """(N, T) mean of the scores of a row up to each token; behind its end the sum goes on with zeros."""
    check_rank("scores", scores, 2)
    check_floating(scores=scores)
    kept = torch.where(_valid(lengths, scores), scores, torch.zeros_like(scores))
    return kept.cumsum(1) / torch.arange(1, scores.shape[1] + 1, device=scores.device)


def _valid(lengths: Tensor, scores: Tensor) -> Tensor:
    check_rank("lengths", lengths, 1)
    check_integer(lengths=lengths)
    if len(lengths) != len(scores):
        raise ValueError(f"there are {len(lengths)} lengths, but {len(scores)} rows of scores")
    if lengths.numel() and (int(lengths.min()) < 1 or int(lengths.max()) > scores.shape[1]):
        raise ValueError(f"lengths must be between 1 and {scores.shape[1]}")
    return torch.arange(scores.shape[1], device=scores.device) < lengths[:, None]


def _per_token(log_ratio: Tensor, lengths: Tensor) -> Tensor:
    check_integer(lengths=lengths)
    check_same_shape(log_ratio=log_ratio, lengths=lengths)
    if lengths.numel() and int(lengths.min()) < 1:
        raise ValueError("lengths must be at least 1")
    return log_ratio / lengths


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, but is {value}")


def _check_bool(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.bool:
            raise ValueError(f"{name} must be bool, but is {tensor.dtype}")

"""Policy losses and advantages of whole responses, and what PPO with a critic needs for token sequences.

The tokens of all rows stand behind one another, row after row (a packed batch, as `language.logprobs` gives it), or in
a padded matrix; each docstring says which. Shape letters: N rows (responses), T tokens of the longest, M tokens in all.

Where the other named methods are: DAPO is `policy.clipped_surrogate` with a higher upper clip, "token-mean"
aggregation, `advantages.informative_groups` as its filter and `overlong_penalty` below; Dr. GRPO is
`advantages.group_centred` with "constant" aggregation; RLOO is `advantages.leave_one_out`; REINFORCE++ is
`token_credit` without values, then `whitened`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zerozoo.losses.advantages import group_centred
from zerozoo.losses.shapes import check_floating, check_integer, check_rank, check_same_shape


def row_sums(values: Tensor, lengths: Tensor) -> Tensor:
    """y_i = sum over the tokens of row i: log-probs of tokens become log-probs of responses.

    Shapes: values (M,) row after row, lengths (N,) integers that add up to M -> (N,). Raises ValueError otherwise.
    """
    check_rank("values", values, 1)
    rows = _row_of_token(lengths, values.numel())
    return values.new_zeros(lengths.numel()).index_add(0, rows, values)


# --- advantages over the whole batch ---


def whitened(values: Tensor, weights: Tensor | None = None, eps: float = 1e-8) -> Tensor:
    """(x - m) / sqrt(s^2 + eps),  m = sum w x / sum w,  s^2 = sum w (x - m)^2 / sum w: over everything at once.

    `weights` 0 leaves an entry out (padding; its result is 0, whatever it holds); lengths as weights of rows give the
    moments over tokens. Values that are all equal give exactly 0, as in `advantages` (trap 18). PPO whitens its
    advantages so. The batch must be the whole one (all ranks, all micro-batches): trap 17.

    Shapes: values any, weights of the same shape and not negative, or None -> the same. No gradient. Raises ValueError
    for other shapes.
    Source: Tulu 3's `masked_whiten` (arXiv 2411.15124; released code of open-instruct), there with the unbiased
    variance; with 1/n as here: Andrychowicz et al. 2021, arXiv 2006.05990, section 3.5.
    """
    check_floating(values=values)
    values = values.detach()
    weights = torch.ones_like(values) if weights is None else weights.to(values.dtype)
    check_same_shape(values=values, weights=weights)
    counted = weights > 0
    if not bool(counted.any()):
        return torch.zeros_like(values)
    kept = torch.where(counted, values, torch.zeros_like(values))
    total = weights.sum()
    mean = (weights * kept).sum() / total
    variance = (weights * (kept - mean).square()).sum() / total
    inside = values[counted]
    if bool(inside.min() == inside.max()):
        return torch.zeros_like(values)
    return torch.where(counted, (kept - mean) / (variance + eps).sqrt(), torch.zeros_like(values))


def batch_scaled(rewards: Tensor, groups: Tensor) -> Tensor:
    """A_i = (r_i - mean_g) / std of all r_j - mean_g(j) of the batch: the group centres, the batch scales.

    No prompt gains weight by being nearly solved or nearly hopeless, as it does when each group is divided by its own
    deviation. The paper then has its KL, k2, in the loss. Its variant without groups is `token_credit` without values
    and then `whitened`, over all tokens.

    Shapes: rewards (N,) float, groups (N,) integer ids -> (N,). Raises ValueError for other ranks or types.
    Source: Hu et al. 2025, REINFORCE++, arXiv 2501.03262, the variant with a baseline.
    """
    return whitened(group_centred(rewards, groups))


def overlong_penalty(lengths: Tensor, longest: int, buffer: int) -> Tensor:
    """p_i = 0 up to longest - buffer tokens, then (longest - buffer - len_i) / buffer, and -1 beyond `longest`.

    DAPO's soft punishment of responses near the limit, to be added to the reward.

    Shapes: lengths (N,) integer -> (N,) float32, between -1 and 0. Raises ValueError unless 0 < buffer <= longest.
    Source: Yu et al. 2025 (DAPO), arXiv 2503.14476, equation 13.
    """
    check_rank("lengths", lengths, 1)
    check_integer(lengths=lengths)
    if not 0 < buffer <= longest:
        raise ValueError(f"buffer must be above 0 and at most {longest}, but is {buffer}")
    return ((longest - buffer - lengths).float() / buffer).clamp(-1, 0)


# --- policy losses ---


def gspo_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, lengths: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """l_t = max(-A_t s_t, -A_t clip(s_t, 1 - clip_low, 1 + clip_high)),  s_t = sg[s_i] pi_t / sg[pi_t],

        s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|) = exp(mean over the row of logprobs - old_logprobs).

    The ratio is that of the response, per token in geometric mean, so a response is clipped as a whole. The loss to be
    MINIMISED is given per token (value s_i, gradient -A_t s_i grad logprobs), in the token form of the paper: with
    "sequence-mean" aggregation and the same A for all tokens of a row, value and gradient are those of the sequence
    form  (1/N) sum_i max(-A_i s_i, -A_i clip(s_i)). The ranges are far narrower than PPO's (paper: 3e-4 and 4e-4).

    Shapes: logprobs, old_logprobs, advantages (M,), lengths (N,) that add up to M, whole rows only -> (M,). Raises
    ValueError for other shapes, integer tensors and negative clips.
    Source: Zheng et al. 2025 (GSPO), arXiv 2507.18071, equations 5 to 7 and, in token form, 13 and 14.
    """
    ratio = _sequence_ratio(logprobs, old_logprobs, advantages, lengths, clip_low, clip_high)
    advantages = advantages.detach()
    # One in value; it carries the gradient of its own token.
    ratio = ratio * (logprobs - logprobs.detach()).exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))


def gspo_clipped_tokens(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, lengths: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """True where `gspo_surrogate` has no gradient though A is not 0: (A > 0 and s > high) or (A < 0 and s < low).

    Shapes and errors as `gspo_surrogate` -> (M,) bool.
    """
    ratio = _sequence_ratio(logprobs, old_logprobs, advantages, lengths, clip_low, clip_high)
    return ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))


def cispo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """l = -sg[clip(rho, 1 - clip_low, 1 + clip_high)] A logprobs,  rho = exp(logprobs - old_logprobs).

    The loss to be MINIMISED, per token. The weight is clipped and the gradient is not: every token keeps one, also the
    rare ones ("however", "wait") whose ratio PPO's clip would silence. clip_low of 1 or more is no lower bound, as in
    the paper, which tunes the upper one only. The value is not that of a surrogate (it is a weighted log-likelihood).

    Shapes: all (N, T) or all (M,) -> the same. "token-mean" aggregation in the paper. Raises ValueError for other
    shapes, integer tensors and negative clips.
    Source: MiniMax 2025 (MiniMax-M1), arXiv 2506.13585, equations 4 and 5.
    """
    weight = _token_ratio(logprobs, old_logprobs, advantages, clip_low, clip_high).clamp(1 - clip_low, 1 + clip_high)
    return -weight * advantages.detach() * logprobs


def cispo_clipped_tokens(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """True where the weight of `cispo` is clipped and A is not 0; these tokens keep a gradient, of bounded weight.

    Shapes and errors as `cispo` -> bool of the same shape.
    """
    ratio = _token_ratio(logprobs, old_logprobs, advantages, clip_low, clip_high)
    return (advantages != 0) & ((ratio < 1 - clip_low) | (ratio > 1 + clip_high))


# --- PPO with a critic ---


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """l = max((V - G)^2, (V_clip - G)^2) / 2,  V_clip = V_old + clip(V - V_old, -clip, clip).

    Per token. The critic gets no gradient where it has moved by more than `clip` since the rollout, unless the
    unclipped error is the larger one. None turns the clip off.

    Shapes: all (N, T) or all (M,) -> the same; the gradient flows through `values` only. Padded positions must hold
    finite values. Raises ValueError for other shapes and clip <= 0.
    Source: released code of Schulman et al. 2017 (PPO), arXiv 1707.06347; Tulu 3, arXiv 2411.15124, clip 0.2.
    """
    check_floating(values=values, old_values=old_values, returns=returns)
    check_same_shape(values=values, old_values=old_values, returns=returns)
    old_values, returns = old_values.detach(), returns.detach()
    error = (values - returns).square()
    if clip is None:
        return error / 2
    if clip <= 0:
        raise ValueError(f"clip must be positive or None, but is {clip}")
    moved = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum(error, (moved - returns).square()) / 2


def clipped_values(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """True where `clipped_value_loss` has no gradient: V has moved by more than `clip`, and not away from G.

    Shapes and errors as `clipped_value_loss` -> bool of the same shape.
    """
    check_same_shape(values=values, old_values=old_values, returns=returns)
    if clip is None:
        return torch.zeros_like(values, dtype=torch.bool)
    step = (values - old_values).detach()
    moved = old_values + step.clamp(-clip, clip)
    return (step.abs() > clip) & ((moved - returns).square() > (values.detach() - returns).square())


def token_rewards(
    scores: Tensor, lengths: Tensor, longest: int, kl: Tensor | None = None, coefficient: float = 0.0
) -> Tensor:
    """r_it = score_i at the last token of row i, minus coefficient * kl_it at every token; 0 where padded.

    Use k1 of the policy that sampled as `kl` (see `divergences`). Rewards of steps are added by the caller at the last
    token of each step.

    Shapes: scores (N,) float, lengths (N,) integer, kl (N, longest) or None -> (N, longest). Padded kl may be anything,
    NaN too. Rows of length 0 get nothing. No gradient. Raises ValueError for other shapes.
    Source: Ouyang et al. 2022, arXiv 2203.02155, equation 2, written per token; Tulu 3, arXiv 2411.15124, section 6.
    """
    check_rank("scores", scores, 1)
    check_floating(scores=scores)
    check_same_shape(scores=scores, lengths=lengths)
    valid = _valid(lengths, longest)
    rewards = scores.new_zeros(valid.shape)
    if kl is not None:
        check_same_shape(kl=kl, rewards=rewards)
        rewards = torch.where(valid, -coefficient * kl.detach(), rewards)
    rows = (lengths > 0).nonzero()[:, 0]
    rewards[rows, lengths[rows] - 1] += scores.detach()[rows]
    return rewards


class TokenCredit(NamedTuple):
    """Advantages and returns (targets of the critic) of each token, both (N, T), 0 where padded."""

    advantages: Tensor
    returns: Tensor


def token_credit(
    rewards: Tensor,
    values: Tensor,
    lengths: Tensor,
    gamma: float = 1.0,
    lam: float | Tensor = 0.95,
    bootstrap: Tensor | None = None,
) -> TokenCredit:
    """GAE along the tokens of each response:  A_t = d_t + gamma lambda A_{t+1},  d_t = r_t + gamma V_{t+1} - V_t,

    and returns A_t + V_t. V after the last token is `bootstrap`: the value of the state in which a response was cut off
    at the length limit, and 0 where the response ended itself, for nothing comes after (the two are mixed up easily;
    see `traces`). None counts every response as ended.

    With values of 0 and lambda 1 both are the discounted reward to go.

    Shapes: rewards, values (N, T), lengths (N,) integer, at most T, lam a number or one a row (N,), bootstrap (N,) or
    None -> two of (N, T). Padded entries may be anything, NaN too. No gradient. Raises ValueError for other shapes.
    Source: Schulman et al. 2015, arXiv 1506.02438, equation 16; lambda 0.95 and gamma 1 as in Tulu 3.
    """
    check_rank("rewards", rewards, 2)
    check_same_shape(rewards=rewards, values=values)
    check_rank("lengths", lengths, 1)
    if len(lengths) != len(rewards):
        raise ValueError(f"there are {len(lengths)} lengths, but rewards has {len(rewards)} rows")
    valid = _valid(lengths, rewards.shape[1])
    zeros = torch.zeros_like(rewards)
    rewards = torch.where(valid, rewards.detach(), zeros)
    values = torch.where(valid, values.detach(), zeros)
    following = torch.cat([values[:, 1:], zeros[:, :1]], dim=1)  # (N, T), of the state after each token
    if bootstrap is not None:
        check_same_shape(lengths=lengths, bootstrap=bootstrap)
        rows = (lengths > 0).nonzero()[:, 0]
        following[rows, lengths[rows] - 1] = bootstrap.detach()[rows].to(following.dtype)
    errors = rewards + gamma * following - values  # 0 where padded
    advantages = zeros.clone()
    carried = zeros.new_zeros(len(rewards))
    for place in range(rewards.shape[1] - 1, -1, -1):
        carried = errors[:, place] + gamma * lam * carried
        advantages[:, place] = carried
    return TokenCredit(advantages, torch.where(valid, advantages + values, zeros))


def length_adaptive_lambda(lengths: Tensor, alpha: float) -> Tensor:
    """lambda_i = 1 - 1 / (alpha len_i), and at least 0: the longer a response, the further rewards reach back.

    The weights lambda^t of the errors then add up to alpha len_i, whatever the length; a fixed 0.95 gives the end of a
    response of a thousand tokens no say in its beginning.

    Shapes: lengths (N,) integer -> (N,) float32; rows of length 0 get 0. Raises ValueError for alpha <= 0.
    Source: Yue et al. 2025 (VAPO), arXiv 2504.05118, section 4.2, alpha 0.05 there; its responses are so long that no
    lower bound is needed.
    """
    check_rank("lengths", lengths, 1)
    check_integer(lengths=lengths)
    if alpha <= 0:
        raise ValueError(f"alpha must be above 0, but is {alpha}")
    return (1 - 1 / (alpha * lengths)).clamp(min=0).float()


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """1 - Var(G - V) / Var(G): 1 for a perfect critic, 0 for a constant one, negative for a worse one.

    NaN where the returns differ by rounding at most: then there is nothing to explain.

    Shapes: values, returns (M,), the valid tokens only -> (). No gradient. Raises ValueError for other shapes.
    """
    check_rank("values", values, 1)
    check_same_shape(values=values, returns=returns)
    values, returns = values.detach(), returns.detach()
    total = returns.var(correction=0)
    unexplained = (returns - values).var(correction=0)
    rounding = 100 * torch.finfo(returns.dtype).eps * torch.maximum(values.abs().max(), returns.abs().max())
    return torch.where(total > rounding**2, 1 - unexplained / total, torch.full_like(total, torch.nan))


def _row_of_token(lengths: Tensor, tokens: int) -> Tensor:
    """(M,) the row each token belongs to."""
    check_rank("lengths", lengths, 1)
    check_integer(lengths=lengths)
    if int(lengths.sum()) != tokens:
        raise ValueError(f"lengths add up to {int(lengths.sum())}, but there are {tokens} tokens")
    return torch.arange(lengths.numel(), device=lengths.device).repeat_interleave(lengths)


def _token_ratio(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """rho of each token, without gradient."""
    check_rank("logprobs", logprobs, 1, 2)
    check_floating(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    _check_clip(clip_low, clip_high)
    return (logprobs.detach() - old_logprobs.detach()).exp()


def _sequence_ratio(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, lengths: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """(M,) s_i of the row of each token, without gradient."""
    check_rank("logprobs", logprobs, 1)
    check_floating(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    _check_clip(clip_low, clip_high)
    log_ratio = row_sums(logprobs.detach() - old_logprobs.detach(), lengths) / lengths.clamp(min=1)
    return log_ratio.exp()[_row_of_token(lengths, logprobs.numel())]


def _check_clip(clip_low: float, clip_high: float) -> None:
    if clip_low < 0 or clip_high < 0:
        raise ValueError(f"clip_low and clip_high must not be negative, but are {clip_low} and {clip_high}")


def _valid(lengths: Tensor, longest: int) -> Tensor:
    """(N, longest) bool, True for the tokens of each row."""
    check_integer(lengths=lengths)
    if lengths.numel() and (int(lengths.min()) < 0 or int(lengths.max()) > longest):
        raise ValueError(f"lengths must be between 0 and {longest}")
    return torch.arange(longest, device=lengths.device) < lengths[:, None]

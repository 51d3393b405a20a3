"""Losses of value functions: regression, expectiles and other implicit maximisers, quantiles, histograms, CQL.

All are elementwise: the mean over the batch and the sum over an ensemble are the caller's (trap 17: libraries that
average, sum or halve the critics' losses differ two to four times in their effective learning rate). Shape letters:
E members of an ensemble, B batch, S sampled actions, K quantiles, M bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zerozoo.losses.shapes import check_floating, check_rank, check_same_shape

CONJUGATES = ("total-variation", "chi-square", "reverse-kl")
MAXIMISERS = ("expectile", *CONJUGATES)


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """(prediction - target)^2, without a factor 1/2; no gradient to the target.

    Shapes: prediction (..., B), target the same or fewer leading dimensions, as (E, B) and (B,) -> (..., B).
    """
    _check_last("prediction", prediction, "target", target)
    return (prediction - target.detach()).square()


def huber(error: Tensor, threshold: float) -> Tensor:
    """u^2 / 2 for |u| <= d, else d (|u| - d / 2): the gradient is clipped to [-d, d].

    Shapes: any -> the same. Raises ValueError for threshold <= 0. Source: Huber 1964; threshold 20 in f-DVL, Sikchi et
    al. 2023, arXiv 2302.08560 (released code).
    """
    if threshold <= 0:
        raise ValueError(f"threshold must be positive, but is {threshold}")
    return torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=threshold)


def expectile(error: Tensor, tau: float) -> Tensor:
    """|tau - 1(u < 0)| u^2 with u = target - prediction: tau -> 1 approaches the maximum over the data's actions.

    There is no default: papers tune tau (trap 19). The reverse expectile of FISOR, |tau - 1(u > 0)| u^2, which
    approaches the minimum, is `expectile(-u, tau)`.

    Shapes: any -> the same. Raises ValueError unless 0 < tau < 1. Source: Kostrikov et al. 2021 (IQL), arXiv
    2110.06169, equation 5; reverse: Zheng et al. 2024, arXiv 2401.10700.
    """
    if not 0 < tau < 1:
        raise ValueError(f"tau must lie between 0 and 1, but is {tau}")
    weight = ((error < 0).to(error.dtype) - tau).abs()
    return weight * error.square()


def total_variation(error: Tensor) -> Tensor:
    """max(u, 0): the surrogate of the total-variation conjugate of f-DVL.

    Shapes: any -> the same. Source: Sikchi et al. 2023, arXiv 2302.08560, and its released code.
    """
    return error.clamp(min=0)


def chi_square(error: Tensor) -> Tensor:
    """u + u^2 / 4 for u > 0, and 0 for u <= 0: the surrogate of the chi-square conjugate of f-DVL.

    The released code has max(u + u^2 / 4, 0), which is positive again below u = -4 and then pushes a value that is too
    high further up; the paper's surrogate is 0 there.

    Shapes: any -> the same. Source: Sikchi et al. 2023, arXiv 2302.08560.
    """
    positive = error.clamp(min=0)
    return positive + positive.square() / 4


def gumbel(error: Tensor, beta: float, clip: float | None = None, shift: bool = True) -> Tensor:
    """exp(z - c) - z exp(-c) - exp(-c),  z = min(u / beta, clip),  c = max(-1, max of z over the batch).

    Without `shift` c is 0.

    The value that minimises its mean is beta log mean exp(target / beta), whatever c is: the shift only scales the
    loss by exp(-c), so that exp cannot overflow. Errors above the clip have no gradient. With the reverse KL this is
    the V-loss of extreme Q-learning.

    Shapes: error (..., B), the maximum is taken over B -> the same. Raises ValueError for beta <= 0. Source: Garg et
    al. 2023 (XQL), arXiv 2301.02328, equation 11; shift and clip as in its code and in that of arXiv 2302.08560.
    """
    if beta <= 0:
        raise ValueError(f"beta must be positive, but is {beta}")
    z = error / beta
    if clip is not None:
        z = z.clamp(max=clip)
    if not shift:
        return z.exp() - z - 1
    largest = z.detach().amax(-1, keepdim=True).clamp(min=-1)
    return (z - largest).exp() - (z + 1) * (-largest).exp()


def implicit_maximum(error: Tensor, maximiser: str, strength: float, clip: float | None = None) -> Tensor:
    """The V-loss whose minimiser leans to the largest target, with u = target - value:

        expectile                   |strength - 1(u < 0)| u^2                       strength is tau
        total-variation, chi-square -(1 - strength) u + strength fbar(u)            strength is lambda, below 1
        reverse-kl                  `gumbel`(u, strength, clip)                     strength is the temperature beta

    -(1 - lambda) u has the gradient of the dual's (1 - lambda) V. lambda = 1 would drop the only term that lowers V and
    is refused; so is a total variation with lambda <= 1/2, where the minimiser runs away downwards.
    Total variation gives V the (2 lambda - 1) / lambda quantile of the targets.

    Shapes: error (..., B) -> the same. Raises ValueError for an unknown maximiser and a strength outside its range.
    Source: Sikchi et al. 2023 (f-DVL), arXiv 2302.08560.
    """
    if maximiser not in MAXIMISERS:
        raise ValueError(f"unknown maximiser {maximiser!r}, expected one of {', '.join(MAXIMISERS)}")
    if clip is not None and maximiser != "reverse-kl":
        raise ValueError(f"clip belongs to the maximiser reverse-kl and does nothing with {maximiser}")
    if maximiser == "expectile":
        return expectile(error, strength)
    if maximiser == "reverse-kl":
        return gumbel(error, strength, clip)
    lowest = 0.5 if maximiser == "total-variation" else 0.0
    if not lowest < strength < 1:
        raise ValueError(f"lambda of {maximiser} must lie between {lowest} and 1, but is {strength}")
    surrogate = total_variation(error) if maximiser == "total-variation" else chi_square(error)
    return strength * surrogate - (1 - strength) * error


def conjugate(y: Tensor, divergence: str) -> Tensor:
    """f*_p(y) = sup over w >= 0 of w y - f(w): the convex conjugate restricted to non-negative weights.

        total-variation  f(w) = |w - 1| / 2    max(y, -1/2), infinite for y > 1/2
        chi-square       f(w) = (w - 1)^2      y + y^2 / 4 for y > -2, else -1
        reverse-kl       f(w) = w log w        exp(y - 1)

    Shapes: any -> the same. Raises ValueError for an unknown divergence. Source: Sikchi et al. 2023, arXiv 2302.08560,
    section 4 and its table of divergences.
    """
    if divergence not in CONJUGATES:
        raise ValueError(f"unknown divergence {divergence!r}, expected one of {', '.join(CONJUGATES)}")
    if divergence == "total-variation":
        return torch.where(y > 0.5, math.inf, y.clamp(min=-0.5))
    if divergence == "chi-square":
        above = y.clamp(min=-2)
        return above + above.square() / 4
    return (y - 1).exp()


def quantile_huber(quantiles: Tensor, target: Tensor, threshold: float) -> Tensor:
    """sum_i mean_j |tau_i - 1(u_ij < 0)| L(u_ij) / threshold,  u_ij = target_j - quantile_i,  tau_i = (i + 1/2) / K.

    L is the Huber loss; no gradient to the target.

    Shapes: quantiles (..., K), target (..., J) with leading dimensions that broadcast -> (...). Raises ValueError for
    threshold <= 0. Source: Dabney et al. 2017 (QR-DQN), arXiv 1710.10044, equation 10.
    """
    number = quantiles.shape[-1]
    levels = (torch.arange(number, dtype=quantiles.dtype, device=quantiles.device) + 0.5) / number  # (K,)
    error = target.detach()[..., None, :] - quantiles[..., :, None]  # (..., K, J)
    weight = torch.where(error < 0, 1 - levels[:, None], levels[:, None])
    return (weight * huber(error, threshold) / threshold).mean(-1).sum(-1)


def hl_gauss_targets(values: Tensor, edges: Tensor, sigma: float) -> Tensor:
    """p_i(y) = [Phi((v_{i+1} - y) / s) - Phi((v_i - y) / s)] / [Phi((v_M - y) / s) - Phi((v_0 - y) / s)].

    The histogram of a Gaussian of deviation s around y, truncated to [v_0, v_M]; y is clipped to that range first.
    Without gradient, at least in float32 (differences of half-precision CDFs are rounding error).

    Shapes: values (...), edges (M + 1,) ascending -> (..., M), each row sums to 1. sigma in the unit of the values.
    Raises ValueError for sigma <= 0 and other edges.
    Source: Imani and White 2018, arXiv 1806.04613; Farebrother et al. 2024, arXiv 2403.03950, section 3.2.
    """
    check_rank("edges", edges, 1)
    check_floating(values=values, edges=edges)
    if sigma <= 0:
        raise ValueError(f"sigma must be positive, but is {sigma}")
    values = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    values = values.clamp(edges[0], edges[-1])
    cdf = torch.erf((edges - values[..., None]) / (sigma * math.sqrt(2)))  # (..., M + 1), twice the CDF minus 1
    return cdf.diff(dim=-1) / (cdf[..., -1:] - cdf[..., :1])


def cql_penalty(q_sampled: Tensor, log_density: Tensor, q_data: Tensor) -> Tensor:
    """log (1 / S) sum_s exp(Q(a_s) - log mu(a_s)) - Q(a_data),  a_s ~ mu.

    The importance-corrected estimate of log integral exp Q(a) da, minus the value of the data's action. mu is what drew
    each action: uniform on [-1, 1]^m has log mu = -m log 2, the policy its own log-prob; proposals of equal number may
    be mixed along S. The authors' code leaves the constant - log S out, which changes no gradient. log_density gets no
    gradient.

    Shapes: q_sampled (E, S, B), log_density (S, B), q_data (E, B) -> (E, B). For discrete actions pass all of them as
    samples with log_density = -log A. Raises ValueError for other shapes.
    Source: Kumar et al. 2020 (CQL), arXiv 2006.04779, equation 4 and appendix F.
    """
    check_rank("q_sampled", q_sampled, 3)
    check_same_shape(q_sampled=q_sampled[0], log_density=log_density)
    check_same_shape(q_sampled=q_sampled[:, 0], q_data=q_data)
    corrected = q_sampled - log_density.detach()
    return torch.logsumexp(corrected, 1) - math.log(corrected.shape[1]) - q_data


def calibrated(q_sampled: Tensor, returns: Tensor) -> Tensor:
    """max(Q(s, a), G(s)): values of the POLICY's actions that are below the return of the data are not pushed down.

    To be used inside `cql_penalty` for the policy's actions (not for the uniform ones). Where the return is larger
    there is no gradient to Q.

    Shapes: q_sampled (..., B), returns (B,) discounted return to go of the data -> (..., B). Raises ValueError for
    other shapes. Source: Nakamoto et al. 2023 (Cal-QL), arXiv 2303.05479, equation 5.1.
    """
    _check_last("q_sampled", q_sampled, "returns", returns)
    return torch.maximum(q_sampled, returns.detach())


def _check_last(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """`other` has the trailing dimensions of `tensor`: broadcasting must only add leading ones (an ensemble)."""
    if other.ndim > tensor.ndim or tensor.shape[tensor.ndim - other.ndim :] != other.shape:
        raise ValueError(
            f"{other_name} must have the trailing dimensions of {name}, but the shapes are {tuple(other.shape)} "
            f"and {tuple(tensor.shape)}"
        )

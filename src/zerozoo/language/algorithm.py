"""An algorithm is a handful of choices: who gets the credit, what is minimised, how it is averaged, what is kept.

The loop and the update read these values and know no algorithm by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from zerozoo.language.selection import Selection
from zerozoo.losses.advantages import group_centred, group_normalised, leave_one_out
from zerozoo.losses.aggregation import AGGREGATIONS
from zerozoo.losses.divergences import k1, k2, k3
from zerozoo.losses.outcomes import clone_or_push, clone_or_push_clipped
from zerozoo.losses.policy import clipped_surrogate, clipped_tokens
from zerozoo.losses.sequence_policy import (
    batch_scaled,
    cispo,
    cispo_clipped_tokens,
    gspo_clipped_tokens,
    gspo_surrogate,
)
from zerozoo.runs.errors import UserError

Advantage = Callable[[Tensor, Tensor], Tensor]
Divergence = Callable[[Tensor, Tensor], Tensor]
TokenFunction = Callable[[Tensor, Tensor, Tensor, Tensor, float, float], Tensor]

# Each compares the responses of a group with one another.
ADVANTAGES: Mapping[str, Advantage] = {
    "group-normalised": group_normalised,
    "group-centred": group_centred,
    "leave-one-out": leave_one_out,
    "batch-scaled": batch_scaled,
}
DIVERGENCES: Mapping[str, Divergence] = {"k1": k1, "k2": k2, "k3": k3}
KL_PLACES = ("loss", "reward")
OVERLONG = ("keep", "mask")


@dataclass(frozen=True)
class Clip:
    """Range of the PPO ratio: 1 - low to 1 + high."""

    low: float = 0.2
    high: float = 0.2


@dataclass(frozen=True)
class PolicyLoss:
    """What is minimised at each token of the responses.

    Both functions take (logprobs, old_logprobs, advantages, each (M,); lengths (N,); clip_low, clip_high) and give
    (M,): the tokens of N whole rows behind one another, which is what a ratio of whole responses needs.

    Attributes:
        tokens: the loss, with a gradient through `logprobs` only.
        clipped: True where the clip is active, for the metric `policy/clip_fraction`.
    """

    tokens: TokenFunction
    clipped: TokenFunction


def _by_token(function: Callable[[Tensor, Tensor, Tensor, float, float], Tensor]) -> TokenFunction:
    """A function of single tokens, which need not know to which row they belong."""

    def ignoring_rows(
        logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, lengths: Tensor, low: float, high: float
    ) -> Tensor:
        return function(logprobs, old_logprobs, advantages, low, high)

    return ignoring_rows


# PPO and GRPO clip the ratio of each token, GSPO that of each response, CISPO the weight of a token, not its gradient.
TOKEN_RATIO = PolicyLoss(_by_token(clipped_surrogate), _by_token(clipped_tokens))
SEQUENCE_RATIO = PolicyLoss(gspo_surrogate, gspo_clipped_tokens)
CLIPPED_WEIGHT = PolicyLoss(_by_token(cispo), _by_token(cispo_clipped_tokens))
# OREAL clones right responses and pushes wrong ones down.
CLONE_OR_PUSH = PolicyLoss(_by_token(clone_or_push), _by_token(clone_or_push_clipped))


@dataclass(frozen=True)
class KLPenalty:
    """Penalty for leaving the reference model.

    Attributes:
        coefficient: weight; 0 needs no reference model at all.
        estimator: per-token divergence (log-probs, reference log-probs) -> the same shape.
        place: "loss" adds it to the loss of each token; "reward" takes it from the reward: its sum from that of the
            response, or each token's own where credit is given by token.
    """

    coefficient: float = 0.0
    estimator: Divergence = k3
    place: str = "loss"

    @property
    def in_loss(self) -> bool:
        return self.coefficient != 0 and self.place == "loss"

    @property
    def in_reward(self) -> bool:
        return self.coefficient != 0 and self.place == "reward"


@dataclass(frozen=True)
class Algorithm:
    """GRPO as SimpleRL-Zoo writes it (arXiv 2503.18892, section 2), unless fields say otherwise.

    Attributes:
        advantage: (rewards (N,), groups (N,)) -> (N,); a loop that is given another `Credit` does without it.
        clip: range of the ratio.
        aggregation: how token losses become one number, see `losses.aggregation.token_weights`.
        length_constant: tokens that the "constant" aggregation divides by, the longest allowed response; a fixed
            number, because the padded length changes from batch to batch (trap 22).
        kl: penalty for leaving the reference model.
        entropy_coefficient: weight of the entropy bonus.
        overlong: "keep" trains on truncated responses; "mask" leaves them out of the loss, while they still
            count in the mean of their group (as in DAPO; trap 25).
        skip_uninformative: leave groups of equal rewards out of the update. Their advantages are exactly zero, so
            the gradient is the same and only time is saved; it has no effect while a KL or entropy term in the
            loss gives those groups a gradient.
        refill_rounds: most extra rounds of sampling in which groups of equal rewards are replaced by fresh tasks
            (dynamic sampling of DAPO); 0 is off, as in the paper.
        policy_loss: what is minimised at each token: `TOKEN_RATIO` or another of those below it, or your own.
        selection: which rows are trained on; None: all.
    """

    advantage: Advantage = group_normalised
    clip: Clip = field(default_factory=Clip)
    aggregation: str = "token-mean"
    length_constant: float | None = None
    kl: KLPenalty = field(default_factory=KLPenalty)
    entropy_coefficient: float = 0.0
    overlong: str = "keep"
    skip_uninformative: bool = True
    refill_rounds: int = 0
    policy_loss: PolicyLoss = TOKEN_RATIO
    selection: Selection | None = None

    def __post_init__(self) -> None:
        choose("aggregation", self.aggregation, AGGREGATIONS)
        choose("kl place", self.kl.place, KL_PLACES)
        choose("overlong", self.overlong, OVERLONG)
        if self.kl.in_loss and self.kl.estimator is k1:
            raise UserError(
                "k1 as a term of the loss has an expected gradient of zero;"
                " use k3 or k2, or put it into the reward (kl_place=reward)."
            )

    @property
    def skips_rows(self) -> bool:
        """Whether rows without advantage may be left out of the update."""
        return self.skip_uninformative and not self.kl.in_loss and self.entropy_coefficient == 0


def choose(what: str, name: str, choices: Mapping[str, object] | tuple[str, ...]) -> str:
    """`name` when it is one of `choices`, otherwise a UserError that lists them."""
    if name not in choices:
        raise UserError(f"Unknown {what} {name!r}; choose one of: {', '.join(choices)}.")
    return name

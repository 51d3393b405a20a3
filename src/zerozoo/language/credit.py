"""Who gets the credit: from the rewards of a step's rollouts to the advantages of rows or of single tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from zerozoo.language.algorithm import Advantage
from zerozoo.language.rollouts import Rollouts
from zerozoo.losses.divergences import kl_in_reward
from zerozoo.losses.sequence_policy import token_credit, token_rewards, whitened


class Credit:
    """A way to give credit. The loop calls `give` before and `learn` after the update of the policy.

    Attributes:
        optimizers: of what it learns itself; their learning rates follow the schedule of the policy's.
    """

    optimizers: Sequence[torch.optim.Optimizer] = ()

    def give(self, rollouts: Rollouts, kl: Tensor | None, coefficient: float) -> Tensor:
        """(N,) or (N, T) advantages; without effect on the rollouts.

        Args:
            rollouts: whole groups, or what a `Selection` before the credit has left of them.
            kl: (N, T) divergence from the reference at each token; None without a KL in the reward. Only that of
                `rollouts.own_tokens()` means anything.
            coefficient: what it costs: the reward of a token is lowered by coefficient * kl.
        """
        raise NotImplementedError

    def kl_weights(self, rollouts: Rollouts) -> Tensor | None:
        """(N, T) factors on the coefficient of a KL in the loss at each token; None: 1 everywhere."""
        return None

    def learn(self) -> dict[str, float]:
        """Learn from the rollouts that `give` saw last; metrics, means per token or per gradient step."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """All that an exact resume needs; no two may share their memory."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""


class GroupCredit(Credit):
    """One advantage for all tokens of a response, by comparing the rewards of its group.

    Rewards and KL of single tokens count by their sum over the response: where in it they were earned has no effect.

    Args:
        advantage: (rewards (N,), groups (N,)) -> (N,).
    """

    def __init__(self, advantage: Advantage) -> None:
        self.advantage = advantage

    def give(self, rollouts: Rollouts, kl: Tensor | None, coefficient: float) -> Tensor:
        rewards = rollouts.rewards
        if rollouts.token_rewards is not None:
            rewards = rewards + rollouts.token_rewards.sum(1)
        if kl is not None:
            rewards = kl_in_reward(rewards, kl, rollouts.own_tokens(), coefficient)
        return self.advantage(rewards, rollouts.groups)


class ReturnCredit(Credit):
    """A_t = sum_{s >= t} gamma^(s - t) r_s, then mean 0 and deviation 1 over all tokens of the step.

    The reward of a response stands at its last token, its KL and the rewards of steps where they arise. There is no
    critic and no group: one response to a prompt is enough.

    Source: Hu et al. 2025, REINFORCE++, arXiv 2501.03262 (gamma 1).
    """

    def __init__(self, gamma: float = 1.0) -> None:
        self.gamma = gamma

    def give(self, rollouts: Rollouts, kl: Tensor | None, coefficient: float) -> Tensor:
        rewards = rewards_of_tokens(rollouts, kl, coefficient)
        lengths = rollouts.samples.lengths
        returns = token_credit(rewards, torch.zeros_like(rewards), lengths, self.gamma, lam=1.0).returns
        return whitened(returns, rollouts.own_tokens())


def rewards_of_tokens(rollouts: Rollouts, kl: Tensor | None, coefficient: float) -> Tensor:
    """(N, T): the reward of each response at its last token, the KL and the token rewards where they arise.

    Tokens that an environment wrote cost no KL.
    """
    longest = rollouts.samples.tokens.shape[1]
    own = None if kl is None else torch.where(rollouts.own_tokens(), kl, torch.zeros_like(kl))
    rewards = token_rewards(rollouts.rewards, rollouts.samples.lengths, longest, own, coefficient)
    return rewards if rollouts.token_rewards is None else rewards + rollouts.token_rewards

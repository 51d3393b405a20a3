"""Inverse dynamics: the action between two states, so that recordings without actions can be learned from.

Source: Zheng et al. 2022 (SS-ORL), arXiv 2210.06518.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zerozoo.control.agent import Adam
from zerozoo.control.agents.bc import BC
from zerozoo.control.episodes import Episodes
from zerozoo.control.normaliser import Normaliser
from zerozoo.control.policies import Gaussian
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch
from zerozoo.runs.errors import DivergedError, UserError
from zerozoo.runs.run import Run


class InverseDynamics(BC):
    """A tanh-Gaussian over the action, cloned from labelled steps; its observations are `windows` of states."""

    def build(self, spec: Spec, config: Any) -> None:
        dropout = config.inverse_dropout
        self.policy = Gaussian(spec, squash=True, hidden=config.inverse_hidden, dropout=dropout, orthogonal=1.0)

    def optimiser(self, net: str) -> Adam:
        return Adam(self.config.inverse_learning_rate)


def windows(data: Episodes, history: int, normaliser: Normaliser) -> Tensor:
    """(N, (history + 2) n): s_{t-history} ... s_t, s_{t+1} of every step, standardised; 0 before the episode."""
    obs = normaliser(torch.from_numpy(data.obs))  # (N + E, n)
    rows = torch.from_numpy(data.obs_index)[:, None] + torch.arange(-history, 2)  # (N, history + 2)
    first = torch.from_numpy(np.repeat(data.obs_index[data.starts], data.lengths))[:, None]
    return (obs[rows.clamp(min=0)] * (rows >= first)[..., None]).flatten(1)


def fit_inverse_dynamics(known: Episodes, normaliser: Normaliser, config: Any, run: Run) -> InverseDynamics:
    """The model of labelled episodes with the parameters of the lowest held-out loss, in evaluation mode.

    Draws from the streams "inverse" and "inverse-batches". Config: history, inverse_hidden, inverse_dropout,
    inverse_steps, inverse_batch_size, inverse_learning_rate, inverse_evaluate_every, inverse_heldout. UserError for
    fewer than two episodes; DivergedError if the held-out loss was never finite.
    """
    if known.episodes < 2:
        raise UserError("The inverse dynamics model needs two labelled episodes: raise episodes or label_share.")
    order = run.streams.numpy("inverse").permutation(known.episodes)
    number = min(max(1, round(config.inverse_heldout * len(order))), len(order) - 1)
    (inputs, actions), (heldout_inputs, heldout_actions) = (
        (windows(part, config.history, normaliser), torch.from_numpy(part.action))
        for part in (known.select(order[number:]), known.select(order[:number]))
    )
    spec = Spec((inputs.shape[1],), known.spec.action_size, discrete=False)
    model, draws = InverseDynamics(spec, config, run.stream("inverse")), run.stream("inverse-batches")
    lowest, best = math.inf, copy.deepcopy(model.policy.state_dict())
    for step in range(1, config.inverse_steps + 1):
        rows = torch.randint(len(inputs), (config.inverse_batch_size,), generator=draws)
        nothing = torch.zeros(len(rows))
        model.update(Batch(inputs[rows], actions[rows], nothing, nothing, inputs[rows]))
        if step % config.inverse_evaluate_every == 0 or step == config.inverse_steps:
            model.eval()
            with torch.no_grad():
                loss = -float(model.policy.log_prob(heldout_inputs, heldout_actions).mean())
            model.train()
            if loss < lowest:
                lowest, best = loss, copy.deepcopy(model.policy.state_dict())
    if config.inverse_steps and not math.isfinite(lowest):
        raise DivergedError("The inverse dynamics model diverged: try a lower inverse_learning_rate.")
    model.policy.load_state_dict(best)
    run.say(f"Inverse dynamics: held-out loss {lowest:.3f} nats after {config.inverse_steps} updates at most.")
    return model.eval()

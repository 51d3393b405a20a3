"""Contexts: a world model that finds out which task it is in, from the last few steps.

It predicts what differs between tasks, the reward or the next observation, from the step and a code of the steps before
it; so the code has to tell the task, and who acted does not matter. Source: Wang et al. 2024 (Meta-DT), arXiv
2410.11448, section 4.1. Shape letters: N steps of the data, B batch, h steps of the history, Z size of the context, n
and m of observation and action.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zerozoo.control.agent import Adam, Agent, trains
from zerozoo.control.episodes import Episodes
from zerozoo.control.networks import EnsembleLinear, mlp
from zerozoo.control.normaliser import Normaliser
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, transitions
from zerozoo.runs.errors import DivergedError
from zerozoo.runs.run import Run

EMBEDDED = 16  # features of a state, an action, a reward


def histories(data: Episodes, horizon: int, normaliser: Normaliser) -> Tensor:
    """(N, h, n + m + 1): (s, a, r) of the h steps before each step, s standardised; 0 before the episode's first."""
    rows = torch.from_numpy(data.obs_index)
    obs = normaliser(torch.from_numpy(data.obs)).index_select(0, rows)
    steps = torch.cat(
        (obs, torch.from_numpy(data.action), torch.from_numpy(data.reward)[:, None]), -1
    )  # (N, n + m + 1)
    before = torch.arange(len(data))[:, None] + torch.arange(-horizon, 0)  # (N, h)
    first = torch.from_numpy(np.repeat(data.starts, data.lengths))[:, None]
    return steps[before.clamp(min=0)] * (before >= first)[..., None]


class ContextEncoder(nn.Module):
    """z = Linear(last output of a GRU over the embedded (a, s, r) of the last h steps): (B, h, n + m + 1) -> (B, Z)."""

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__()
        self.sizes = (*spec.obs_shape, spec.action_size, 1)
        self.embed = nn.ModuleList(EnsembleLinear(1, size, EMBEDDED) for size in self.sizes)
        self.inputs = EnsembleLinear(1, 3 * EMBEDDED, 3 * config.context_hidden)
        self.recurrent = EnsembleLinear(1, config.context_hidden, 3 * config.context_hidden)
        self.output = EnsembleLinear(1, config.context_hidden, config.context_size)

    def forward(self, history: Tensor) -> Tensor:
        batch, horizon, _ = history.shape
        parts = history.flatten(0, 1).split(self.sizes, -1)
        embedded = torch.cat([torch.relu(layer(part)[0]) for layer, part in zip(self.embed, parts, strict=True)], -1)
        inputs = self.inputs(embedded)[0].view(batch, horizon, -1)
        hidden = inputs.new_zeros(batch, self.recurrent.weight.shape[1])
        for step in range(horizon):  # Cho et al. 2014, in the form of torch.nn.GRU
            from_input, from_hidden = inputs[:, step].chunk(3, -1), self.recurrent(hidden)[0].chunk(3, -1)
            reset, update = ((a + b).sigmoid() for a, b in zip(from_input[:2], from_hidden[:2], strict=True))
            hidden = (from_input[2] + reset * from_hidden[2]).tanh().lerp(hidden, update)
        return self.output(hidden)[0]


class ContextModel(nn.Module):
    """The context encoder with a decoder of what differs between the tasks: the reward, or the next observation.

    config.predicts "reward": r from (s, a, s', z); "next_obs": s' from (s, a, z), standardised.
    """

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__()
        self.predicts_reward, (n,) = config.predicts == "reward", spec.obs_shape
        self.encoder = ContextEncoder(spec, config)
        sizes = (n, spec.action_size, n) if self.predicts_reward else (n, spec.action_size)
        self.embed = nn.ModuleList(EnsembleLinear(1, size, EMBEDDED) for size in sizes)
        hidden = (config.context_hidden, config.context_hidden)
        self.decoder = mlp((EMBEDDED * len(sizes) + config.context_size, *hidden, 1 if self.predicts_reward else n))

    def forward(self, obs: Tensor, action: Tensor, reward: Tensor, next_obs: Tensor, context: Tensor) -> Tensor:
        """(B,) squared error of the prediction, summed over the dimensions of an observation. obs standardised."""
        inputs = (obs, action, next_obs) if self.predicts_reward else (obs, action)
        embedded = [torch.relu(layer(part)[0]) for layer, part in zip(self.embed, inputs, strict=True)]
        prediction = self.decoder(torch.cat((*embedded, context), -1))[0]
        wanted = reward[:, None] if self.predicts_reward else next_obs
        return (prediction - wanted).square().sum(-1)


class WorldModel(Agent):
    """Learns the context by predicting with it. Its batches have extra["history"], see `histories`.

    Config: predicts, context_size, context_hidden, model_learning_rate, model_gradient_norm.
    """

    view = transitions()
    normaliser: Normaliser

    def build(self, spec: Spec, config: Any) -> None:
        self.model = ContextModel(spec, config)

    def optimiser(self, net: str) -> Adam:
        return Adam(self.config.model_learning_rate, clip_norm=self.config.model_gradient_norm)

    @trains("model")
    def model_loss(self, batch: Batch) -> Tensor:
        context = self.model.encoder(batch.extra["history"])
        return self.model(batch.obs, batch.action, batch.reward, batch.next_obs, context).mean()

    @torch.no_grad()
    def read(self, data: Episodes, horizon: int, use_context: bool = True) -> tuple[Tensor, Tensor]:
        """Context (N, Z) before each step and the squared error (N,) of the prediction with it, or with zeros."""
        obs, rows = self.normaliser(torch.from_numpy(data.obs)), torch.from_numpy(data.obs_index)
        context = self.model.encoder(histories(data, horizon, self.normaliser)) * use_context
        action, reward = torch.from_numpy(data.action), torch.from_numpy(data.reward)
        return context, self.model(obs[rows], action, reward, obs[rows + 1], context)


def fit_world_model(known: Episodes, unknown: Episodes, normaliser: Normaliser, config: Any, run: Run) -> WorldModel:
    """Trained on `known` episodes, with the parameters of the lowest error on `unknown` ones, of other tasks.

    Config: that of `WorldModel`, and horizon, model_steps, model_batch_size, model_evaluate_every. Draws from the
    streams "world-model" and "model-batches". DivergedError if the error was never finite.
    """
    model, draws = WorldModel(known.spec, config, run.stream("world-model")), run.stream("model-batches")
    model.normaliser = normaliser
    history = histories(known, config.horizon, normaliser).numpy()
    sampler = transitions()(known.replace(extras={"history": history}))
    lowest, best = math.inf, copy.deepcopy(model.model.state_dict())
    for step in range(1, config.model_steps + 1):
        model.update(sampler.sample(config.model_batch_size, draws))
        if step % config.model_evaluate_every == 0 or step == config.model_steps:
            error = float(model.read(unknown, config.horizon)[1].mean())
            if error < lowest:
                lowest, best = error, copy.deepcopy(model.model.state_dict())
    if not math.isfinite(lowest):
        raise DivergedError("The world model diverged: try a lower model_learning_rate.")
    model.model.load_state_dict(best)
    run.say(f"World model: mean squared error {lowest:.2g} on held-out tasks.")
    return model


def context_metrics(
    model: WorldModel, known: Episodes, unknown: Episodes, tasks: np.ndarray, horizon: int
) -> dict[str, float]:
    """What the code knows of `unknown` tasks, none of which the model was trained on.

    context/error and context/error_without: of the prediction with the code and with zeros for it. context/probe: R^2
    of the task's parameters, a linear function of the code at steps with a full history that is fitted on `known`
    tasks. tasks (K, p): parameters of task extras["task"].
    """

    def probed(data: Episodes) -> tuple[np.ndarray, np.ndarray]:
        code = model.read(data, horizon)[0].double().numpy()
        full = np.arange(len(data)) - np.repeat(data.starts, data.lengths) >= horizon
        return np.column_stack([code, np.ones(len(code))])[full], tasks[data.extras["task"]][full]

    weights = np.linalg.lstsq(*probed(known), rcond=None)[0]
    inputs, truth = probed(unknown)
    missed, spread = np.square(truth - inputs @ weights).sum(), np.square(truth - truth.mean(axis=0)).sum()
    return {
        "context/error": float(model.read(unknown, horizon)[1].mean()),
        "context/error_without": float(model.read(unknown, horizon, use_context=False)[1].mean()),
        "context/probe": float(1 - missed / spread),
    }

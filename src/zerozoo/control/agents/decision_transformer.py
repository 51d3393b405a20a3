"""The decision transformer: actions as the continuation of a sequence that begins with the return asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from zerozoo.control.agent import Adam, Agent, trains
from zerozoo.control.networks import GPT, Drawn, EnsembleLinear, encoder
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, sequences
from zerozoo.losses.imitation import masked_cross_entropy, masked_mse


class SequencePolicy(Drawn):
    """Tokens (return to go, observation, action) of each step -> the action of each step, read at its observation.

    All three tokens of a step carry the embedding of its number in the episode; from `longest` on it stays the same.
    """

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__()
        self.spec, self.longest, width = spec, config.longest, config.width
        self.encoder, features = encoder(spec.obs_shape)
        self.embed_return = EnsembleLinear(1, 1, width)
        self.embed_obs = EnsembleLinear(1, features, width)
        self.embed_action = EnsembleLinear(1, spec.action_size, width)
        self.time = nn.Parameter(torch.full((config.longest, width), torch.nan))
        self.norm = nn.LayerNorm(width)
        self.gpt = GPT(width, config.heads, config.blocks, config.dropout)
        self.head = EnsembleLinear(1, width, spec.action_size)

    @torch.no_grad()
    def reset(self, generator: Generator) -> None:
        self.time.normal_(0, 0.02, generator=generator)

    def forward(self, obs: Tensor, action: Tensor, return_to_go: Tensor, timestep: Tensor, mask: Tensor) -> Tensor:
        """obs (B, L, *), action (B, L, m) or (B, L), the rest (B, L) -> (B, L, m) in [-1, 1], or logits (B, L, A)."""
        batch, length = mask.shape
        if self.spec.discrete:
            action = functional.one_hot(action, self.spec.action_size).to(return_to_go.dtype)

        def embed(layer: EnsembleLinear, rows: Tensor) -> Tensor:  # (B * L, n) -> (B, L, W)
            return layer(rows)[0].view(batch, length, -1)

        time = self.time[timestep.clamp(max=self.longest - 1)]  # (B, L, W)
        tokens = torch.stack(
            (
                embed(self.embed_return, return_to_go.reshape(-1, 1)),
                embed(self.embed_obs, self.encoder(obs.flatten(0, 1))),
                embed(self.embed_action, action.flatten(0, 1)),
            ),
            dim=2,
        )
        tokens = self.norm(tokens + time[:, :, None]).flatten(1, 2)  # (B, 3 L, W)
        states = self.gpt(tokens, mask.repeat_interleave(3, dim=1))[:, 1::3]  # (B, L, W)
        actions = embed(self.head, states.reshape(batch * length, -1))
        return actions if self.spec.discrete else actions.tanh()


def sequence_adam(config: Any) -> Adam:
    """How the sequence models learn: Adam with weight decay, a limited gradient norm, and a warm-up."""
    return Adam(
        config.learning_rate,
        weight_decay=config.weight_decay,
        clip_norm=config.max_gradient_norm,
        warmup_steps=config.warmup_updates,
    )


class DecisionTransformer(Agent):
    """Clones the data's actions given the return that followed them; asked for a high return, it acts like the best.

    It acts with the memory of its episode, so it is played through `player`. Call `aim` before.

    Config: width, blocks, heads, dropout, length, longest, return_scale, learning_rate, weight_decay, warmup_updates,
    max_gradient_norm.
    """

    view = sequences(length=20)
    target_return: Tensor

    def build(self, spec: Spec, config: Any) -> None:
        self.policy = SequencePolicy(spec, config)
        self.register_buffer("target_return", torch.full((), torch.nan))

    def optimiser(self, net: str) -> Adam:
        return sequence_adam(self.config)

    @trains("policy")
    def policy_loss(self, batch: Batch) -> Tensor:
        wanted = batch.return_to_go / self.config.return_scale
        prediction = self.policy(batch.obs, batch.action, wanted, batch.timestep, batch.mask)
        loss = masked_cross_entropy if self.spec.discrete else masked_mse
        return loss(prediction, batch.action, batch.mask)

    def aim(self, target_return: float) -> None:
        """Asks for this return from now on, in the rewards of the data."""
        self.target_return.fill_(target_return)

    def act(self, obs: Tensor, explore: bool, generator: Generator | None = None) -> Tensor:
        """ValueError: what it does depends on what came before."""
        raise ValueError("a decision transformer acts with a memory of its episode: use player(copies)")

    def player(self, copies: int) -> SequencePlayer:
        """Plays an episode in each of `copies` copies that begin together. ValueError before `aim`."""
        if self.target_return.isnan():
            raise ValueError("call aim before playing: the return to ask for is not known")
        return SequencePlayer(self, copies)


class SequencePlayer:
    """The last `length` steps of an episode in each copy, and the return still asked for."""

    def __init__(self, agent: DecisionTransformer, copies: int) -> None:
        length, spec = agent.config.length, agent.spec
        self.agent, self.taken = agent, 0
        self.wanted = agent.target_return.double().repeat(copies)
        self.obs = torch.zeros((copies, length, *spec.obs_shape))
        self.returns = torch.zeros((copies, length))
        action = (copies, length) if spec.discrete else (copies, length, spec.action_size)
        self.action = torch.zeros(action, dtype=torch.int64 if spec.discrete else torch.float32)

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """(N, *obs_shape) -> (N, m) or (N,), and remembers both."""
        agent, length = self.agent, self.returns.shape[1]
        training = agent.training
        agent.eval()
        seen = obs if agent.normaliser is None else agent.normaliser(obs)
        history = (self.obs, self.returns, self.action)
        self.obs, self.returns, self.action = (values.roll(-1, 1) for values in history)
        self.obs[:, -1] = seen
        self.returns[:, -1] = self.wanted / agent.config.return_scale
        self.action[:, -1] = 0  # not known yet, and no earlier token sees it
        steps = torch.arange(self.taken - length + 1, self.taken + 1).expand(len(obs), -1)  # (N, L)
        prediction = agent.policy(self.obs, self.action, self.returns, steps.clamp(min=0), steps >= 0)[:, -1]
        agent.train(training)
        self.taken += 1
        self.action[:, -1] = prediction.argmax(-1) if agent.spec.discrete else prediction
        return self.action[:, -1].clone()

    def observe(self, reward: np.ndarray) -> None:
        """What was earned need not be asked for any more."""
        self.wanted -= torch.from_numpy(reward)

"""Meta-DT: a decision transformer that is told which task it is in, by a code and by a prompt.

Source: Wang et al. 2024, arXiv 2410.11448. Shape letters: B batch, L steps of a window, k of a prompt, Z size of the
context, W width of the tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from zerozoo.control.agent import Adam, Agent, trains
from zerozoo.control.agents.decision_transformer import sequence_adam
from zerozoo.control.contexts import EMBEDDED, ContextModel
from zerozoo.control.networks import GPT, Drawn, EnsembleLinear
from zerozoo.control.normaliser import Normaliser
from zerozoo.control.prompts import Prompt
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, sequences
from zerozoo.losses.imitation import masked_mse


class MetaPolicy(Drawn):
    """Tokens (return to go, [observation, context], action) of each step -> its action, read at the observation.

    In front of them may stand a prompt: k steps of (return to go, observation, action) with embeddings of their own.
    """

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__()
        width, (n,), m = config.width, spec.obs_shape, spec.action_size
        self.longest = config.longest
        self.embed_obs = EnsembleLinear(1, n, EMBEDDED)
        self.embed = nn.ModuleList(EnsembleLinear(1, size, width) for size in (1, EMBEDDED + config.context_size, m))
        self.embed_prompt = nn.ModuleList(EnsembleLinear(1, size, width) for size in (1, n, m))
        self.time, self.prompt_time = (nn.Parameter(torch.full((config.longest, width), torch.nan)) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.gpt = GPT(width, config.heads, config.blocks, config.dropout)
        self.head = EnsembleLinear(1, width, m)

    @torch.no_grad()
    def reset(self, generator: Generator) -> None:
        for table in (self.time, self.prompt_time):
            table.normal_(0, 0.02, generator=generator)

    def forward(
        self,
        obs: Tensor,
        action: Tensor,
        return_to_go: Tensor,
        timestep: Tensor,
        mask: Tensor,
        context: Tensor,
        prompt: Prompt | None = None,
    ) -> Tensor:
        """obs (B, L, n), action (B, L, m), context (B, L, Z), the rest (B, L) -> (B, L, m) in [-1, 1]."""
        batch, length = mask.shape
        state = torch.cat((self.embed_obs(obs.flatten(0, 1))[0], context.flatten(0, 1)), -1).view(batch, length, -1)
        tokens = self._tokens(self.embed, self.time, timestep, (return_to_go[..., None], state, action))
        seen = mask.repeat_interleave(3, dim=1)
        if prompt is not None:
            parts = (prompt.return_to_go[..., None], prompt.obs, prompt.action)
            lead = self._tokens(self.embed_prompt, self.prompt_time, prompt.timestep, parts)
            tokens = torch.cat((lead, tokens), 1)
            seen = functional.pad(seen, (lead.shape[1], 0), value=True)
        states = self.gpt(tokens, seen)[:, -3 * length :][:, 1::3]  # (B, L, W)
        return self.head(states.flatten(0, 1))[0].view(batch, length, -1).tanh()

    def _tokens(self, layers: Any, table: Tensor, timestep: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        """Three tokens for each step, (B, 3 L, W): embedding plus that of the step's number, normalised."""
        time = table[timestep.clamp(max=self.longest - 1)]
        embedded = [
            layer(part.flatten(0, 1))[0].view(*time.shape) + time for layer, part in zip(layers, parts, strict=True)
        ]
        return self.norm(torch.stack(embedded, 2)).flatten(1, 2)


class MetaDT(Agent):
    """Clones actions given return to go, context and prompt; plays episodes through `player`.

    `context_model` is that of a trained `WorldModel`, or None for an agent without contexts (they are 0 then). Batches
    come from `control.prompts.PromptedSequences` and have extra["context"] (B, L, Z). Up to update
    `config.prompt_after` no prompt is shown.

    Config: context_size, width, blocks, heads, dropout, length, longest, horizon, return_scale, prompt_after,
    learning_rate, weight_decay, warmup_updates, max_gradient_norm.
    """

    view = sequences(length=20)
    normaliser: Normaliser

    def build(self, spec: Spec, config: Any) -> None:
        self.policy = MetaPolicy(spec, config)
        self.context_model: ContextModel | None = None

    def optimiser(self, net: str) -> Adam:
        return sequence_adam(self.config)

    @trains("policy")
    def policy_loss(self, batch: Batch) -> Tensor:
        wanted = batch.return_to_go / self.config.return_scale
        prompt = Prompt.of_batch(batch) if self.updates > self.config.prompt_after else None
        arguments = (batch.obs, batch.action, wanted, batch.timestep, batch.mask, batch.extra["context"], prompt)
        return masked_mse(self.policy(*arguments), batch.action, batch.mask)

    def player(self, target_return: Tensor, prompt: Prompt | None = None) -> MetaPlayer:
        """Plays an episode in each of N copies that begin together; target_return (N,), in the rewards of the data."""
        return MetaPlayer(self, target_return, prompt)


class MetaPlayer:
    """The last steps of an episode in each copy, the return still asked for, and the context that they give."""

    def __init__(self, agent: MetaDT, target_return: Tensor, prompt: Prompt | None) -> None:
        config, (n,), m = agent.config, agent.spec.obs_shape, agent.spec.action_size
        copies, length = len(target_return), config.length
        self.agent, self.prompt, self.taken = agent, prompt, 0
        self.wanted = target_return.double()
        self.obs, self.action = torch.zeros(copies, length, n), torch.zeros(copies, length, m)
        self.returns, self.context = torch.zeros(copies, length), torch.zeros(copies, length, config.context_size)
        self.history = torch.zeros(copies, config.horizon, n + m + 1)

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """(N, n) -> (N, m), and remembers both."""
        agent, length = self.agent, self.returns.shape[1]
        training = agent.training
        agent.eval()
        past = (self.obs, self.action, self.returns, self.context)
        self.obs, self.action, self.returns, self.context = (values.roll(-1, 1) for values in past)
        self.obs[:, -1] = agent.normaliser(obs)
        self.action[:, -1] = 0  # not known yet, and no earlier token sees it
        self.returns[:, -1] = self.wanted / agent.config.return_scale
        if agent.context_model is not None:
            self.context[:, -1] = agent.context_model.encoder(self.history)
        steps = torch.arange(self.taken - length + 1, self.taken + 1).expand(len(obs), -1)  # (N, L)
        arguments = (self.obs, self.action, self.returns, steps.clamp(min=0), steps >= 0, self.context, self.prompt)
        self.action[:, -1] = agent.policy(*arguments)[:, -1]
        agent.train(training)
        self.taken += 1
        return self.action[:, -1].clone()

    def observe(self, reward: np.ndarray) -> None:
        """Rewards (N,) of the last actions: they need not be asked for any more, and they tell of the task."""
        earned = torch.from_numpy(reward)
        self.wanted = self.wanted - earned
        self.history = self.history.roll(-1, 1)
        self.history[:, -1] = torch.cat((self.obs[:, -1], self.action[:, -1], earned.float()[:, None]), -1)

"""LaMo: a decision transformer whose blocks are those of a language model.

Source: Shi et al. 2023, arXiv 2310.20587. Shape letters: B batch, L steps of a window, W width of the language model.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from zerozoo.control.agent import trains
from zerozoo.control.agents.decision_transformer import DecisionTransformer
from zerozoo.control.backbones import LanguageBackbone
from zerozoo.control.networks import Drawn, EnsembleLinear
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, sequences
from zerozoo.runs.errors import UserError

EMBEDDINGS = ("mlp", "linear")


class ResidualEmbedding(nn.Module):
    """e(x) = W2 GELU(W1 x) + W1 x: (M, n) -> (M, W)."""

    def __init__(self, n_in: int, width: int) -> None:
        super().__init__()
        self.first, self.second = EnsembleLinear(1, n_in, width), EnsembleLinear(1, width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)[0]
        return self.second(functional.gelu(hidden))[0] + hidden


class LinearEmbedding(EnsembleLinear):
    """e(x) = W x: (M, n) -> (M, W)."""

    def __init__(self, n_in: int, width: int) -> None:
        super().__init__(1, n_in, width)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class LanguagePolicy(Drawn):
    """Tokens (return to go, observation, action) of each step -> the action of each step, read at its observation.

    Tokens are normalised, and only then they get the embedding of their step's number, as in LaMo's code. embedding
    "mlp": `ResidualEmbedding`s and a head of two layers, whose actions are not squashed (they are clipped when
    acting); "linear": one layer each, and tanh.
    """

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__()
        if spec.discrete or len(spec.obs_shape) != 1:
            raise UserError("LaMo needs vectors as observations and continuous actions.")
        if config.embedding not in EMBEDDINGS:
            raise UserError(f"embedding must be {' or '.join(EMBEDDINGS)}, not {config.embedding!r}.")
        self.backbone = LanguageBackbone(
            config.model, config.adapter, config.blocks, config.rank, config.lora_alpha, config.lora_dropout
        )
        width, (n,), m = self.backbone.width, spec.obs_shape, spec.action_size
        self.deep, self.longest = config.embedding == "mlp", config.longest
        kind = ResidualEmbedding if self.deep else LinearEmbedding
        self.embed_return, self.embed_obs, self.embed_action = (kind(size, width) for size in (1, n, m))
        self.norm = nn.LayerNorm(width)
        self.time = nn.Parameter(torch.full((config.longest, width), torch.nan))
        self.hidden = EnsembleLinear(1, width, width) if self.deep else None
        self.head = EnsembleLinear(1, width, m)

    @torch.no_grad()
    def reset(self, generator: Generator) -> None:
        self.time.normal_(0, 0.02, generator=generator)

    def forward(self, obs: Tensor, action: Tensor, return_to_go: Tensor, timestep: Tensor, mask: Tensor) -> Tensor:
        """obs (B, L, n), action (B, L, m), the rest (B, L) -> (B, L, m)."""
        batch, length = mask.shape
        parts = (
            self.embed_return(return_to_go.reshape(-1, 1)),
            self.embed_obs(obs.flatten(0, 1)),
            self.embed_action(action.flatten(0, 1)),
        )
        tokens = self.norm(torch.stack(parts, 1)).view(batch, length, 3, -1)
        tokens = tokens + self.time[timestep.clamp(max=self.longest - 1)][:, :, None]
        seen = mask.repeat_interleave(3, dim=1)
        states = self.backbone(tokens.flatten(1, 2), seen)[:, 1::3].flatten(0, 1)  # (B L, W)
        if self.hidden is None:
            return self.head(states)[0].view(batch, length, -1).tanh()
        actions = self.head(functional.gelu(self.hidden(states)[0]))[0].view(batch, length, -1)
        return actions if self.training else actions.clamp(-1, 1)


class LaMo(DecisionTransformer):
    """loss = mean squared error of the actions + language_weight * cross-entropy of the next token of text.

    The same blocks are trained by both; text is read through the language model's own embedding, positions and head.

    Config: that of DecisionTransformer without width, blocks and heads, and model (a causal language model of
    transformers), text (its tokens, (M,) int64), adapter, blocks (0: all), rank, lora_alpha, lora_dropout, embedding,
    language_weight, text_length, text_batch_size.
    """

    view = sequences(length=20)

    def build(self, spec: Spec, config: Any) -> None:
        self.policy = LanguagePolicy(spec, config)
        self.register_buffer("target_return", torch.full((), torch.nan))

    @trains("policy")
    def policy_loss(self, batch: Batch) -> Tensor:
        loss = cast(Tensor, super().policy_loss(batch))
        if self.config.language_weight == 0:  # then no text is drawn or read at all
            return loss
        self.log("action_loss", loss)
        text_loss = self.policy.backbone.text_loss(self.draw_text())
        self.log("text_loss", text_loss)
        return loss + self.config.language_weight * text_loss

    def draw_text(self) -> Tensor:
        """(text_batch_size, text_length) pieces of the text, uniformly, from the agent's stream."""
        config = self.config
        begins = len(config.text) - config.text_length + 1
        start = torch.randint(begins, (config.text_batch_size, 1), generator=self.random)
        return config.text[start + torch.arange(config.text_length)]

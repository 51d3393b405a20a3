"""Language models of transformers as the causal backbone of a policy, adapted by LoRA.

A backbone reads embeddings instead of words. Families: GPT-2, whose positions are left out (a decision transformer has
time embeddings of its own), and those in the form of Llama, whose positions are rotations and are counted from 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from zerozoo.control.networks import Drawn, Dropout

ADAPTERS = ("lora", "full", "frozen")
TARGETS = ("c_attn", "q_proj", "k_proj", "v_proj")  # queries, keys and values: fused in GPT-2, apart in Llama


class LowRank(Drawn):
    """y = base(x) + (alpha / rank) dropout(x) A B: (*, n_in) -> (*, n_out). B begins as 0, so that nothing changes.

    The weight of the linear layer `base` is frozen; its bias, if it has one, is trained. Source: Hu et al. 2021, arXiv
    2106.09685.
    """

    def __init__(self, base: nn.Linear | Conv1D, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        n_out, n_in = base.weight.shape if isinstance(base, nn.Linear) else reversed(base.weight.shape)
        self.base, self.scale, self.dropout = base, alpha / rank, Dropout(dropout)
        self.down = nn.Parameter(torch.full((n_in, rank), torch.nan))
        self.up = nn.Parameter(torch.zeros(rank, n_out))
        if base.bias is not None:
            base.bias.requires_grad_(True)

    @torch.no_grad()
    def reset(self, generator: Generator) -> None:
        bound = 1 / math.sqrt(len(self.down))
        self.down.uniform_(-bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * (self.dropout(x) @ self.down @ self.up)


class LanguageBackbone(nn.Module):
    """tokens (B, T, W) -> (B, T, W), each from itself and what precedes it.

    Args:
        model: a causal language model of transformers, GPT-2 or in the form of Llama. It is changed: dropout layers
            are switched off, since they draw from the global generator.
        adapter: "lora", only queries, keys and values learn, by `LowRank` layers (and their biases); "full", all
            weights; "frozen", none.
        blocks: keep only the first blocks; 0: all.
        rank, alpha, dropout: of the LowRank layers.

    Raises ValueError for an unknown adapter and another family.
    """

    def __init__(
        self, model: Any, adapter: str, blocks: int = 0, rank: int = 16, alpha: float = 32.0, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if adapter not in ADAPTERS:
            raise ValueError(f"unknown adapter {adapter!r}, expected one of {', '.join(ADAPTERS)}")
        self.model, self.decoder_name = model, model.base_model_prefix
        decoder = self.decoder
        name = next((name for name in ("h", "layers") if hasattr(decoder, name)), None)
        if name is None:
            raise ValueError(f"{type(model).__name__} is neither GPT-2 nor in the form of Llama")
        if blocks:
            setattr(decoder, name, getattr(decoder, name)[:blocks])
            model.config.num_hidden_layers = len(getattr(decoder, name))
        self.width = int(model.config.hidden_size)
        self.blocks = len(getattr(decoder, name))
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        model.requires_grad_(adapter == "full")
        if adapter == "lora":
            self._adapt(rank, alpha, dropout)

    @property
    def decoder(self) -> Any:
        """The stack of blocks with its last norm."""
        return getattr(self.model, self.decoder_name)

    def _adapt(self, rank: int, alpha: float, dropout: float) -> None:
        for parent in list(self.decoder.modules()):
            for name, child in list(parent.named_children()):
                if name in TARGETS:
                    setattr(parent, name, LowRank(child, rank, alpha, dropout))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """mask (B, T) bool: real tokens; padding is seen by nobody but itself."""
        length = tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=tokens.device)  # a query that sees nothing would give NaN
        visible = (causal & mask[:, None, None, :]) | itself  # (B, 1, T, T)
        positions = torch.arange(length, device=tokens.device)[None]
        if hasattr(self.decoder, "wpe"):  # GPT-2 adds these; so that it does not, they are taken away before
            tokens = tokens - self.decoder.wpe(positions)
        output = self.decoder(inputs_embeds=tokens, attention_mask=visible, position_ids=positions, use_cache=False)
        return output.last_hidden_state

    def text_loss(self, ids: Tensor) -> Tensor:
        """Mean cross-entropy () in nats of the next token in rows of text (B, T) int64, positions and all."""
        logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

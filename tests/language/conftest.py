"""What the tests of the zero-RL loop share: models whose log-probs are known, hand-made rollouts, scripted parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from zerozoo.language.families import character_tokenizer, seeded_model
from zerozoo.language.models import LanguageModel, wrap_model


@pytest.fixture
def table_model() -> Callable[..., LanguageModel]:
    """Makes a llama whose logits after token i are exactly row i of a (V, V) table.

    Attention and the gated network add zero, the embedding is the unit vector of the token, and the head undoes the
    scale of the norm. It runs through transformers' own code, so every sampler and scorer takes it.
    """

    def make(table: Tensor, characters: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
        tokenizer = character_tokenizer(characters)
        size, hidden = len(tokenizer), -(-len(tokenizer) // 2) * 2
        assert table.shape == (size, size)
        config = AutoConfig.for_model(
            "llama",
            vocab_size=size,
            hidden_size=hidden,
            intermediate_size=2,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            max_position_embeddings=256,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        )
        model: Any = seeded_model(config, seed=0, dtype=dtype, spread=0.0)
        scale = (1 / hidden + config.rms_norm_eps) ** 0.5
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(torch.eye(size, hidden))
            model.model.layers[0].self_attn.o_proj.weight.zero_()
            model.model.layers[0].mlp.down_proj.weight.zero_()
            model.lm_head.weight.zero_()
            model.lm_head.weight[:, :size] = (table.double().T * scale).to(dtype)
        return wrap_model(model, tokenizer, "table")

    return make


@pytest.fixture
def chain_model(table_model: Callable[..., LanguageModel]) -> Callable[..., LanguageModel]:
    """Makes a table model that almost surely continues with the next character of `text`, then the first again.

    `text` has no character twice. After `ends` comes the end-of-text token.
    """

    def make(text: str, ends: Sequence[str] = ()) -> LanguageModel:
        assert len(set(text)) == len(text)
        ids = character_tokenizer(text).get_vocab()
        table = torch.zeros(len(ids), len(ids))
        for character, following in zip(text, text[1:] + text[0], strict=True):
            table[ids[character], ids["<eos>"] if character in ends else ids[following]] = 50.0
        return table_model(table, text)

    return make


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

"""The characters of the tests' models, and a model whose next tokens are known."""

from __future__ import annotations

import copy

import torch

from zerozoo.language.models import LanguageModel

VOCABULARY = "0123 abcSTOPd"  # few, so that a random model is right now and then


def with_table(policy: LanguageModel, table: torch.Tensor) -> LanguageModel:
    """The same network with weights that make the logits after token i row i of a (V, V) table."""
    made = copy.deepcopy(policy)
    size, hidden = len(table), made.model.config.hidden_size
    with torch.no_grad():
        for layer in made.model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        made.model.model.norm.weight.fill_(1.0)
        made.model.model.embed_tokens.weight.copy_(torch.eye(size, hidden))
        made.model.lm_head.weight.zero_()
        scale = (1 / hidden + made.model.config.rms_norm_eps) ** 0.5  # the norm's, of a unit vector
        made.model.lm_head.weight[:, :size] = table.T * scale
    return made

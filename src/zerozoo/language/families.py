"""Random tiny models of every supported family, made in memory: the test bench of samplers and trainers."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from zerozoo.language.models import SUPPORTED, LanguageModel, as_dtype, wrap_model
from zerozoo.runs.errors import UserError

__all__ = ["SUPPORTED", "byte_tokenizer", "character_tokenizer", "seeded_model", "tiny_model"]

CHARACTERS = "\n" + string.printable[:95]  # the 95 printable ASCII characters, space last
QWEN = ("qwen2", "qwen3")
WITH_SLIDING_WINDOW = ("mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")


def tiny_model(
    family: str,
    seed: int = 0,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    vocabulary: str | None = None,
    sliding_window: int | None = None,
    tied: bool | None = None,
    dtype: str | torch.dtype = "float32",
) -> LanguageModel:
    """A random model of ``family`` with a character-level tokenizer; the same ``seed`` gives the same weights.

    Weights, biases and norm scales are all far from their trivial initial values (0 or 1), so code that forgets one
    of them, or a position, gives visibly different logits. torch's global random state is left alone.

    Args:
        family: one of ``SUPPORTED``; ``gemma3`` is short for ``gemma3_text``.
        vocabulary: the characters of the tokenizer; by default printable ASCII and newline (Qwen: all bytes).
        sliding_window: positions a windowed layer looks back over, itself included. gemma2 and gemma3 always have such
            layers (every other one here; 8 by default), qwen2 and qwen3 get them in every other layer, mistral in all.
        tied: share input embedding and output matrix; the family's own habit by default (only Gemma ties).
    Raises:
        UserError: unknown family or dtype. ValueError: a sliding window for a family that has none.
    """
    family = "gemma3_text" if family == "gemma3" else family
    if family not in SUPPORTED:
        raise UserError(f"unknown model family '{family}'; supported are {', '.join(SUPPORTED)}.")
    if sliding_window is not None and family not in WITH_SLIDING_WINDOW:
        raise ValueError(f"{family} has no sliding window")
    tokenizer = byte_tokenizer(vocabulary) if family in QWEN else character_tokenizer(vocabulary or CHARACTERS)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=family.startswith("gemma") if tied is None else tied,
        **_family_options(family, layers, hidden // heads, sliding_window),
    )
    return wrap_model(seeded_model(config, seed, as_dtype(dtype)), tokenizer, f"tiny-{family}")


def _family_options(family: str, layers: int, head_dim: int, sliding_window: int | None) -> dict[str, Any]:
    if family == "mistral":
        return {"sliding_window": sliding_window}
    alternating = ["sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(layers)]
    if family in QWEN and sliding_window is not None:
        return {"use_sliding_window": True, "sliding_window": sliding_window, "layer_types": alternating}
    if family in ("gemma2", "gemma3_text"):
        # gemma3's default pattern has one full layer in six, which a model of two layers would never reach
        return {"query_pre_attn_scalar": head_dim, "sliding_window": sliding_window or 8, "layer_types": alternating}
    return {}


def seeded_model(config: Any, seed: int, dtype: torch.dtype = torch.float32, spread: float = 0.2) -> PreTrainedModel:
    """A network of ``config`` in evaluation mode; its weights (before rounding to ``dtype``) depend on ``seed`` alone.

    Args:
        spread: standard deviation of the noise added to every vector (biases, norm scales), which transformers
            initialises to a constant; 0 leaves them as they are.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the accelerators as well, which fork_rng does not give back
        torch.random.default_generator.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1 and spread > 0:
                    parameter.add_(torch.randn_like(parameter), alpha=spread)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model.to(dtype).eval()


def character_tokenizer(
    characters: Sequence[str], prepend_bos: bool = True, pieces: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """One token a character, after ``<pad>`` 0, ``<eos>`` 1, ``<unk>`` 2 and ``<bos>`` 3.

    Args:
        characters: those that have a token of their own (repetitions are dropped); every other one becomes ``<unk>``.
        prepend_bos: raw text starts with the BOS (the convention of Llama, Mistral and Gemma).
        pieces: texts of several characters that are one token where they stand; of two at one place the longer one.
    """
    special = ["<pad>", "<eos>", "<unk>", "<bos>"]
    core = Tokenizer(models.WordLevel(_numbered([*special, *characters, *pieces]), unk_token="<unk>"))
    longest_first = sorted(map(re.escape, dict.fromkeys(pieces)), key=len, reverse=True)
    core.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*longest_first, r"[\s\S]"])), "isolated")
    core.decoder = decoders.Fuse()
    if prepend_bos:
        core.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", special.index("<bos>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def byte_tokenizer(characters: Sequence[str] | None = None) -> Qwen2Tokenizer:
    """One token a UTF-8 byte, after ``<pad>`` 0 and ``<eos>`` 1, in Qwen's class, without a BOS.

    transformers 5 loads the tokenizer of every ``qwen2`` folder as ``Qwen2Tokenizer``, whatever class it was saved as,
    and puts that class's splitting rules in place of the saved ones; a tokenizer of any other make comes back broken.

    Args:
        characters: keep only the bytes of these; like Qwen's, this tokenizer has no ``<unk>`` and drops all others.
            All 256 bytes by default, so that no text is ever lost.
    """
    spelling = bytes_to_unicode()
    used = range(256) if characters is None else [byte for text in characters for byte in text.encode()]
    return Qwen2Tokenizer(
        vocab=_numbered(["<pad>", "<eos>", *(spelling[byte] for byte in used)]),
        merges=[],
        unk_token="<eos>",  # as Qwen names its end token; never produced
        eos_token="<eos>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def _numbered(tokens: Sequence[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}

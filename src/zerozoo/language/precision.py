"""Which products of a training run in int8 on the CPU: those that write responses, those of gradients, or both.

The learner's forward pass, evaluation and the saved model stay in full precision. Responses that int8 has written come
from a policy a little away from the learner's; `importance_cap` weights their tokens by what that changed.
"""

from __future__ import annotations

from typing import Any

import torch

from zerozoo.language.algorithm import choose
from zerozoo.language.decoder import OwnDecoder, why_not
from zerozoo.language.int8 import Int8Projections, channel_sizes, use_int8_gradients
from zerozoo.language.models import LanguageModel
from zerozoo.language.samplers.interface import Decoding, Sampler
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.runs.errors import UserError
from zerozoo.runs.streams import Streams

PRECISIONS = ("full", "int8", "int8-rollout", "int8-backward")
CALIBRATED_ON = 64  # prompts with a response each


def set_gradients(config: Any, policy: LanguageModel) -> None:
    """Give the policy int8 gradients where the config asks for them, after all other changes to its layers.

    Raises UserError for an unknown precision, and for a model or a device that int8 is not made for.
    """
    choose("precision", config.precision, PRECISIONS)
    if config.precision == "full":
        return
    rounded = config.dtype == "bfloat16" or torch.get_float32_matmul_precision() != "highest"
    if policy.model.device.type != "cpu" or rounded:
        raise UserError(f"--precision {config.precision} is for float32 on a CPU: use --device cpu --dtype float32.")
    reason = why_not(policy.model)
    if reason is not None:
        raise UserError(f"--precision {config.precision} is not made for this model: {reason}.")
    if config.precision != "int8-rollout":
        use_int8_gradients(policy.model)


def rollout_sampler(
    config: Any,
    plain: Sampler,
    policy: LanguageModel,
    prompts: list[list[int]],
    decoding: Decoding,
) -> Sampler:
    """What writes the training responses: `plain`, or one in int8.

    Call it while the policy has the weights of the start, also when a run is resumed: the smoothing of the channels
    comes from these, and from the first prompts with a response of theirs each, and stays.
    """
    if config.precision not in ("int8", "int8-rollout"):
        return plain
    if not isinstance(plain, NativeSampler):
        raise UserError("Only --sampler native in a single process writes in int8.")
    chosen = prompts[:CALIBRATED_ON]
    written = plain.sample(chosen, 1, decoding, Streams(config.seed).torch("int8-calibration"))
    rows = zip(chosen, written.tokens.tolist(), written.lengths.tolist(), strict=True)
    texts = [[*prompt, *response[:length]] for prompt, response, length in rows]
    projections = Int8Projections(channel_sizes(policy.model, texts))
    OwnDecoder(policy.model, 1, None, projections)  # makes them all
    return NativeSampler(policy, plain.max_rows, project=projections)


def importance_cap(config: Any) -> float:
    """Largest weight of a token that int8, older weights or another engine have written; 0: tokens have none."""
    other = config.precision in ("int8", "int8-rollout") or config.max_lag > 0 or config.sampler == "vllm"
    return float(config.importance_cap) if other else 0.0

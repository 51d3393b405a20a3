"""Choosing device, precision and micro-batches, and saying what was chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zerozoo.runs.errors import UserError
from zerozoo.runs.processes import local_rank, process_count

# Tokens whose activations are held at once. On a CPU larger micro-batches are no faster; on a GPU they fill it.
TOKENS_PER_MICROBATCH = {"cpu": 1024, "mps": 2048, "cuda": 16384}
ROWS_AT_ONCE = {"cpu": 256, "mps": 256, "cuda": 1024}
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Machine:
    """Where and how the numbers are made.

    Attributes:
        device: torch device name.
        autocast: None, or "bfloat16" for forward and backward passes. The weights and the optimiser stay in float32:
            updates of 5e-7 relative size vanish in bfloat16 weights.
        tokens_per_microbatch, rows_at_once: sizes for learner and sampler.
    """

    device: str
    autocast: str | None
    tokens_per_microbatch: int
    rows_at_once: int


def choose_machine(
    device: str = "auto", dtype: str = "auto", tokens_per_microbatch: int = 0, rows_at_once: int = 0
) -> Machine:
    """Fill in everything that is "auto" or 0. Raises UserError for a device or precision that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and process_count() > 1:
        device = f"cuda:{local_rank()}"
    kind = device.split(":")[0]
    if kind not in TOKENS_PER_MICROBATCH:
        raise UserError(f"Unknown device {device!r}; choose auto, cpu, cuda, cuda:0 ... or mps.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("There is no CUDA device here; use --device cpu.")
    if dtype == "auto":
        # bfloat16 products are slower than float32 on a CPU without matrix units for them.
        dtype = "bfloat16" if kind == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    if dtype not in DTYPES:
        raise UserError(f"Unknown dtype {dtype!r}; choose auto, {' or '.join(DTYPES)}.")
    return Machine(
        device,
        dtype if dtype != "float32" else None,
        tokens_per_microbatch or TOKENS_PER_MICROBATCH[kind],
        rows_at_once or ROWS_AT_ONCE[kind],
    )

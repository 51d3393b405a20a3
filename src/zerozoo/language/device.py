"""Choosing device, precision and micro-batches, and saying what was chosen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from zerozoo.runs.allocator import keep_freed_memory
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
        matmul: torch's word for float32 products: "highest", or "medium" for factors that are rounded to bfloat16 on
            the way, sums and results staying in float32.
    """

    device: str
    autocast: str | None
    tokens_per_microbatch: int
    rows_at_once: int
    matmul: str = "highest"

    @property
    def products(self) -> str:
        """Precision of the factors of matrix products, for people."""
        return "bfloat16" if self.autocast or self.matmul == "medium" else "float32"


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
        dtype = "bfloat16" if kind == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    if dtype not in DTYPES:
        raise UserError(f"Unknown dtype {dtype!r}; choose auto, {' or '.join(DTYPES)}.")
    # On a CPU the products gain all there is to gain; casts of everything between them would cost more than they save.
    # Without units for them rounded factors would be slower than whole ones.
    narrow = dtype == "bfloat16" and (kind != "cpu" or has_bfloat16_units())
    return Machine(
        device,
        dtype if narrow and kind != "cpu" else None,
        tokens_per_microbatch or TOKENS_PER_MICROBATCH[kind],
        rows_at_once or ROWS_AT_ONCE[kind],
        "medium" if narrow and kind == "cpu" else "highest",
    )


def has_bfloat16_units() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


@cache
def has_int8_units() -> bool:
    """Whether this CPU multiplies int8 matrices faster than float32 ones, by a measurement of some milliseconds.

    Without instructions for them (AVX-512 VNNI and the like) torch computes them one by one, many times slower. The
    answer changes speed only: `int8.whole_product` gives the same numbers either way.
    """
    ones = torch.ones((128, 512), dtype=torch.int8)
    floats = ones.float()
    try:
        whole = _seconds(lambda: torch._int_mm(ones, ones.t()))
    except RuntimeError:
        return False
    return whole < _seconds(lambda: floats @ floats.t())


def _seconds(product: Callable[[], Tensor]) -> float:
    """Least of three, after one that does not count."""
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        product()
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def set_up_machine(config: Any) -> Machine:
    """The machine that a recipe's config asks for, with the precision of float32 products set for this process.

    On a CPU the process keeps memory that it frees, see `runs.allocator`.

    `config` has the fields `device`, `dtype`, `tokens_per_microbatch` and `rows_at_once`. Errors as `choose_machine`.
    """
    machine = choose_machine(config.device, config.dtype, config.tokens_per_microbatch, config.rows_at_once)
    torch.set_float32_matmul_precision(machine.matmul)
    if machine.device == "cpu":
        keep_freed_memory()
    return machine


@contextmanager
def full_products() -> Iterator[None]:
    """Float32 products without rounded factors, whatever `set_up_machine` has said.

    For attention on a CPU: its many small products take ten times as long when their factors are rounded on the way.
    """
    rounded = torch.get_float32_matmul_precision() == "medium"
    if rounded:
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if rounded:
            torch.set_float32_matmul_precision("medium")

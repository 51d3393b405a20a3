"""Where the time goes: a table of the phases of a step, with the share of the machine's speed that they reach.

`--profile` measures the memory of every phase and, once, the rate of a plain matrix product; all else is in the metrics
of every run. Operations are counted by hand: 2 for each weight and token forward, 6 with the backward pass (8 with
gradient checkpointing), the head on the tokens that need it. Attention itself is left out, so the rates are a little
too low for long responses.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zerozoo.language.heads import causal_model
from zerozoo.language.models import LanguageModel
from zerozoo.runs.run import Run

MACHINE = "profile.json"
PRODUCT = 2048  # rows and columns of the matrices whose product is timed
REPEATS = 5
PHASES = ("sample", "score", "credit", "update", "evaluate")


@dataclass(frozen=True)
class Phase:
    """Medians over the steps.

    Attributes:
        seconds: of the phase in a step.
        tokens: the tokens it is for: responses written, response tokens trained on.
        useful: share of the computed positions that were needed; None where nothing is computed.
        gflops: 10^9 operations a second; None for phases without matrix products.
        peak_mb: largest memory during the phase in 10^6 bytes; None without `--profile`.
    """

    name: str
    seconds: float
    tokens: float | None
    useful: float | None
    gflops: float | None
    peak_mb: float | None


def write_machine(run: Run, policy: LanguageModel) -> None:
    """Measure the machine and the model and keep that in the run directory."""
    if not run.writes:
        return
    model = causal_model(policy.model)
    head = model.get_output_embeddings().weight.numel()
    embedding = model.get_input_embeddings().weight.numel()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    everything = sum(parameter.numel() for parameter in model.parameters())
    facts = {
        "matrix_gflops": matrix_rate(policy.model.device, policy.autocast or policy.model.dtype),
        "body": everything - embedding - (0 if tied else head),
        "head": head,
        "passes": 8 if getattr(model, "is_gradient_checkpointing", False) else 6,
        "threads": torch.get_num_threads(),
    }
    run.path(MACHINE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def read_machine(run: Run) -> dict[str, Any] | None:
    """What `write_machine` has kept, None for a run without `--profile`."""
    path = run.path(MACHINE)
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """10^9 operations a second of a square matrix product, the best of five."""
    left, right = (torch.ones((PRODUCT, PRODUCT), device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(REPEATS + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        float((left @ right)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - began)
    return 2 * PRODUCT**3 / min(seconds[1:]) / 1e9


def thread_rates(counts: Sequence[int]) -> dict[int, float]:
    """10^9 operations a second of a float32 product with each number of threads; torch's own number is put back."""
    before, rates = torch.get_num_threads(), {}
    try:
        for count in counts:
            torch.set_num_threads(count)
            rates[count] = matrix_rate(torch.device("cpu"), torch.float32)
    finally:
        torch.set_num_threads(before)
    return rates


def reset_peak_memory(device: torch.device) -> None:
    """Start a new maximum. On the CPU that needs Linux; elsewhere the maximum is that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> float:
    """Largest memory since the last reset, in 10^6 bytes: of the GPU, or resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def phase_table(history: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> list[Phase]:
    """The phases of a run's steps, from its metrics and what `write_machine` has kept.

    The first step is left out when there are others: it waits for memory that the later ones find ready.
    """
    steps = [row for row in history if "seconds/step" in row]
    steps = steps[1:] or steps
    table = []
    for name in PHASES:
        rows = [row for row in steps if f"seconds/{name}" in row]
        if not rows:
            continue
        count = {"sample": _sampling, "update": _learning}.get(name)
        work = [count(row, machine) for row in rows] if count else []
        seconds = [row[f"seconds/{name}"] for row in rows]
        memory = [row[f"memory/{name}"] for row in rows if row.get(f"memory/{name}") is not None]
        rates = [one.operations / second / 1e9 for one, second in zip(work, seconds, strict=bool(work))]
        table.append(
            Phase(
                name=name,
                seconds=statistics.median(seconds),
                tokens=statistics.median(one.tokens for one in work) if work else None,
                useful=statistics.median(one.useful for one in work) if work else None,
                gflops=statistics.median(rates) if work else None,
                peak_mb=max(memory, default=None),
            )
        )
    return table


@dataclass(frozen=True)
class _Work:
    tokens: float
    useful: float
    operations: float


def _sampling(row: Mapping[str, Any], machine: Mapping[str, Any]) -> _Work:
    """Prompts once for each group, then every drawn token but the last of its row is fed back."""
    drawn, rows = row["tokens/drawn"], row["tokens/rows"]
    operations = 2 * machine["body"] * (row["tokens/prompts"] + drawn - rows) + 2 * machine["head"] * drawn
    return _Work(row["tokens/responses"], row["tokens/responses"] / drawn, operations)


def _learning(row: Mapping[str, Any], machine: Mapping[str, Any]) -> _Work:
    """Forward and backward of the rows with a gradient; the head on response tokens only."""
    padded, tokens = row["update/padded_tokens"], row["update/response_tokens"]
    operations = machine["passes"] * machine["body"] * padded + 6 * machine["head"] * tokens
    return _Work(tokens, row["update/tokens"] / padded if padded else 1.0, operations)

"""The phase table against counts made by hand."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import pytest
import torch

from zerozoo.language import profile
from zerozoo.language.families import tiny_model
from zerozoo.language.profile import peak_memory, phase_table, read_machine, reset_peak_memory, write_machine
from zerozoo.runs.run import Run

MACHINE = {"matrix_gflops": 100.0, "body": 1e6, "head": 5e5, "passes": 6, "threads": 1}


def row(step: int, seconds: float) -> dict[str, float]:
    return {
        "step": step,
        "seconds/step": 3 * seconds,
        "seconds/sample": seconds,
        "seconds/update": 2 * seconds,
        "seconds/score": 0.0,
        "memory/sample": 100.0 * step,
        "tokens/prompts": 20.0,
        "tokens/responses": 30.0,
        "tokens/drawn": 40.0,
        "tokens/rows": 10.0,
        "update/response_tokens": 15.0,
        "update/tokens": 24.0,
        "update/padded_tokens": 30.0,
    }


def test_the_table_is_what_hands_count() -> None:
    phases = {
        phase.name: phase for phase in phase_table([{"step": 0}, row(1, 50.0), row(2, 0.5), row(3, 0.5)], MACHINE)
    }
    assert list(phases) == ["sample", "score", "update"]
    sample, update = phases["sample"], phases["update"]
    assert sample.seconds == 0.5  # the slow first step is left out
    assert sample.tokens == 30.0
    assert sample.useful == pytest.approx(0.75)
    # 20 prompt tokens and 40 - 10 fed back through the body, 40 draws from the head, 2 operations each
    assert sample.gflops == pytest.approx((2 * 1e6 * 50 + 2 * 5e5 * 40) / 0.5 / 1e9)
    assert sample.peak_mb == 300.0
    assert update.useful == pytest.approx(0.8)
    assert update.gflops == pytest.approx((6 * 1e6 * 30 + 6 * 5e5 * 15) / 1.0 / 1e9)
    assert update.peak_mb is None
    assert phases["score"].gflops is None


def test_a_step_without_update_does_no_work() -> None:
    idle = {**row(1, 1.0), "update/response_tokens": 0.0, "update/tokens": 0.0, "update/padded_tokens": 0.0}
    update = phase_table([idle], MACHINE)[-1]
    assert (update.gflops, update.useful) == (0.0, 1.0)


def test_the_machine_counts_every_weight_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "PRODUCT", 64)
    for tied in (True, False):
        policy = tiny_model("llama", seed=0)
        policy.model.config.tie_word_embeddings = tied
        if tied:
            policy.model.set_output_embeddings(torch.nn.Linear(1, 1))
            policy.model.get_output_embeddings().weight = policy.model.get_input_embeddings().weight
        run = Run(tmp_path / str(tied))
        run.path().mkdir()
        write_machine(run, policy)
        facts = read_machine(run)
        assert facts is not None
        embedding = policy.model.get_input_embeddings().weight.numel()
        everything = sum(parameter.numel() for parameter in policy.model.parameters())
        assert facts["head"] == policy.model.get_output_embeddings().weight.numel()
        assert facts["body"] == everything - embedding - (0 if tied else facts["head"])
        assert facts["matrix_gflops"] > 0
    assert json.loads((tmp_path / "True" / "profile.json").read_text())["passes"] == 6
    assert read_machine(Run(tmp_path / "other")) is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_peak_starts_anew() -> None:
    device = torch.device("cpu")

    def take() -> None:
        with mmap.mmap(-1, 120_000_000) as pages:  # of the system: what was freed before may be kept by this process
            for _ in range(120):
                pages.write(bytes(1_000_000))

    take()
    reset_peak_memory(device)
    before = peak_memory(device)
    take()
    assert 100 < peak_memory(device) - before < 160
    reset_peak_memory(device)
    assert peak_memory(device) - before < 60

"""Suites before and after a stage, the drift between two models, and training problems that keep clear of suites."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from zerozoo.language.measure import Settings
from zerozoo.language.samplers.interface import Decoding
from zerozoo.language.settings import GroupConfig
from zerozoo.language.stage_evaluation import before_and_after, clear_of_suites, drift
from zerozoo.language.stages import Outputs
from zerozoo.language.staging import model_of, stage_config
from zerozoo.language.tuning import PairConfig
from zerozoo.runs.run import Run
from zerozoo.tasks.load import load_task_set


def test_the_drift_is_the_kl_of_the_responses(table_model) -> None:
    """Responses of one character out of two, then the end: KL = sum p log(p / q), known in closed form."""

    def make(chance: float):
        size = len(table_model(torch.zeros((6, 6)), "ab").tokenizer)
        policy = table_model(torch.zeros((size, size)), "ab")
        a, b = (policy.tokenizer.convert_tokens_to_ids(letter) for letter in "ab")
        table = torch.full((size, size), -60.0)
        table[:, policy.eos_ids[0]] = 0.0  # after anything else the response ends ...
        table[a] = -60.0
        table[a, a], table[a, b] = math.log(chance), math.log(1 - chance)  # ... after "a" comes "a" or "b"
        return table_model(table, "ab"), a

    (policy, a), (reference, _) = make(0.9), make(0.5)
    generator = torch.Generator().manual_seed(0)
    found = drift(policy, reference, [[a]] * 4000, Decoding(1), generator)
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert found == pytest.approx(expected, abs=0.03)
    assert drift(policy, policy, [[a]] * 10, Decoding(1), generator) == 0


def test_suites_before_and_after(digits_model: str) -> None:
    from zerozoo.language.models import load_model

    models = {"before": load_model(digits_model), "after": load_model(digits_model)}
    groups = {"suites": ("arithmetic:one-digit",), "other_suites": ()}
    settings = Settings(temperature=1.0, limit=12)
    asked = {"model": digits_model, "data": "arithmetic", "template": "{question}", "max_new_tokens": 2}
    found = before_and_after(models, groups, settings, asked)
    assert set(found) == {
        *(f"{when}/{name}" for when in models for name in ("arithmetic:one-digit", "suites")),
        "after/kl",
    }
    assert found["before/suites"] == found["after/suites"] == found["after/arithmetic:one-digit"]
    assert found["after/kl"] == 0
    assert before_and_after(models, {"suites": ()}, settings) == {}


def test_training_problems_in_a_suite_are_left_out(tmp_path: Path) -> None:
    run, said = Run(tmp_path), []
    run.say = said.append
    tasks = load_task_set("copying", train_size=50, heldout_size=20)
    assert clear_of_suites(tasks, {"suites": ()}, run) == tasks
    swapped = load_task_set("word-sums:easy", train_size=80)
    assert clear_of_suites(swapped, {"suites": ("word-sums:easy",)}, run).train == swapped.train
    assert said == ["Decontamination: 0 of 500 evaluation problems overlap with 0 of 80 training problems."]


def test_configs_and_models_of_stages(tmp_path: Path) -> None:
    whole = GroupConfig(model="m", seed=3, data="arithmetic", max_new_tokens=7, learning_rate=0.5)
    part = stage_config(PairConfig, whole, model="n", batch_size=2)
    assert (part.model, part.seed, part.data, part.max_new_tokens) == ("n", 3, "arithmetic", 7)
    assert (part.batch_size, part.learning_rate, part.pairs_per_problem) == (2, 0.5, 4)
    with pytest.raises(TypeError, match="unknown"):
        stage_config(PairConfig, whole, unknown=1)
    outputs = {"sft": Outputs({"model": tmp_path / "a"}), "dpo": Outputs({"model": tmp_path / "b"}), "rates": Outputs()}
    assert model_of(outputs, "dpo", "sft", otherwise="m") == str(tmp_path / "b")
    assert model_of(outputs, "rates", "sft", otherwise="m") == str(tmp_path / "a")
    assert model_of({}, "sft", otherwise="m") == "m"

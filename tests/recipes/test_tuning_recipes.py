"""SFT, RFT, DPO, IPO and KTO: their numbers, whole runs on drawn examples and on files, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_runs import killed_in_step, parameters

from zerozoo.cli.main import main
from zerozoo.cli.registry import Recipe, load_recipe
from zerozoo.cli.show import describe_fields
from zerozoo.language.models import load_model
from zerozoo.language.supervised import SupervisedLoop
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

SLUGS = ["sft", "rft", "dpo", "ipo", "kto"]
each = pytest.mark.parametrize("slug", SLUGS)
FIELDS: dict[str, Any] = {
    "data": "arithmetic",
    "level": "one-digit",
    "heldout_size": 6,
    "max_new_tokens": 4,
    "batch_size": 8,
    "steps": 4,
    "checkpoint_every": 3,
    "evaluate_every": 3,
    "learning_rate": 0.003,
    "warmup": 0.25,
}
DRAWN: dict[str, Any] = {"samples_per_prompt": 8, "problems": 150}


@cache  # it reads the whole catalogue
def recipe(slug: str) -> Recipe:
    return load_recipe(slug)


def train(slug: str, model: str, directory: Path, **changes: Any) -> tuple[dict[str, float], Run, list[str]]:
    values = {"model": model, **FIELDS, **(DRAWN if slug != "sft" else {}), **changes}
    config = recipe(slug).make_config(values)
    said: list[str] = []
    with Run.start(directory, slug, dataclasses.asdict(config), config.seed) as run:
        run.say = said.append
        return recipe(slug).train(config, run), run, said


def rows(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(("seconds/", "time"))} for row in run.history()]


# --- the numbers

DEFAULTS: dict[str, dict[str, Any]] = {
    "sft": {"batch_size": 128, "epochs": 2, "learning_rate": 5e-6, "warmup": 0.03, "schedule": "linear"},
    "rft": {"samples_per_prompt": 100, "temperature": 0.7},
    "dpo": {"beta": 0.1, "batch_size": 64, "learning_rate": 5e-7, "epochs": 1, "length_normalised": False},
    "ipo": {"tau": 0.1, "epochs": 1},
    "kto": {"beta": 0.1, "epochs": 1},
}


@each
def test_the_defaults_and_the_presets(slug):
    config = recipe(slug).make_config({})
    assert {name: getattr(config, name) for name in DEFAULTS[slug]} == DEFAULTS[slug]
    assert {"laptop", "tiny", "smoke"} <= set(recipe(slug).presets)
    for preset in recipe(slug).presets:
        recipe(slug).make_config({}, preset)
    assert "arXiv" in recipe(slug).paper
    assert not recipe(slug).claims
    assert all(len(field.help) > 5 for field in describe_fields(recipe(slug).config_class))


def test_tulu_3s_dpo_is_a_preset():
    config = recipe("dpo").make_config({}, "tulu")
    wanted = (5.0, True, 128, 5e-7, 0.1, "linear", 1)
    found = (config.beta, config.length_normalised, config.batch_size, config.learning_rate, config.warmup)
    assert (*found, config.schedule, config.epochs) == wanted


# --- whole runs

LEARNED = {"sft": "loss", "rft": "loss", "dpo": "preference/margin", "ipo": "preference/margin", "kto": "loss"}


@pytest.fixture(scope="module")
def taught(digits_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that has learned to answer with a number and to stop, so that it is right often enough."""
    directory = tmp_path_factory.mktemp("taught") / "run"
    _, run, _ = train("sft", digits_model, directory, steps=60, learning_rate=0.01, evaluate_every=100)
    return str(run.path("model"))


@pytest.fixture(scope="module")
def whole(
    digits_model: str, taught: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, float], Run, list[str]]]:
    """A short run of every recipe, never interrupted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    starts = {"sft": digits_model}  # the others learn from what they write themselves
    runs = {slug: train(slug, starts.get(slug, taught), folder / slug, heldout_examples=5) for slug in SLUGS}
    torch.set_num_threads(threads)
    return runs


@each
def test_a_run_learns_from_its_examples_and_leaves_a_model(slug, whole, taught):
    final, run, said = whole[slug]
    history = rows(run)
    assert [row["step"] for row in history] == [0, 1, 2, 3, 4]
    assert all(math.isfinite(value) for value in final.values())
    assert {"heldout/greedy_accuracy", "heldout/sampled_accuracy", "heldout/loss", "gradient_norm"} <= final.keys()
    assert ("heldout/sampled_accuracy" in history[3], "heldout/greedy_accuracy" in history[3]) == (False, True)
    if LEARNED[slug] == "loss":
        assert history[4]["heldout/loss"] < history[0]["heldout/loss"]
    else:
        assert history[0]["heldout/preference/margin"] == pytest.approx(0, abs=1e-4)
        assert history[4]["preference/margin"] > 0
    assert not torch.equal(parameters(run.path("model")), parameters(taught))
    assert bool(said) == (slug != "sft")
    kept = [json.loads(line) for line in run.path("examples.jsonl").read_text().splitlines()]
    if slug != "sft":
        assert said[0].startswith("Drew 1200 responses to 150 problems; ")
        assert all(isinstance(row["prompt"], list) for row in kept)  # ids as they were drawn
    phases = {row["phase"] for row in run.samples()}
    assert phases == {"heldout-greedy", "heldout-sampled"}


@pytest.mark.parametrize("slug", ["dpo", "kto"])
def test_a_killed_run_keeps_its_examples_and_its_reference(slug, whole, taught, tmp_path):
    with killed_in_step(SupervisedLoop, 4):
        train(slug, taught, tmp_path / "run", heldout_examples=5)
    _, run, said = train(slug, taught, tmp_path / "run", heldout_examples=5)
    assert said == ["Resuming after step 3."]  # and nothing was drawn
    assert rows(run) == rows(whole[slug][1])
    assert torch.equal(parameters(run.path("model")), parameters(whole[slug][1].path("model")))


@pytest.mark.parametrize("changes", [{"packed": True}, {"tokens_per_microbatch": 20}, {"gradient_checkpointing": True}])
def test_machine_settings_change_no_result_beyond_rounding(changes, whole, taught, tmp_path):
    _, run, _ = train("dpo", taught, tmp_path / "run", heldout_examples=5, **changes)
    difference = parameters(run.path("model")) - parameters(whole["dpo"][1].path("model"))
    assert float(difference.abs().max()) < 1e-4


def test_adapters_are_merged_into_the_saved_model(taught, tmp_path):
    pytest.importorskip("peft")
    final, run, _ = train("dpo", taught, tmp_path / "run", lora_rank=2, length_normalised=True, beta=5.0)
    assert rows(run)[1]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert not torch.equal(parameters(run.path("model")), parameters(taught))
    assert final["preference/margin"] > 0


# --- files of one's own


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_files_need_no_problems(digits_model, tmp_path):
    """Without `data` nothing is sampled; the examples held out are what is measured."""
    numbers = [str(number) for number in range(4)]
    files = {
        "sft": [{"prompt": one, "response": one} for one in (*numbers, "0 1", "0 2", "0 3", "1 2")],
        "dpo": [{"prompt": one, "chosen": two, "rejected": "2 2"} for one in numbers for two in numbers],
        "kto": [{"prompt": one, "response": two, "desirable": one == two} for one in numbers for two in numbers],
    }
    for slug, examples in files.items():
        path = write(tmp_path / f"{slug}.jsonl", *examples)
        final, run, said = train(slug, digits_model, tmp_path / slug, data="", examples=path, heldout_examples=5)
        assert "heldout/loss" in final
        assert "heldout/greedy_accuracy" not in final
        assert said == []
        assert run.path("model", "config.json").is_file()
        assert not run.path("examples.jsonl").exists()


def test_a_template_is_put_around_the_prompts_of_a_file_and_long_examples_are_left_out(
    digits_model, tmp_path, monkeypatch
):
    seen: list[Any] = []
    monkeypatch.setattr(SupervisedLoop, "train", lambda loop: seen.append(loop.objective.sequences) or {})
    path = write(tmp_path / "examples.jsonl", {"prompt": "1", "response": "2"}, {"prompt": "1", "response": "2" * 30})
    _, _, said = train(
        "sft", digits_model, tmp_path / "run", data="", examples=path, template="0{question}3", max_tokens=20
    )
    policy = load_model(digits_model)
    assert seen[0].prompts == [policy.encode("013")]
    assert said == ["1 examples were left out: they have more than 20 tokens."]


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("sft", {"learning_rate": -1.0}, "learning_rate is -1.0, but must be at least 0"),
    ("sft", {"warmup": 1.5}, "warmup is 1.5, but is a share"),
    ("sft", {"schedule": "step"}, "Unknown schedule 'step'"),
    ("sft", {"split": "auto"}, "split auto needs samples"),
    ("sft", {"style": "steps"}, "come with their answers alone"),
    ("rft", {"temperature": 0.0}, "temperature is 0.0, but must be above 0"),
    ("rft", {"samples_per_prompt": 0}, "samples_per_prompt is 0, but must be at least 1"),
    ("dpo", {"beta": 0.0}, "beta is 0.0, but must be above 0"),
    ("ipo", {"tau": -1.0}, "tau is -1.0, but must be above 0"),
    ("kto", {"beta": float("nan")}, "beta is nan, but must be above 0"),
    ("kto", {"undesirable_weight": -1.0}, "undesirable_weight is -1.0, but must be at least 0"),
    ("rft", {"problems": 1, "samples_per_prompt": 1, "max_new_tokens": 1}, "no examples to learn from"),
    ("dpo", {"examples": "nowhere.jsonl"}, "cannot be read"),
]


@pytest.mark.parametrize(("slug", "changes", "sentence"), BAD)
def test_what_no_run_can_use_is_one_sentence(slug, changes, sentence, digits_model, tmp_path):
    with pytest.raises(UserError, match=sentence):
        train(slug, digits_model, tmp_path / "run", **changes)


# --- the command line


@pytest.mark.parametrize("slug", ["sft", "kto"])
def test_the_smoke_preset_from_the_command_line(slug, tmp_path, capsys):
    assert main(["train", slug, "--preset", "smoke", "--directory", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert "the plan" in output
    assert "Held-out problems, never trained on" in output
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_a_plan_says_what_would_run(capsys):
    assert main(["train", "dpo", "--preset", "laptop", "--plan"]) == 0
    output = " ".join(capsys.readouterr().out.replace("│", " ").split())  # the table breaks its lines
    for part in ("smollm2-135m", "4 responses to each of all problems", "1 epoch(s) of 32", "1e-05", "constant"):
        assert part in output

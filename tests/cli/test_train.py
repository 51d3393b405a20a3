"""`zerozoo train`: a whole small run, and one clear sentence for everything that can be wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zerozoo.cli.main import main
from zerozoo.language.models import load_model
from zerozoo.runs.run import Run

Train = Callable[..., tuple[int, str, str]]


@pytest.fixture
def train(
    digits_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Train:
    """Runs the command in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(
        *flags: str, recipe: str = "simplerl-zoo", small: bool = True, outcome: bool = False
    ) -> tuple[int, str, str]:
        if not outcome:  # drawing the figures takes longer than the run
            monkeypatch.setattr("zerozoo.cli.train.show_outcome", lambda *_: None)
        start = [
            *("--model", digits_model, "--data", "arithmetic", "--level", "one-digit", "--heldout-size", "6"),
            *("--max-new-tokens", "3", "--prompts-per-step", "4", "--samples-per-prompt", "4"),
            *("--updates-per-step", "1", "--kl-coefficient", "0", "--steps", "2", "--directory", "run"),
        ]
        code = main(["train", recipe, *(start if small else []), *flags])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def assert_refused(outcome: tuple[int, str, str], message: str) -> None:
    """Exit code 2 and one line on standard error that begins with "error:"."""
    code, output, errors = outcome
    assert code == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert errors.endswith("\n")
    assert "Traceback" not in output + errors
    assert re.search(message, errors), errors


# --- a run


def test_a_run_from_start_to_finish_and_longer(train: Train, tmp_path: Path) -> None:
    code, output, errors = train(outcome=True)
    assert (code, errors) == (0, "")
    assert "the plan" in output
    assert "4 prompts x 4 responses = 16 sequences" in output
    assert "step 0/2" in output
    assert "step 2/2  reward " in output
    assert "Held-out problems, never trained on" in output
    assert "zerozoo train simplerl-zoo --resume run --steps 4" in output
    assert sorted(path.name for path in (tmp_path / "run" / "figures").glob("*.png"))
    trained = load_model(tmp_path / "run" / "model")
    assert trained.decode(trained.encode("12")) == "12"
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["recipe"], config["seed"], config["config"]["steps"]) == ("simplerl-zoo", 0, 2)

    code, output, errors = train("--resume", "run", "--steps", "3", small=False)
    assert (code, errors) == (0, "")
    assert "Resuming after step 2." in output
    assert "step 1/3" not in output
    assert [row["step"] for row in Run.open("run").history()] == [0, 1, 2, 3]


def test_a_plan_trains_nothing(train: Train, tmp_path: Path) -> None:
    code, output, errors = train("--plan")
    assert (code, errors) == (0, "")
    assert "2 steps, 32 responses, at most 96 new tokens" in output
    assert list(tmp_path.iterdir()) == []
    code, output, _ = train("--preset", "paper", "--model", "Qwen/Qwen2.5-7B", "--plan", small=False)
    assert code == 0
    assert "1024 prompts x 8 responses" in output
    assert "7,615M parameters" in re.sub(r"[│\s]+", " ", output)


def test_usage_and_help(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 0
    assert "--preset NAME" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        train("--help", small=False)
    assert end.value.code == 0
    output = capsys.readouterr().out
    assert "--samples-per-prompt" in output
    assert "--no-skip-uninformative" in output


def test_tuples_and_switches_are_read(train: Train) -> None:
    code, _, errors = train("--stop", "3 ", "2", "--no-skip-uninformative", "--packed", "--steps", "1")
    assert (code, errors) == (0, "")
    config = Run.open("run").config
    assert config["stop"] == ["3 ", "2"]
    assert config["skip_uninformative"] is False
    assert config["packed"] is True
    assert train("--resume", "run", small=False)[0] == 0  # tuples survive the way through JSON


# --- names that do not exist


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning-rat", "1"], r"no field --learning-rat; did you mean --learning-rate\?"),
        (["--samples_per_promt=4"], r"no field --samples-per-promt; did you mean --samples-per-prompt\?"),
        (["--zzz", "1"], r"no field --zzz; `zerozoo show simplerl-zoo` lists all fields"),
        (["--no-packt"], r"no field --no-packt; did you mean --no-packed\?"),
        (["--no-steps"], r"no field --no-steps"),
        (["--preset", "laptp"], r"Unknown preset 'laptp' of simplerl-zoo; did you mean 'laptop'\?"),
        (["--preset"], r"argument --preset: expected one argument\."),
        (["--steps", "many"], r"--steps: .*'many'"),
        (["--learning-rate", "fast"], r"--learning-rate: .*'fast'"),
        (["--seed"], r"Missing value for argument '--seed'"),
        (["stray"], r"stray"),
        (["--model", "no-such-model"], r"cannot load 'no-such-model'|no model 'no-such-model'"),
        (["--model", "./nowhere"], r"there is no model folder \./nowhere"),
        (["--level", "forty"], r"Unknown arithmetic level 'forty'; choose from: one-digit"),
        (["--reward", "nope"], r"Unknown reward 'nope'; choose from: correctness"),
        (["--reward", "nowhere:nothing"], r"reward 'nowhere:nothing' cannot be imported"),
        (["--extractor", "nope"], r"Unknown extractor 'nope'"),
        (["--template", "nope"], r"Unknown prompt template 'nope'"),
        (["--advantage", "gae"], r"Unknown advantage 'gae'; choose one of: group-normalised"),
        (["--aggregation", "mean"], r"Unknown aggregation 'mean'"),
        (["--schedule", "cosine"], r"Unknown schedule 'cosine'; choose one of: constant, linear"),
        (["--sampler", "vlm"], r"Unknown sampler 'vlm'"),
        (["--overlong", "drop"], r"Unknown overlong 'drop'"),
        (["--kl-place", "nowhere", "--kl-coefficient", "1"], r"Unknown kl place 'nowhere'"),
        (["--kl-estimator", "k1", "--kl-coefficient", "1"], r"k1 as a term of the loss"),
        (["--device", "tpu"], r"Unknown device 'tpu'"),
        (["--dtype", "int8"], r"Unknown dtype 'int8'"),
        (["--sink", "nope"], r"unknown dashboard 'nope': choose from tensorboard"),
    ],
)
def test_unknown_names_are_refused_and_leave_nothing_behind(
    train: Train, tmp_path: Path, flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zerozoo.language.models.hub_is_known", lambda: False)
    monkeypatch.setattr("zerozoo.language.plan.hub_is_known", lambda: False)
    assert_refused(train(*flags), message)
    assert not (tmp_path / "run").exists()


def test_unknown_recipe(train: Train) -> None:
    assert_refused(train(recipe="simplerl-zo"), r"Unknown recipe 'simplerl-zo'; did you mean 'simplerl-zoo'\?")


# --- numbers that cannot be


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples-per-prompt", "1"], r"samples_per_prompt is 1, .*: take at least 2\."),
        (["--max-new-tokens", "-1"], r"max_new_tokens is -1, but must be at least 1\."),
        (["--max-new-tokens", "600"], r"max_new_tokens is 600, but .* has room for 512 tokens, prompt included"),
        (["--max-new-tokens", "0"], r"max_new_tokens is 1024, but .* has room for 512 tokens"),  # 0: the usual 1024
        (["--max-prompt-tokens", "5"], r"Every training prompt is too long; raise max_prompt_tokens"),
        (["--prompts-per-step", "1000"], r"There are 194 training problems but prompts_per_step is 1000"),
        (["--updates-per-step", "5"], r"updates_per_step is 5, but a step has only 4 prompts"),
        (["--updates-per-step", "0"], r"updates_per_step is 0, but must be at least 1\."),
        (["--evaluate-every", "0"], r"evaluate_every is 0, but must be at least 1\."),
        (["--steps", "-1"], r"steps is -1, but must be at least 0\."),
        (["--temperature", "0"], r"temperature is 0\.0, but must be above 0\."),
        (["--learning-rate", "nan"], r"learning_rate is nan, but must be at least 0\."),
        (["--clip-low", "-0.1"], r"clip_low is -0\.1, but must be at least 0\."),
        (["--heldout-size", "9999"], r"has 200 problems, so the held-out part must be between 1 and 199"),
        (["--stop", ""], r"An empty text in stop would end every response at once"),
    ],
)
def test_numbers_that_cannot_be_are_refused_and_leave_nothing_behind(
    train: Train, tmp_path: Path, flags: list[str], message: str
) -> None:
    assert_refused(train(*flags), message)
    assert not (tmp_path / "run").exists()


# --- data


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (None, [], r"no file or folder 'problems\.jsonl'"),
        ("", [], r"problems\.jsonl holds no problems"),
        ('{"q": "1+1", "a": "2"}\n', [], r"no question column .*columns found: q, a; name it with question_column"),
        ('{"question": "1+1"}\n', [], r"no answer column"),
        ('{"q": "1+1", "answer": "2"}\n', ["--question-column", "ask"], r"no column 'ask'; columns found: q, answer"),
        ("{", [], r"problems\.jsonl"),
        ('{"question": "1+1", "answer": "2"}\n', [], r"only 1 problems, which is too few for a held-out part of 6"),
    ],
)
def test_problem_files_that_cannot_be_used(
    train: Train, tmp_path: Path, text: str | None, flags: list[str], message: str
) -> None:
    if text is not None:
        (tmp_path / "problems.jsonl").write_text(text)
    assert_refused(train("--data", "problems.jsonl", "--level", "", *flags), message)
    assert not (tmp_path / "run").exists()


def test_a_model_without_row_needs_data(train: Train) -> None:
    assert_refused(train("--data", "", "--level", ""), r"no row in the zoo table, so say what to train on with --data")


# --- run directories


def test_the_directory_of_another_run_is_refused_and_kept(train: Train) -> None:
    assert train("--steps", "1")[0] == 0
    before = Run.open("run").history()
    message = r"run holds a run with another configuration: learning_rate \(5e-07 -> 0\.001\)"
    assert_refused(train("--steps", "1", "--learning-rate", "0.001"), message)
    assert_refused(train("--resume", "run", "--learning-rate", "0.001", small=False), message)
    assert Run.open("run").history() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resume", "nowhere"], r"nowhere is not a run directory: it has no config\.json"),
        (["--resume", "nowhere", "--preset", "tiny"], r"--resume takes everything from the run; leave out --preset"),
        (["--directory", "file"], r"file is a file: use another --directory"),
        (["--directory", "full"], r"full is neither empty nor a run"),
    ],
)
def test_directories_that_are_no_runs(train: Train, tmp_path: Path, flags: list[str], message: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear diary")
    small = "--directory" in flags
    assert_refused(train(*flags, small=small), message)
    assert (tmp_path / "full" / "letter.txt").exists()


def test_a_run_cannot_become_shorter(train: Train) -> None:
    assert train("--steps", "3")[0] == 0
    assert_refused(train("--resume", "run", "--steps", "2", small=False), "run has done 3 steps already; --steps 2")
    assert Run.open("run").config["steps"] == 3


def test_a_mended_config_may_use_the_directory_of_the_failed_one(train: Train, tmp_path: Path) -> None:
    assert_refused(train("--schedule", "linaer"), "Unknown schedule")
    assert train("--schedule", "linear")[0] == 0
    # But a directory that was there before is never removed.
    (tmp_path / "mine").mkdir()
    assert_refused(train("--schedule", "linaer", "--directory", "mine"), "Unknown schedule")
    assert (tmp_path / "mine").is_dir()


# --- divergence


def test_a_learning_rate_far_too_large_ends_in_one_sentence(train: Train) -> None:
    outcome = train("--learning-rate", "1e10", "--checkpoint-every", "1", "--steps", "9", "--samples-per-prompt", "8")
    message = (
        r"not finite\. Training stopped at step \d; the checkpoint of step \d is kept\. Try a lower learning rate\."
    )
    assert_refused(outcome, message)


def test_a_loss_that_is_no_number_keeps_the_newest_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "poison.py").write_text(
        "count = 0\n"
        "def reward(verification):\n"
        "    global count\n"
        "    count += 1\n"
        "    return float('nan') if count > 3 * 16 else float(count % 2)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    outcome = train("--reward", "poison:reward", "--checkpoint-every", "2", "--steps", "9")
    message = (
        r"gradient norm became nan; the step was not taken\. Training stopped at step 4; the checkpoint of step 2 is"
    )
    assert_refused(outcome, message)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]
    assert [row["step"] for row in Run.open("run").history()] == [0, 1, 2, 3]
    checkpoint = Run.open("run").load()
    assert checkpoint is not None
    assert all(bool(torch.isfinite(value).all()) for value in checkpoint.tensors.values())

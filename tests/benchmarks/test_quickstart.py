"""The arithmetic of benchmarks/quickstart.py, and that TRL's part judges answers as zerozoo does."""

from __future__ import annotations

import importlib.util
import json
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zerozoo.rewards.extract import SIGNED_NUMBER
from zerozoo.rewards.verifier import MathVerifier
from zerozoo.runs.versions import commit
from zerozoo.tasks.task import Task

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    """A script of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


quickstart, trl = load("quickstart"), load("trl_quickstart")


def history(greedy: dict[int, float], seconds: list[float]) -> list[dict[str, Any]]:
    """Metrics of a run whose steps took `seconds`, with greedy accuracy at some steps and sampled at both ends."""
    rows: list[dict[str, Any]] = [{"step": 0, "time": 1.0, "seconds/evaluate": 1000.0}]
    rows += [{"step": step, "time": 1.0, "seconds/step": taken} for step, taken in enumerate(seconds, start=1)]
    for step, accuracy in greedy.items():
        rows[step] |= {"heldout/greedy_accuracy": accuracy, "seconds/evaluate": 1000.0}
    for row, accuracy in ((rows[0], 0.10), (rows[-1], 0.60)):
        row["heldout/sampled_accuracy"] = accuracy
    return rows


def test_row_of_a_run_that_reaches_the_target() -> None:
    run = history({0: 0.2, 2: 0.495, 4: 0.5, 6: 0.75}, [9.0, 1.0, 2.0, 4.0, 3.0, 5.0])
    row = quickstart.make_row(run, seed=3, problems=200)
    assert row["seed"] == 3
    assert row["steps"] == 6
    assert (row["before_greedy"], row["after_greedy"]) == (0.2, 0.75)
    assert (row["before_sampled"], row["after_sampled"]) == (0.10, 0.60)
    assert row["train_seconds"] == 24.0  # evaluations, 1000 s each, are not in it
    assert row["step_seconds"] == 3.5  # median of 1 2 3 4 5 9, the slow first step included
    assert row["step_to_050"] == 4  # 0.495 is not enough, exactly 0.5 is
    assert row["seconds_to_050"] == 16.0
    assert row["heldout"] == {"problems": 200}
    assert row["curve"] == {"0": 0.2, "2": 0.495, "4": 0.5, "6": 0.75}
    assert row["sampler_kl"] is None
    for step, kl in ((2, 0.01), (5, 0.03)):
        run[step]["policy/sampler_kl"] = kl
    run[3]["policy/sampler_kl"] = None  # a step without a gradient
    assert quickstart.make_row(run, seed=3, problems=200)["sampler_kl"] == pytest.approx(0.02)


@pytest.mark.parametrize(("start", "seconds"), [(0.4, None), (0.5, 0.0)])
def test_target_never_reached_or_reached_at_once(start: float, seconds: float | None) -> None:
    row = quickstart.make_row(history({0: start, 2: 0.4}, [2.0, 3.0]), seed=0, problems=200)
    assert row["seconds_to_050"] == seconds
    assert row["step_to_050"] == (None if seconds is None else 0)


def test_intervals_are_wilsons() -> None:
    row = quickstart.make_row(history({0: 0.0, 1: 0.5}, [1.0]), seed=0, problems=10)
    assert set(row["intervals"]) == {"before_greedy", "after_greedy", "before_sampled", "after_sampled"}
    assert row["intervals"]["before_greedy"] == pytest.approx([0.0, 3.8415 / 13.8415], abs=1e-4)  # z^2 / (n + z^2)
    assert row["intervals"]["after_greedy"] == pytest.approx([0.2366, 0.7634], abs=1e-4)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_run_that_did_not_end_gives_no_row(rows: int) -> None:
    run = history({0: 0.1, 2: 0.3, 4: 0.6}, [1.0] * 4)[:rows]
    with pytest.raises(ValueError, match="seed 7"):
        quickstart.make_row(run, seed=7, problems=200)


def test_merge_keeps_the_other_system_and_replaces_the_seed() -> None:
    before = {
        "trl": [{"seed": 0, "steps": 9}],
        "zerozoo": [{"seed": 1, "steps": 1}, {"seed": 2, "steps": 2}],
        "machine": {},
    }
    after = quickstart.merged(before, "zerozoo", {"seed": 1, "steps": 5})
    after = quickstart.merged(after, "zerozoo", {"seed": 0, "steps": 4})
    assert after["trl"] == before["trl"]
    assert after["machine"] == {}
    assert [(row["seed"], row["steps"]) for row in after["zerozoo"]] == [(0, 4), (1, 5), (2, 2)]
    assert quickstart.merged({}, "trl", {"seed": 0}) == {"zerozoo": [], "trl": [{"seed": 0}]}


def test_every_row_is_on_disk_as_soon_as_it_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "results" / "quickstart.json"
    for system, seed in (("zerozoo", 0), ("zerozoo", 1), ("trl", 0)):
        row = {"seed": seed, "versions": {"made_by": f"{system} {seed}"}}
        quickstart.store(path, system, row, {"steps": 40})
    stored = json.loads(path.read_text())
    assert [row["seed"] for row in stored["zerozoo"]] == [0, 1]
    assert stored["trl"] == [{"seed": 0}]
    assert stored["versions"] == {"zerozoo": {"made_by": "zerozoo 1"}, "trl": {"made_by": "trl 0"}}
    assert stored["settings"] == {"steps": 40}
    assert stored["commit"] == commit()["commit"]
    assert set(stored) == {"zerozoo", "trl", "machine", "versions", "commit", "dirty", "settings"}
    assert [file.name for file in path.parent.iterdir()] == ["quickstart.json"]


def test_rows_of_other_settings_are_refused(tmp_path: Path) -> None:
    quickstart.check_settings({}, {"steps": 40}, tmp_path)
    quickstart.check_settings({"settings": {"steps": 40}}, {"steps": 40}, tmp_path)
    with pytest.raises(SystemExit, match="steps 40, not 2"):
        quickstart.check_settings({"settings": {"steps": 40}}, {"steps": 2}, tmp_path)


def test_rows_of_another_processor_do_not_come_into_the_same_file(tmp_path: Path) -> None:
    quickstart.check_machine({}, {"cpu": "one"}, tmp_path)
    quickstart.check_machine({"machine": {"cpu": "one"}}, {"cpu": "one"}, tmp_path)
    with pytest.raises(SystemExit, match="was measured on other, and this is one: give another --output"):
        quickstart.check_machine({"machine": {"cpu": "other"}}, {"cpu": "one"}, tmp_path)


def test_the_settings_of_the_preset_are_those_that_a_results_file_gives_back(tmp_path: Path) -> None:
    settings = quickstart._settings(quickstart.load_config(None))
    quickstart.check_settings({"settings": json.loads(json.dumps(settings))}, settings, tmp_path)
    assert settings["stop"] == ["\n"]


RUN = """
import json, pathlib, sys
directory = pathlib.Path(sys.argv[1])
for folder in ("checkpoints/step-000002", "model", "figures"):
    (directory / folder).mkdir(parents=True)
rows = json.loads(sys.argv[2])
(directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
(directory / "versions.json").write_text('{"torch": "2.13.0"}')
print("said by the run")
"""


@pytest.mark.parametrize("keep", [False, True])
def test_a_seed_runs_afresh_and_loses_only_its_weights(
    tmp_path: Path, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "seed-0"
    (directory / "of-an-earlier-run").mkdir(parents=True)
    rows = json.dumps(history({0: 0.2, 2: 0.5}, [2.0, 3.0]))
    monkeypatch.setattr(quickstart.time, "time", lambda: -30.0)  # its first step was written at 1.0
    row = quickstart.run_seed([sys.executable, "-c", RUN, str(directory), rows], 0, directory, 200, keep)
    assert row["first_step_seconds"] == 31.0
    assert row["seconds_to_050"] == 5.0
    assert row["wall_seconds"] > 0
    assert row["peak_rss_mb"] > 5  # a Python process
    assert len(row["load_average"]) == 3
    assert row["versions"] == {"torch": "2.13.0"}
    weights = {"checkpoints", "model"} if keep else set()
    assert {path.name for path in directory.iterdir()} == {"metrics.jsonl", "versions.json", "figures"} | weights
    assert (tmp_path / "seed-0.log").read_text() == "said by the run\n"


def test_memory_is_that_of_one_process(tmp_path: Path) -> None:
    floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * quickstart.MAX_RSS_BYTES / 1e6
    command = [sys.executable, "-c", "import sys; block = b'1' * int(sys.argv[1])"]
    large = quickstart.measure([*command, str(int((floor + 300) * 1e6))], tmp_path / "log")
    small = quickstart.measure([*command, "1"], tmp_path / "log")
    assert large.peak_rss_mb == pytest.approx(floor + 310, abs=60)
    assert small.peak_rss_mb <= floor + 60  # no high-water mark of earlier processes


def test_a_run_that_fails_shows_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"(?s)no weights.*code 3"):
        quickstart.measure([sys.executable, "-c", "print('no weights'); raise SystemExit(3)"], tmp_path / "log")


@dataclass(frozen=True)
class FakeConfig:
    steps: int
    level: str = "twenty"


def test_commands_name_seed_steps_and_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "seed-4"
    command = quickstart.zerozoo_command(FakeConfig(steps=7), 4, directory)
    options = dict(zip(command[5::2], command[6::2], strict=True))
    assert command[3:5] == ["train", "simplerl-zoo"]
    assert options == {
        "--preset": "laptop",
        "--level": "twenty",
        "--seed": "4",
        "--steps": "7",
        "--directory": str(directory),
        "--dtype": "float32",
    }
    for arm, options in quickstart.ARMS.items():
        other = quickstart.zerozoo_command(FakeConfig(steps=7), 4, directory, arm)
        assert other == [*command[:-2], *options]
        assert other[other.index("--dtype") + 1] == ("bfloat16" if arm == "bfloat16" else "float32")
    monkeypatch.setattr(quickstart, "export_problems", lambda config, path: path.write_text("{}"))
    command = quickstart.trl_command("/trl/python", FakeConfig(steps=7), Path("/model"), 4, directory)
    assert command[:2] == ["/trl/python", str(BENCHMARKS / "trl_quickstart.py")]
    options = dict(zip(command[2::2], command[3::2], strict=True))
    assert options == {
        "--model": "/model",
        "--problems": str(tmp_path / "trl-problems.json"),
        "--dtype": "float32",
        "--seed": "4",
        "--directory": str(directory),
    }
    assert (tmp_path / "trl-problems.json").exists()
    command = quickstart.trl_command("/trl/python", FakeConfig(steps=7), Path("/model"), 4, directory, rows=48)
    assert command[command.index("--rows") + 1] == "48"


def test_trl_gets_the_problems_and_settings_of_the_preset(tmp_path: Path) -> None:
    config = quickstart.load_config(None)
    quickstart.export_problems(config, tmp_path / "problems.json")
    exported = json.loads((tmp_path / "problems.json").read_text())
    assert (len(exported["train"]), len(exported["heldout"])) == (600, 200)
    train, heldout = ({problem["prompt"] for problem in exported[part]} for part in ("train", "heldout"))
    assert len(train) == 600
    assert not train & heldout
    for problem in exported["heldout"]:
        expression = problem["prompt"].removeprefix("Question: What is ").removesuffix("?\nAnswer:")
        left, operator, right = expression.split()
        value = int(left) + int(right) if operator == "+" else int(left) - int(right)
        assert problem["answer"] == str(value)
    assert set(exported["settings"]) == set(quickstart.SETTINGS)
    assert exported["settings"]["learning_rate"] == config.learning_rate
    assert quickstart.load_config(2).steps == 2


def test_presets_that_trl_cannot_follow_are_refused(tmp_path: Path) -> None:
    import dataclasses

    config = dataclasses.replace(quickstart.load_config(None), kl_coefficient=1e-3)
    with pytest.raises(SystemExit, match="kl_coefficient"):
        quickstart.export_problems(config, tmp_path / "problems.json")


def test_trl_stops_where_zerozoo_stops() -> None:
    class Tokenizer:
        eos_token_id = 1
        pieces = ("a", "<end>", "\n", ".\n\n", " 7")

        def __len__(self) -> int:
            return len(self.pieces)

        def batch_decode(self, rows: list[list[int]]) -> list[str]:
            return [self.pieces[index] for (index,) in rows]

    assert trl.end_ids(Tokenizer(), ["\n"]) == [1, 2, 3]
    assert trl.end_ids(Tokenizer(), []) == [1]


RESPONSES = (
    " 12\n\nQuestion: What is 3 + 4?",
    " 12.",
    " 12.0",
    " 12.5",
    " 24/2",
    " 12/0",
    " -12",
    " −12",
    "--12",
    " $12",
    " $-12",
    " 7 + 5 = 12",
    " It's 12. Here's how",
    "12,000",
    " 1,2",
    " 012",
    " 5-12",
    " (-12)",
    " twelve",
    " １２",
    " .5",
    " 3.5/2",
    "",
)


def test_trl_rewards_the_same_responses() -> None:
    assert trl.FIRST_NUMBER.pattern == SIGNED_NUMBER.pattern
    with MathVerifier(extractor="first-number") as verifier:
        for answer, right in {"12": 8, "-12": 5, "0": 0, "7": 1}.items():
            task = Task(id="t", question="q", answer=answer, source="test")
            verdicts = verifier.verify([task] * len(RESPONSES), RESPONSES)
            rewards = trl.reward(RESPONSES, [answer] * len(RESPONSES))
            assert rewards == [verdict.score for verdict in verdicts]
            assert sum(rewards) == right

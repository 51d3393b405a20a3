"""The benchmark of rollouts and updates: arms take turns, and all get the same work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import language
import language_peers
import vllm_rollouts

ARM = """
import json, sys
print("a library says {something}", flush=True)
print(json.dumps({"ready": True}), flush=True)
for number, line in enumerate(sys.stdin):
    case = json.loads(line)
    with open(sys.argv[2], "a") as log:
        print(sys.argv[1], case["kind"], file=log)
    print(json.dumps({"seconds": float(sys.argv[3]) + number, "peak_mb": 100.0 - number}), flush=True)
"""
CASES: dict[str, dict[str, Any]] = {
    kind: {"kind": kind, "groups": 2, "samples": 3, "prompt": 4, "new": 5, "vocabulary": 50}
    for kind in ("rollout", "update")
}


def test_arms_take_turns_and_the_first_repeat_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "PAUSE", 0.0)
    script, log = tmp_path / "arm.py", tmp_path / "log"
    script.write_text(ARM)
    commands = {arm: [sys.executable, str(script), arm, str(log), start] for arm, start in (("a", "1"), ("vllm", "5"))}
    results: dict[str, Any] = {}
    language.measure(commands, CASES, 3, results.__setitem__)
    turns = ["a rollout", "vllm rollout"] * 3 + ["a update"] * 3  # vLLM does not train
    assert log.read_text().split("\n")[:-1] == turns
    assert results["rollout"]["a"] == {
        "seconds": 2.5,
        "range": [2.0, 3.0],
        "tokens_per_second": 30 / 2.5,
        "peak_mb": 100.0,
        "repeats": 2,
    }
    assert results["rollout"]["vllm"]["seconds"] == 6.5
    assert set(results["update"]) == {"a"}


def test_an_arm_that_dies_ends_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ended early"):
        language.measure({"a": [sys.executable, "-c", "print('nothing')"]}, CASES, 2, {}.__setitem__)


def test_all_arms_get_the_same_work() -> None:
    case = CASES["rollout"]
    prompts, responses = language_peers.make_prompts(case), language_peers.make_responses(case)
    assert prompts == language_peers.make_prompts(case)
    assert [len(row) for row in prompts] == [4] * 2
    assert [len(row) for row in responses] == [5] * 6
    assert all(5 <= token < 45 for row in (*prompts, *responses) for token in row)
    assert len({tuple(row) for row in (*prompts, *responses)}) == 8
    assert all(language_peers.make_advantages(case))


def test_every_case_of_the_issue_is_there() -> None:
    for rows in (32, 96, 256):
        for new in (32, 128):
            case = language.CASES[f"rollout {rows} x {new}"]
            assert (case["groups"] * case["samples"], case["new"]) == (rows, new)
    assert json.dumps(language.CASES)


def test_memory_counts_the_processes_that_an_arm_has_started() -> None:
    """vLLM keeps its model in a process of its own."""
    code = "import sys; held = b'1' * 60_000_000; print('ready', flush=True); sys.stdin.read()"
    alone = language_peers.peak_mb()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert language_peers.peak_mb() > alone + 60
        child.communicate()
    assert language_peers.peak_mb() < alone + 60


def test_the_cases_of_vllm_alone_are_those_of_the_benchmark() -> None:
    assert {vllm_rollouts.CASES[name]["kind"] for name in vllm_rollouts.ASKED} == {"rollout"}
    assert vllm_rollouts.CASES is language.CASES

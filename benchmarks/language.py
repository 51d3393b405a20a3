"""Rollouts and updates of zerozoo beside those of its peers: results/bench-language.json.

    python benchmarks/language.py                            zerozoo and transformers
    python benchmarks/language.py --vllm PYTHON              and vLLM, with the Python of its environment

Every arm is a process that loads the model once. The arms take turns within each repeat, so that a slow minute of the
machine meets all of them; the first repeat is dropped. int8 takes part on a CPU with units for it. The file is written
after each case and holds its medians and ranges over the others, tokens per second (rollouts: new tokens; updates:
response tokens), and the largest memory of each arm, all that the process holds included.
The time of a whole training step and until an accuracy is reached is in results/quickstart.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from language_peers import Case, make_advantages, make_prompts, make_responses, serve

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).with_name("language_peers.py")
REPEATS = 6  # the first is dropped
PAUSE = 2.0  # seconds after a turn of vLLM, whose worker goes on spinning for one


def _case(kind: str, groups: int, samples: int, prompt: int, new: int) -> Case:
    return {"kind": kind, "groups": groups, "samples": samples, "prompt": prompt, "new": new}


CASES: dict[str, Case] = {
    "rollout 32 x 32": _case("rollout", 4, 8, 14, 32),
    "rollout 96 x 32": _case("rollout", 12, 8, 14, 32),
    "rollout 32 x 128": _case("rollout", 4, 8, 14, 128),
    "rollout 256 x 32": _case("rollout", 32, 8, 14, 32),
    "rollout 96 x 128": _case("rollout", 12, 8, 14, 128),
    "update 96 x (14 + 12)": _case("update", 12, 8, 14, 12),
    "update 16 x (64 + 256)": _case("update", 2, 8, 64, 256),
    "rollout 256 x 128": _case("rollout", 32, 8, 14, 128),
}
# Long responses of a tiny model: how time and memory grow. zerozoo alone.
LONG: dict[str, Case] = {
    f"{kind} 16 x (16 + {new})": _case(kind, 2, 8, 16, new)
    for kind in ("rollout", "update")
    for new in (128, 256, 512, 1024)
}


def zerozoo_arm(folder: str, precision: str) -> Callable[[Case], None]:
    """The native sampler, and the update of the recipe without any group left out.

    With int8 the weights are quantised anew in every rollout, as in a training; only the calibration is not timed.
    """
    from types import SimpleNamespace

    import torch

    from zerozoo.language.algorithm import Algorithm
    from zerozoo.language.build import make_optimizer
    from zerozoo.language.device import set_up_machine
    from zerozoo.language.models import load_model
    from zerozoo.language.precision import rollout_sampler, set_gradients
    from zerozoo.language.rollouts import Rollouts
    from zerozoo.language.samplers.interface import Decoding, Samples
    from zerozoo.language.samplers.native import NativeSampler
    from zerozoo.language.update import Updater, UpdateSettings
    from zerozoo.rewards.verifier import Verdict, Verification
    from zerozoo.tasks.task import Task

    config = SimpleNamespace(
        precision=precision, seed=0, device="cpu", dtype="float32", tokens_per_microbatch=0, rows_at_once=0
    )
    machine, policy = set_up_machine(config), load_model(folder)
    set_gradients(config, policy)
    eos_ids = policy.eos_ids
    updater = Updater(
        policy,
        make_optimizer(policy, 1e-6, 0.01),
        Algorithm(),
        UpdateSettings(tokens_per_microbatch=machine.tokens_per_microbatch),
    )
    calibration = make_prompts(CASES["rollout 256 x 32"] | {"vocabulary": policy.model.config.vocab_size})
    sampler = rollout_sampler(config, NativeSampler(policy, machine.rows_at_once), policy, calibration, Decoding(32))
    generator = torch.Generator().manual_seed(0)

    def rollout(case: Case) -> None:
        policy.eos_ids = ()  # every response has its full length
        samples = sampler.sample(make_prompts(case), case["samples"], Decoding(case["new"]), generator)
        policy.eos_ids = eos_ids
        assert bool((samples.lengths == case["new"]).all())

    def update(case: Case) -> None:
        tokens, rows = torch.tensor(make_responses(case)), case["groups"] * case["samples"]
        samples = Samples(
            tokens=tokens,
            lengths=torch.full((rows,), case["new"]),
            logprobs=torch.zeros(tokens.shape),
            stopped=torch.zeros(rows, dtype=torch.bool),
            groups=torch.arange(case["groups"]).repeat_interleave(case["samples"]),
            texts=[""] * rows,
        )
        task = Task(id="", question="", answer="", source="benchmark")
        verdict = Verification(Verdict.WRONG, "", 0.0, False, 0.0)
        rollouts = Rollouts([task] * case["groups"], make_prompts(case), samples, [verdict] * rows, torch.zeros(rows))
        rollouts.advantages = torch.tensor(make_advantages(case))
        updater.update(rollouts)

    return lambda case: rollout(case) if case["kind"] == "rollout" else update(case)


class Arm:
    """A process that runs cases."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer("ready")

    def run(self, case: Mapping[str, Any]) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        return self._answer("seconds")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self, wanted: str) -> dict[str, float]:
        """The next line with our JSON; libraries write lines of their own."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{") and wanted in line:
                return dict(json.loads(line))
        sys.exit(f"error: {' '.join(map(str, self.process.args))} ended early")  # type: ignore[arg-type]


def summarise(seconds: Sequence[float], case: Mapping[str, Any], peak_mb: float) -> dict[str, Any]:
    """Median and range of the repeats, and the rate of the tokens that were asked for."""
    middle = statistics.median(seconds)
    tokens = case["groups"] * case["samples"] * case["new"]
    return {
        "seconds": middle,
        "range": [min(seconds), max(seconds)],
        "tokens_per_second": tokens / middle,
        "peak_mb": peak_mb,
        "repeats": len(seconds),
    }


def measure(
    commands: Mapping[str, Sequence[str]],
    cases: Mapping[str, Case],
    repeats: int,
    keep: Callable[[str, dict[str, Any]], None],
) -> None:
    """Hands over each case with its arms' results. Arms that cannot run it (vLLM does not train) sit out."""
    arms = {name: Arm(command) for name, command in commands.items()}
    for name, case in cases.items():
        taking = {arm: one for arm, one in arms.items() if arm != "vllm" or case["kind"] == "rollout"}
        seconds: dict[str, list[float]] = {arm: [] for arm in taking}
        peaks: dict[str, float] = {}
        for repeat in range(repeats):
            for arm, one in taking.items():
                answer = one.run(case)
                peaks[arm] = max(peaks.get(arm, 0.0), answer["peak_mb"])
                if repeat:
                    seconds[arm].append(answer["seconds"])
                if arm == "vllm":
                    time.sleep(PAUSE)
        rows = {arm: summarise(seconds[arm], case, peaks[arm]) for arm in taking}
        line = ", ".join(f"{arm} {row['tokens_per_second']:.0f} tokens/s" for arm, row in rows.items())
        print(f"{name}: {line}", flush=True)
        keep(name, rows)
    for one in arms.values():
        one.close()


def main(arguments: Sequence[str] | None = None) -> None:
    from zerozoo.language.device import has_int8_units
    from zerozoo.language.factory import SIZES, small_llama
    from zerozoo.language.families import character_tokenizer
    from zerozoo.language.models import built_in_directory, save_model
    from zerozoo.runs.cells import write_json
    from zerozoo.runs.versions import commit, machine
    from zerozoo.tasks.word_sums import ALPHABET

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", metavar="PYTHON", help="also measure vLLM, with the Python of its environment")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="the first is dropped")
    parser.add_argument("--model", default="smollm2-135m", help="a built-in model or a folder")
    every = [*CASES, *LONG]
    parser.add_argument("--cases", nargs="+", choices=every, default=every, metavar="CASE", help=", ".join(every))
    parser.add_argument("--output", type=Path, default=ROOT / "results/bench-language.json")
    parser.add_argument("--arm", nargs=2, metavar=("FOLDER", "PRECISION"), help=argparse.SUPPRESS)  # one of ours
    options = parser.parse_args(arguments)
    if options.arm:
        serve(zerozoo_arm(*options.arm))
        return
    folder = str(built_in_directory(options.model) or options.model)
    vocabulary = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))["vocab_size"]
    commands = {
        "zerozoo": [sys.executable, __file__, "--arm", folder, "full"],
        **({"zerozoo-int8": [sys.executable, __file__, "--arm", folder, "int8"]} if has_int8_units() else {}),
        "transformers": [sys.executable, str(PEERS), "transformers", folder],
    }
    if options.vllm:
        commands["vllm"] = [options.vllm, str(PEERS), "vllm", folder]
    about = {"machine": machine(), "load_before": os.getloadavg(), **commit()}
    results = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}

    def keep(model: str, name: str, rows: dict[str, Any]) -> None:
        results[name] = {"model": model, **about, "arms": rows}
        write_json(options.output, results)

    chosen = {name: CASES[name] | {"vocabulary": vocabulary} for name in options.cases if name in CASES}
    if chosen:
        measure(commands, chosen, options.repeats, partial(keep, options.model))
    growing = {name: LONG[name] | {"vocabulary": len(ALPHABET)} for name in options.cases if name in LONG}
    if growing:
        with tempfile.TemporaryDirectory() as tiny:
            save_model(small_llama(SIZES["base"], 0, character_tokenizer(ALPHABET), 2048, "long"), tiny)
            command = [sys.executable, __file__, "--arm", tiny, "full"]
            measure({"zerozoo": command}, growing, options.repeats, partial(keep, "tiny"))


if __name__ == "__main__":
    main()

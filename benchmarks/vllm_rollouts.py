"""Rollouts of vLLM alone, as JSON on standard output; run it with the Python of vLLM's environment.

    .venv-vllm/bin/python benchmarks/vllm_rollouts.py [--repeats 6] [--cases "rollout 32 x 32" ...]

The same work and the same arm as in benchmarks/language.py --vllm, which interleaves it with the others; groups of 8,
every response drawn to its full length, with log-probs. The first repeat of a case is dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from language import CASES, REPEATS, summarise
from language_peers import peak_mb, reset_peak, vllm_arm

ASKED = ("rollout 32 x 32", "rollout 96 x 32", "rollout 256 x 32", "rollout 96 x 128")


def main(arguments: Sequence[str] | None = None) -> None:
    from vllm import __version__

    from zerozoo.language.models import built_in_directory
    from zerozoo.runs.versions import commit, machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="the first is dropped")
    parser.add_argument("--model", default="smollm2-135m", help="a built-in model or a folder")
    rollouts = [name for name, case in CASES.items() if case["kind"] == "rollout"]
    parser.add_argument("--cases", nargs="+", choices=rollouts, default=list(ASKED))
    options = parser.parse_args(arguments)
    folder = str(built_in_directory(options.model) or options.model)
    vocabulary = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))["vocab_size"]
    load, run = os.getloadavg(), vllm_arm(folder)
    cases = {}
    for name in options.cases:
        case = CASES[name] | {"vocabulary": vocabulary}
        seconds = []
        reset_peak()
        for repeat in range(options.repeats):
            began = time.perf_counter()
            run(case)
            if repeat:
                seconds.append(time.perf_counter() - began)
        cases[name] = summarise(seconds, case, peak_mb())
    about = {"model": options.model, "vllm": __version__, "machine": machine(), "load_before": load, **commit()}
    print(json.dumps({**about, "cases": cases}, indent=2))


if __name__ == "__main__":
    main()

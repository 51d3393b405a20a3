"""One arm of benchmarks/language.py as a process: reads cases as JSON lines, writes what each took as JSON lines.

    python language_peers.py transformers FOLDER        generate and a plain training step of transformers
    python language_peers.py vllm FOLDER                vLLM on the CPU, rollouts only, in an environment of its own

Nothing of zerozoo is imported, so that each arm may have an environment of its own. A case is
{"kind": "rollout" or "update", "groups", "samples", "prompt", "new", "vocabulary"}: groups of equal prompts of `prompt`
tokens, `samples` responses of exactly `new` tokens each.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Case = dict[str, Any]


def make_prompts(case: Case) -> list[list[int]]:
    """Token ids of the groups' prompts: random words of the middle of the vocabulary, the same for every arm."""
    draw = _words(case, seed=0)
    return [[draw() for _ in range(case["prompt"])] for _ in range(case["groups"])]


def make_responses(case: Case) -> list[list[int]]:
    """Token ids of the responses that an update trains on."""
    draw = _words(case, seed=1)
    return [[draw() for _ in range(case["new"])] for _ in range(case["groups"] * case["samples"])]


def _words(case: Case, seed: int) -> Callable[[], int]:
    source, vocabulary = random.Random(seed), case["vocabulary"]
    return lambda: source.randrange(vocabulary // 10, vocabulary * 9 // 10)


def make_advantages(case: Case) -> list[float]:
    """One number a response, none of them zero, so that every row has a gradient."""
    draw = random.Random(2)
    return [draw.choice((-1, 1)) * (0.5 + draw.random()) for _ in range(case["groups"] * case["samples"])]


def peak_mb() -> float:
    """Largest resident memory, in 10^6 bytes: on Linux of this process and those it has started, since the last reset;
    elsewhere of this one, ever."""
    if not Path("/proc/self/status").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on a Mac
    return sum(_status(process).get("VmHWM", 0) for process in _family()) * 1024 / 1e6


def reset_peak() -> None:
    """Start a new maximum, where the system can do that."""
    for process in _family():
        clear = process / "clear_refs"
        if clear.exists():
            clear.write_text("5", encoding="ascii")


def _family() -> list[Path]:
    """Folders under /proc of this process and of all that it has started, and they, and so on."""
    everyone = [path for path in Path("/proc").glob("[0-9]*") if path.name.isdigit()]
    parents = {int(path.name): _status(path).get("PPid", 0) for path in everyone}
    family = [os.getpid()]
    for process in family:  # grows while it is walked
        family += [child for child, parent in parents.items() if parent == process]
    return [Path("/proc", str(process)) for process in family]


def _status(process: Path) -> dict[str, int]:
    """The numbers in a process's status; none when it has ended."""
    try:
        lines = (process / "status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = [line.split()[:2] for line in lines]
    return {pair[0].rstrip(":"): int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def serve(run: Callable[[Case], None]) -> None:
    """Runs the cases that come in and answers each with its seconds and the memory that it took."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        reset_peak()
        began = time.perf_counter()
        run(json.loads(line))
        print(json.dumps({"seconds": time.perf_counter() - began, "peak_mb": peak_mb()}), flush=True)


def transformers_arm(folder: str) -> Callable[[Case], None]:
    """Sampling by `generate`; an update as padded rows, whole logits, fused AdamW."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def rollout(case: Case) -> None:
        model.eval()
        prompts = torch.tensor(make_prompts(case)).repeat_interleave(case["samples"], 0)
        settings = GenerationConfig(
            max_new_tokens=case["new"], do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0
        )
        with torch.no_grad():
            output = model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=settings)
        assert output.shape[1] == case["prompt"] + case["new"]

    def update(case: Case) -> None:
        model.train()
        prompts = torch.tensor(make_prompts(case)).repeat_interleave(case["samples"], 0)
        responses = torch.tensor(make_responses(case))
        advantages = torch.tensor(make_advantages(case))[:, None]
        logits = model(torch.cat([prompts, responses], 1)).logits[:, case["prompt"] - 1 : -1].float()
        chosen = logits.gather(-1, responses[..., None])[..., 0] - logits.logsumexp(-1)
        loss = -(advantages * (chosen - chosen.detach()).exp()).sum() / responses.numel()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    model.generation_config.eos_token_id = None  # every response has its full length
    return lambda case: rollout(case) if case["kind"] == "rollout" else update(case)


def vllm_arm(folder: str) -> Callable[[Case], None]:
    """Sampling by vLLM as it comes, in a process that it starts, compiled; with the log-probs of the sampled tokens."""
    # All processors, as the other arms have them; by itself vLLM takes one of each physical core and keeps one free.
    processors = ",".join(str(one) for one in sorted(os.sched_getaffinity(0)))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", processors)
    from vllm import LLM, SamplingParams

    engine = LLM(
        folder,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=256,  # all rows of a case at once
        kv_cache_memory_bytes=3 * 2**30,  # enough for them; otherwise vLLM takes nine tenths of the machine
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
    )

    def rollout(case: Case) -> None:
        if case["kind"] != "rollout":
            raise ValueError("vLLM does not train")
        settings = SamplingParams(
            n=case["samples"], temperature=1.0, max_tokens=case["new"], ignore_eos=True, logprobs=0, detokenize=False
        )
        prompts = [{"prompt_token_ids": prompt} for prompt in make_prompts(case)]
        outputs = engine.generate(prompts, settings, use_tqdm=False)
        rows = [one for output in outputs for one in output.outputs]
        assert len(rows) == case["groups"] * case["samples"]
        assert all(len(row.token_ids) == len(row.logprobs) == case["new"] for row in rows)

    return rollout


ARMS = {"transformers": transformers_arm, "vllm": vllm_arm}

if __name__ == "__main__":
    serve(ARMS[sys.argv[1]](sys.argv[2]))

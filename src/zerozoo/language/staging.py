"""Parts of a training of several stages: from its config to those of its stages, and stages that many of them have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from zerozoo.language.example_files import Row, read_examples
from zerozoo.language.fine_tuning import FineTuning
from zerozoo.language.stages import Outputs
from zerozoo.language.tuning import Bench, TuningConfig, open_bench
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.task import TaskSet

C = TypeVar("C")
MODEL = "model"


def stage_config(kind: type[C], config: Any, **changes: Any) -> C:
    """A config of another kind: the fields of `config` with the same names, and `changes`, which win.

    Raises TypeError for a change that is no field of `kind`.
    """
    shared = {field.name: getattr(config, field.name) for field in fields(kind) if hasattr(config, field.name)}  # type: ignore[arg-type]
    return kind(**{**shared, **changes})


def check_least(config: Any, **least: float) -> None:
    """Raises UserError for a field that is below its least value, or NaN."""
    for name, value in least.items():
        if not getattr(config, name) >= value:
            raise UserError(f"{name} is {getattr(config, name)}, but must be at least {value:g}.")


def model_of(outputs: Mapping[str, Outputs], *stages: str, otherwise: str = "") -> str:
    """Folder of the model that the first of the named stages with one has left; `otherwise` where none has run."""
    for stage in stages:
        if stage in outputs and MODEL in outputs[stage].files:
            return str(outputs[stage].files[MODEL])
    return otherwise


def model_output(folder: Path, metrics: Mapping[str, float]) -> Outputs:
    """What a stage gives that has trained a model, left by `save_policy` in the stage's directory."""
    return Outputs({MODEL: folder / MODEL}, metrics)


def fine_tune(
    config: TuningConfig, run: Run, make: Callable[[Bench], list[Row]], tasks: TaskSet | None = None
) -> Outputs:
    """A stage of supervised fine-tuning, on the rows {"prompt", "response"} that `make` gives; it leaves a model.

    tasks: the problems, in place of those that the config names.
    """
    with open_bench(config, run, tasks) as bench:
        parts = bench.examples(("prompt", "response"), lambda: make(bench), read_examples)
        metrics = bench.fit(*(FineTuning(bench.scorer, part) for part in parts))
    return model_output(run.directory, metrics)

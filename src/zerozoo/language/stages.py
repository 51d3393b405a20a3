"""A training of several stages, each with a directory of its own, that goes on in the right stage after a kill.

runs/tulu3-1/                      metrics.jsonl, samples.jsonl: of all stages, one behind another
    stages/1-sft/                  the stage's own run: metrics, checkpoints, model, ...
        done.json                  what it gave; there once it is finished
    stages/2-dpo/
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zerozoo.language.parallel import ALONE, Ranks
from zerozoo.runs.checkpoints import replace_file
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.runs.streams import derived_seed

DONE = "done.json"


@dataclass(frozen=True)
class Outputs:
    """What a stage gives to later ones.

    Attributes:
        files: files and folders by name (a model, a data set), inside the stage's directory.
        metrics: numbers; those that are not finite are left out for later stages.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One part of a training.

    Attributes:
        name: also of its directory.
        work: (its run, outputs of the stages before by name) -> its outputs. It resumes by itself: it is called again
            on the same directory after a kill. A finished stage is not called any more.
    """

    name: str
    work: Callable[[Run, Mapping[str, Outputs]], Outputs]


def run_stages(run: Run, stages: Sequence[Stage], ranks: Ranks = ALONE) -> dict[str, Outputs]:
    """Run the stages in order, leaving out those that are done; the outputs of all of them.

    What a stage logs also goes into the run around it, with steps that count on from stage to stage and the number of
    the stage as the metric "stage".

    Raises:
        ValueError: two stages of one name; a stage that gives a file which is not there.
        UserError: a finished stage's file has gone.
    """
    if len({stage.name for stage in stages}) != len(stages):
        raise ValueError(f"every stage needs a name of its own: {[stage.name for stage in stages]}")
    outputs: dict[str, Outputs] = {}
    first = 0  # step of the run around the stage at which its step 0 is logged
    for number, stage in enumerate(stages, start=1):
        directory = run.path("stages", f"{number}-{stage.name}")
        done = _ask(directory, ranks)
        if done is None:
            run.say(f"Stage {number} of {len(stages)}: {stage.name}.")
            part = _StageRun(directory, run, first, number)
            with part:
                given = stage.work(part, outputs)
                if part.writes:
                    _write_done(part, given)
            done = _ask(directory, ranks)
            assert done is not None
        outputs[stage.name] = done.outputs
        first = done.last + 1
    return outputs


def prepare(run: Run, stages: Sequence[Stage], ranks: Ranks = ALONE) -> dict[str, Outputs]:
    """Stages before a training that is the run itself: they log, save and resume in its folder "preparation".

    So the curves of the run are those of its own training. Returns and raises as `run_stages`.
    """
    inside = Run(run.path("preparation"), run.seed)
    inside.recipe, inside.config, inside.say, inside.writes = run.recipe, run.config, run.say, run.writes
    with inside:
        return run_stages(inside, stages, ranks)


class _StageRun(Run):
    """The run of a stage, which passes on what it logs to the run around it."""

    def __init__(self, directory: Path, around: Run, first: int, number: int) -> None:
        # Random numbers of its own: two stages that sample would otherwise draw the same ones.
        super().__init__(directory, derived_seed(around.seed, "stage", directory.name))
        self.around, self.first, self.number = around, first, number
        self.recipe, self.config = around.recipe, around.config
        self.say, self.writes = around.say, around.writes

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        super().log(step, metrics)
        self.around.log(self.first + step, {**metrics, "stage": self.number})

    def sample(self, rows: Iterable[Mapping[str, Any]]) -> None:
        kept = list(rows)
        super().sample(kept)
        moved = [{**row, "step": self.first + row["step"]} if "step" in row else row for row in kept]
        self.around.sample({**row, "stage": self.number} for row in moved)

    def rewind(self, step: int) -> None:
        super().rewind(step)
        self.around.rewind(self.first + step)


@dataclass(frozen=True)
class _Done:
    """A finished stage; `last` is the last step that it logged, in the run around it."""

    outputs: Outputs
    last: int


def _write_done(run: _StageRun, outputs: Outputs) -> None:
    files = {}
    for name, path in outputs.files.items():
        place = Path(path).resolve()
        if not place.exists() or not place.is_relative_to(run.directory.resolve()):
            raise ValueError(f"the stage gives the file {path} as {name!r}, which is not in its directory")
        files[name] = str(place.relative_to(run.directory.resolve()))
    last = run.first + max((row["step"] for row in run.history()), default=0)
    finite = {name: value for name, value in outputs.metrics.items() if math.isfinite(value)}  # strict JSON
    record = {"files": files, "metrics": finite, "last": last}
    run.directory.mkdir(parents=True, exist_ok=True)
    replace_file(run.path(DONE), (json.dumps(record, indent=1) + "\n").encode())


def _ask(directory: Path, ranks: Ranks) -> _Done | None:
    """What the first process reads: the others wait until it has written what they will read."""
    return ranks.from_first(lambda: _read_done(directory))


def _read_done(directory: Path) -> _Done | None:
    path = directory / DONE
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    files = {name: directory / place for name, place in record["files"].items()}
    for name, place in files.items():
        if not place.exists():
            raise UserError(f"The stage in {directory} is done, but its {name} is gone; delete {path} to repeat it.")
    return _Done(Outputs(files, record["metrics"]), record["last"])

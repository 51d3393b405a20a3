"""`zerozoo train`: run a recipe, watch it, and show what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from zerozoo.cli.backends import (
    BACKEND_FLAGS,
    RayBackend,
    add_backend_flags,
    choose_backend,
    cluster_lines,
    resume_command,
    train_on_ray,
)
from zerozoo.cli.display import TrainingDisplay
from zerozoo.cli.outcome import show_outcome
from zerozoo.cli.registry import Recipe, load_recipe
from zerozoo.runs.errors import UserError
from zerozoo.runs.processes import process_count, process_rank

USAGE = """usage: zerozoo train SLUG [--preset NAME] [--FIELD VALUE ...]

  --preset NAME     start from a preset of the recipe (default: the paper's settings)
  --directory DIR   run directory (default: a new one under runs/); an existing run with the same config is resumed
  --resume DIR      go on with a run, with the config it has; fields given beside it may only make it longer
  --plan            print what would run (sequences, tokens, memory) and stop
  --sink NAME       also send metrics to tensorboard, wandb or trackio; may be repeated
  --backend NAME    local (default), or ray: on this machine or on a Ray cluster, with the flags
    --rollout-workers N   processes that write responses (default 1; 0: the learners do)
    --learners M          processes that train together (default 1)
    --address HOST:PORT   head node of the cluster; without it the cluster of a Ray job, or this machine

`zerozoo train SLUG --help` lists the fields of a recipe, `zerozoo list` the recipes."""


def parse_and_run(arguments: Sequence[str]) -> int:
    """Entry of the command line: options of the command first, all others are fields of the recipe's config."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    recipe = load_recipe(arguments[0])
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--sink", action="append", default=[])
    add_backend_flags(parser)
    options, fields = parser.parse_known_args(arguments[1:])
    config = _config(recipe, options, fields)
    backend = choose_backend(options, recipe, config)
    directory = _directory(recipe, options)
    console = Console()
    if process_rank():
        return _train_along(recipe, config, directory)
    _print_plan(console, recipe, config, backend)
    if options.plan:
        return 0
    if backend is None:
        return _train(console, recipe, config, directory, options)
    return train_on_ray(console, recipe, config, directory, options.sink, backend)


class _Parser(ArgumentParser):
    """Says what is wrong in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}.")


def _config(recipe: Recipe, options: Namespace, fields: Sequence[str]) -> Any:
    if options.resume is not None:
        from zerozoo.runs.run import Run

        if options.preset is not None or options.directory is not None:
            raise UserError("--resume takes everything from the run; leave out --preset and --directory.")
        default = recipe.make_config(_typed(recipe, Run.open(options.resume).config))
    else:
        default = recipe.make_config({}, options.preset)
    _check_flags(recipe, fields)
    config = _parse_fields(recipe, default, fields)
    if options.resume is not None:
        _check_length(options.resume, getattr(config, "steps", None))
    return config


def _check_length(directory: Path, steps: int | None) -> None:
    """A run cannot become shorter than what it has done."""
    from zerozoo.runs.run import Run

    done = max((row["step"] for row in Run.open(directory).history()), default=0)
    if steps is not None and steps < done:
        raise UserError(f"{directory} has done {done} steps already; --steps {steps} would be fewer.")


def _parse_fields(recipe: Recipe, default: Any, fields: Sequence[str]) -> Any:
    import tyro

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(
                recipe.config_class,
                default=default,
                args=list(fields),
                prog=f"zerozoo train {recipe.slug}",
                description=recipe.module.__doc__,
            )
    except SystemExit as end:
        if not end.code:  # --help
            raise
        # tyro prints a title, a rule of dashes, what is wrong, another rule and where to find help.
        _, wrong, *_ = re.split(r"^\W*-{5,}\W*$", printed.getvalue(), flags=re.MULTILINE)
        raise UserError(f"{' '.join(wrong.split()).rstrip('.')}.") from None


def _typed(recipe: Recipe, stored: dict[str, Any]) -> dict[str, Any]:
    """Config values from JSON, where tuples have become lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}


def _check_flags(recipe: Recipe, fields: Sequence[str]) -> None:
    """One sentence for a flag that does not exist, with the nearest one that does."""
    known = set()
    for field in dataclasses.fields(recipe.config_class):
        name = field.name.replace("_", "-")
        known |= {name, f"no-{name}"} if field.type in (bool, "bool") else {name}
    commands = {"preset", "directory", "resume", "plan", "sink", "help", *BACKEND_FLAGS}
    for word in fields:
        if not word.startswith("--"):
            continue
        name = word[2:].split("=")[0].replace("_", "-")
        if name not in known | commands:
            near = difflib.get_close_matches(name, known | commands, n=1)
            hint = f"did you mean --{near[0]}?" if near else f"`zerozoo show {recipe.slug}` lists all fields."
            raise UserError(f"{recipe.slug} has no field --{name}; {hint}")


def _directory(recipe: Recipe, options: Namespace) -> Path:
    if options.resume is not None:
        return Path(options.resume)
    if options.directory is not None:
        return Path(options.directory)
    if process_count() > 1:
        raise UserError("Several processes write one run: say where with --directory.")
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{recipe.slug}-{options.preset or 'custom'}-{stamp}"


def _print_plan(console: Console, recipe: Recipe, config: Any, backend: RayBackend | None) -> None:
    if recipe.plan is None:
        return
    table = Table(title=f"{recipe.slug}: the plan", show_header=False, title_justify="left")
    for name, text in [*recipe.plan(config), *(cluster_lines(config, backend) if backend else [])]:
        table.add_row(name, text)
    console.print(table)


def _train_along(recipe: Recipe, config: Any, directory: Path) -> int:
    """What the processes beside the first one do: the same training, shown and written by the first alone."""
    from zerozoo.runs.run import Run

    values = dataclasses.asdict(config)
    recipe.train(config, Run.follow(directory, recipe.slug, values, values.get("seed", 0)))
    return 0


def _train(console: Console, recipe: Recipe, config: Any, directory: Path, options: Namespace) -> int:
    from zerozoo.runs.run import Run, remove_unused
    from zerozoo.runs.sinks import make_sink

    values = dataclasses.asdict(config)
    seed = values.get("seed", 0)
    sinks = [make_sink(name, directory, directory.name, values) for name in options.sink]
    existed = directory.exists()
    run = Run.start(directory, recipe.slug, values, seed, sinks=sinks, extendable=recipe.extendable)
    resume = resume_command(recipe, directory)
    with run, TrainingDisplay(console, values.get("steps", 0)) as display:
        run.sinks.append(display)
        run.say, run.show = display.say, display.show
        run.say(f"Run directory: {directory}")
        try:
            recipe.train(config, run)
        except KeyboardInterrupt:
            display.close()
            console.print(f"Interrupted. To go on: {resume}", highlight=False, soft_wrap=True)
            raise
        except UserError:
            remove_unused(run, existed)
            raise
        finally:
            run.sinks.remove(display)
    show_outcome(console, recipe, run)
    return 0

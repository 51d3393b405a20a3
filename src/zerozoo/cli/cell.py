"""One cell of a claim (one arm under one seed) as a process of its own; `zerozoo reproduce` starts it.

    python -m zerozoo.cli.cell --slug S --claim NAME --arm A --seed N --directory D [--threads T] [--smoke] [--key K]

It trains in the run directory D, or goes on where a killed cell stopped, and writes D/cell.json at the very end:
key (see claims.py), values (what `train` returned; null for a number that is not finite), seconds of training, and the
whole config, defaults included ("inf" where a field has no limit). Exit code 2 with one sentence for a mistake of the
user, as everywhere.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from zerozoo.runs.cells import HARNESS, THREADS, Cell, claim_cells, write_json
from zerozoo.runs.claims import Claim
from zerozoo.runs.errors import UserError

WATCH_SECONDS = 0.5


def cell_command(cell: Cell) -> list[str]:
    """Command line of the process that runs `cell`."""
    options = {"slug": cell.slug, "claim": cell.claim, "arm": cell.arm, "seed": cell.seed, "threads": cell.threads}
    options |= {"directory": cell.directory, "key": cell.key}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "zerozoo.cli.cell", *words, *(["--smoke"] if cell.smoke else [])]


def find_claim(slug: str, claims: Sequence[Claim], name: str) -> Claim:
    """The claim called `name`; UserError names the ones there are."""
    for claim in claims:
        if claim.name == name:
            return claim
    known = ", ".join(claim.name for claim in claims) or "none"
    raise UserError(f"{slug} has no claim {name!r}; its claims: {known}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    # Before torch and the BLAS libraries are loaded, which read these once.
    os.environ.update(dict.fromkeys(THREADS, str(options.threads)))
    _end_with_harness()
    try:
        _run_cell(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m zerozoo.cli.cell", description="Run one cell of a claim.")
    parser.add_argument("--slug", required=True, help="recipe")
    parser.add_argument("--claim", default="main", help="name of the claim")
    parser.add_argument("--arm", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True, help="run directory")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="with the claim's smoke overrides")
    parser.add_argument("--key", help="refuse to run if the cell's key is another one")
    return parser.parse_args(arguments)


def _run_cell(options: argparse.Namespace) -> None:
    # Late, because a recipe loads torch, and the threads must have been set by then.
    import torch

    from zerozoo.cli.registry import load_recipe
    from zerozoo.runs.run import Run, json_safe

    recipe = load_recipe(options.slug)
    claim = find_claim(options.slug, recipe.claims, options.claim)
    cells = claim_cells(options.slug, claim, Path(), options.smoke, options.threads)
    keys = {(cell.arm, cell.seed): cell.key for cell in cells}
    key = keys.get((options.arm, options.seed))
    if key is None:
        known = ", ".join(f"{arm} seed {seed}" for arm, seed in keys)
        raise UserError(f"the claim has no cell {options.arm} seed {options.seed}; its cells: {known}")
    if options.key not in (None, key):
        # The number would come from other code than its key says.
        raise UserError("zerozoo or a package was changed after the claim was started: run the claim again")
    torch.set_num_threads(options.threads)
    overrides = claim.overrides(options.arm, options.smoke)
    if any(field.name == "seed" for field in fields(recipe.config_class)):
        overrides["seed"] = options.seed
    config = recipe.make_config(overrides)
    began = time.perf_counter()
    with Run.start(options.directory, options.slug, asdict(config), options.seed) as run:
        values = _numbers(recipe.train(config, run))
        seconds = time.perf_counter() - began
        result = {"key": key, "values": values, "seconds": seconds, "config": _spelled(json_safe(asdict(config)))}
        write_json(run.path("cell.json"), result)


def _spelled(value: Any) -> Any:
    """Settings without a limit, which JSON has no number for, as the text "inf"."""
    if isinstance(value, dict):
        return {name: _spelled(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_spelled(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(values: Mapping[str, Any]) -> dict[str, float | None]:
    numbers = {name: math.nan if value is None else float(value) for name, value in values.items()}
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def _end_with_harness() -> None:
    """A killed harness must not leave cells behind that still write: they end with it, workers included."""
    harness = os.environ.pop(HARNESS, None)  # popped: it is meant for this process, not for its workers
    if harness is None:
        return

    def watch() -> None:
        while os.getppid() == int(harness):
            time.sleep(WATCH_SECONDS)
        if os.getpgrp() == os.getpid():  # a session of our own, as the harness makes it
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, name="harness", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())

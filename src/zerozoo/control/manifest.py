"""Generation manifests: what made a data set, written beside it, so that it can be made again and recognised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zerozoo.control.episodes import ARRAYS, Episodes
from zerozoo.runs.checkpoints import replace_file
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.runs.sinks import json_safe
from zerozoo.runs.versions import versions


def manifest(
    data: Episodes, maker: str, config: Mapping[str, Any], seed: int, reference: tuple[float, float] | None = None
) -> dict[str, Any]:
    """A JSON record of the data: who made it, from which config and seed, with which versions, and what it holds.

    reference: the returns that score 0 and 100 (a random and an expert policy), if they were measured.
    "sha256" is `digest(data)`.
    """
    returns = data.returns()
    return {
        "maker": maker,
        "config": json_safe(config),
        "seed": seed,
        "reference": None if reference is None else list(reference),
        "episodes": data.episodes,
        "steps": len(data),
        "terminated": int(data.terminated.sum()),
        "obs_shape": list(data.spec.obs_shape),
        "action_size": data.spec.action_size,
        "discrete": data.spec.discrete,
        "extras": sorted(data.extras),
        "return": {"mean": float(returns.mean()), "low": float(returns.min()), "high": float(returns.max())},
        "sha256": digest(data),
        "versions": versions(),
    }


def digest(data: Episodes) -> str:
    """sha256 over names, types, shapes and bytes of all arrays: equal if and only if the data is, bit for bit."""
    total = hashlib.sha256()
    fields = [(name, getattr(data, name)) for name in ARRAYS] + sorted(data.extras.items())
    for name, values in fields:
        total.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        total.update(np.ascontiguousarray(values).data)
    return total.hexdigest()


def manifest_path(data: Path | str) -> Path:
    """Where the manifest of a data file or folder is: its name with .manifest.json added."""
    path = Path(data)
    return path.with_name(f"{path.name}.manifest.json")


def write_manifest(data: Path | str, record: Mapping[str, Any]) -> Path:
    """Writes the record beside the data file or folder; returns where."""
    path = manifest_path(data)
    replace_file(path, (json.dumps(record, indent=2) + "\n").encode())
    return path


def keep_manifest(run: Run, data: Episodes, maker: str, config: Mapping[str, Any]) -> None:
    """Writes what made the data of a run into its directory, the first time that it is made there."""
    if run.writes and not manifest_path(run.path("data")).exists():
        run.directory.mkdir(parents=True, exist_ok=True)
        write_manifest(run.path("data"), manifest(data, maker, config, run.seed))


def read_manifest(data: Path | str) -> dict[str, Any] | None:
    """The record beside a data file or folder, or None if there is none. UserError if it is broken."""
    path = manifest_path(data)
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a manifest ({error}): remove it or make the data again") from error

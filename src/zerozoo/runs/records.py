"""A tracked run as it lies on the disk, read without torch. What is damaged is left out and said in `notes`.

Beside what `Run` writes, a run directory may hold about.json with what is known about the run but changes nothing in
it: id, name, project, entity, user, tags, origin, and for an imported run its state.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zerozoo.runs.cells import write_json
from zerozoo.runs.errors import UserError

CONFIG, VERSIONS, METRICS, ABOUT = "config.json", "versions.json", "metrics.jsonl", "about.json"
CELL, LOCK = "cell.json", ".lock"
PROJECT = "zerozoo"  # of a run that does not say
ENVIRONMENT_FIELDS = ("environment", "env_id", "env", "env_name", "task", "data")  # first that the config has
RUNTIME = "_runtime"  # seconds since the start, where a tracker logged them


@dataclass(frozen=True)
class Record:
    """One run. `final` has the last value of every metric, None for one that was not finite.

    `state`: done, stopped (fewer steps than planned), empty (no rows) or damaged (no readable config); `status` says
    "running" besides. `planned` is None for a config without `steps`. `same_as` names the run that this one copies.
    """

    directory: Path
    id: str
    recipe: str = ""
    seed: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    final: Mapping[str, float | None] = field(default_factory=dict)
    environment: str = ""
    state: str = "empty"
    planned: float | None = None
    rows: int = 0
    last_step: float | None = None
    began: float | None = None
    changed: float = 0.0
    notes: tuple[str, ...] = ()
    same_as: Path | None = None

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self.about.get("tags", ()))

    @property
    def user(self) -> str:
        return str(self.about.get("user", ""))

    @property
    def project(self) -> str:
        return str(self.about.get("project", PROJECT))

    @property
    def entity(self) -> str:
        return str(self.about.get("entity", ""))

    @property
    def status(self) -> str:
        """The state now: "running" while a process writes the run."""
        unfinished = self.state != "done" or self.planned is None
        return "running" if unfinished and in_use(self.directory) else self.state

    @property
    def steps(self) -> str:
        """Steps done of steps planned, "12/40"; "12" for a recipe that plans none."""
        done = "-" if self.last_step is None else f"{self.last_step:.15g}"
        return done if self.planned is None else f"{done}/{self.planned:.15g}"

    def fields(self) -> dict[str, Any]:
        """What a query may ask for: the config by dotted keys, and where it has no such key what the run is."""
        known = {"recipe": self.recipe, "seed": self.seed, "environment": self.environment, "id": self.id}
        known |= {"name": self.about.get("name", self.directory.name), "state": self.state}
        return {**known, **flatten(self.config)}

    def step_key(self, wanted: str) -> str:
        """`wanted` if the run logs it, else its own count of steps."""
        return wanted if wanted in self.final else "step"


@dataclass(frozen=True)
class Series:
    """The finite values of a metric in the order of the steps: steps, seconds since the start, values, all (n,)."""

    steps: NDArray[np.float64]
    seconds: NDArray[np.float64]
    values: NDArray[np.float64]

    @classmethod
    def sorted(cls, steps: ArrayLike, seconds: ArrayLike, values: ArrayLike) -> Series:
        """Of points in any order, without those that are not finite; equal steps keep their order."""
        table = np.array([steps, seconds, values], dtype=np.float64).reshape(3, -1)
        table = table[:, np.isfinite(table).all(axis=0)]
        return cls(*table[:, np.argsort(table[0], kind="stable")])

    def __len__(self) -> int:
        return len(self.values)


def find_runs(root: Path, known: Collection[Path] = (), skipped: list[Path] | None = None) -> Iterator[Path]:
    """Run directories below `root`, `root` itself included. A run's own folders are not searched.

    Those in `known` are not looked into again. Folders that cannot be read are added to `skipped`.
    """

    def unreadable(error: OSError) -> None:
        if skipped is not None:
            skipped.append(Path(error.filename))

    for name, names, files in os.walk(root, onerror=unreadable):
        folder = Path(name)
        if (CONFIG in files or METRICS in files) and (folder in known or is_run(folder)):
            names.clear()
            yield folder
        else:
            names[:] = sorted(name for name in names if not name.startswith("."))


def is_run(folder: Path) -> bool:
    """Whether `folder` holds a run, damaged ones included: a model in Hugging Face format has a config.json, too."""
    try:
        stored = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        stored = None
    complete = isinstance(stored, dict) and {"recipe", "seed", "config"} <= stored.keys()
    return complete or (folder / METRICS).exists()


def read_record(directory: Path) -> Record:
    """The run in `directory`, whatever is wrong with its files. Raises UserError if it is no run at all."""
    if not directory.is_dir():
        raise UserError(f"there is no run directory {directory}; `zerozoo runs list` shows those below ./runs")
    if not (directory / CONFIG).exists() and not (directory / METRICS).exists():
        raise UserError(f"{directory} is not a run directory: it has no {CONFIG}")
    notes: list[str] = []
    stored = _read_object(directory / CONFIG, notes)
    config = stored.get("config")
    readable = isinstance(config, dict) and isinstance(stored.get("recipe"), str)
    if stored and not readable:
        notes.append(f"{CONFIG} is not a run's")
    config = config if isinstance(config, dict) else {}
    versions = _read_object(directory / VERSIONS, notes)
    about = _about(directory, notes)
    rows, damage = read_rows(directory / METRICS)
    notes += damage
    planned = config.get("steps")
    plan = float(planned) if isinstance(planned, (int, float)) and not isinstance(planned, bool) else None
    final = _final(rows)
    if about.get("state") in ("done", "stopped") and rows:
        state = about["state"]
    else:
        state = _state(rows, plan, (directory / CELL).exists()) if readable else "damaged"
    times = [row["time"] for row in (rows[:1] + rows[-1:]) if isinstance(row.get("time"), (int, float))]
    return Record(
        directory=directory,
        id=str(about.get("id") or _fingerprint(directory, stored, rows)),
        recipe=str(stored.get("recipe", "")),
        seed=stored["seed"] if isinstance(stored.get("seed"), int) else 0,
        config=config,
        versions=versions,
        about=about,
        final=final,
        environment=str(config.get(environment_field(config) or "", "")),
        state=state,
        planned=plan,
        rows=len(rows),
        last_step=max((float(row["step"]) for row in rows), default=None),
        began=float(times[0]) if times else None,
        changed=float(times[-1]) if times else _changed(directory),
        notes=tuple(notes),
    )


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The readable rows of a metrics.jsonl, and a sentence for everything that was left out.

    A missing file has no rows. A row needs a number as its "step".
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"{path.name} cannot be read ({error.strerror})"]
    rows: list[dict[str, Any]] = []
    damaged = []
    for number, line in enumerate(lines[:-1], start=1):
        row = _parsed(line)
        if row is not None:
            rows.append(row)
        elif line:
            damaged.append(number)
    notes = []
    if len(damaged) == 1:
        notes.append(f"line {damaged[0]} of {path.name} cannot be read and was left out")
    elif damaged:
        where = f"{len(damaged)} lines of {path.name}, the first is line {damaged[0]},"
        notes.append(f"{where} cannot be read and were left out")
    if lines[-1]:
        notes.append(f"the last row of {path.name} is half-written and was left out")
    back = sum(second["step"] < first["step"] for first, second in zip(rows, rows[1:], strict=False))
    if back:
        notes.append(f"the steps of {path.name} go back {back} times: two writers, or a resume that did not rewind")
    return rows, notes


def read_series(record: Record, metric: str, step: str = "step") -> Series:
    """The values of `metric` over `step` from metrics.jsonl; empty if the run has none."""
    key, needle = record.step_key(step), json.dumps(metric).encode()
    points = []
    for line in _lines(record.directory / METRICS):
        if metric.isascii() and needle not in line:  # a metric that is logged seldom: most rows need no parsing
            continue
        row = _parsed(line)
        if row is None or not isinstance(row.get(metric), (int, float)) or not isinstance(row.get(key), (int, float)):
            continue
        points.append((row[key], seconds_of(row, record.began), row[metric]))
    return Series.sorted(*zip(*points, strict=True)) if points else Series.sorted([], [], [])


def seconds_of(row: Mapping[str, Any], began: float | None) -> float:
    """Seconds since the run's start: the tracker's own count, else by the clock; 0 without either."""
    if isinstance(row.get(RUNTIME), (int, float)):
        return float(row[RUNTIME])
    return float(row["time"]) - began if began is not None and isinstance(row.get("time"), (int, float)) else 0.0


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings by dotted keys: {"a": {"b": 1}} is {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def text_of(value: Any) -> str:
    """A value of a config as a query writes it: text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def in_use(directory: Path) -> bool:
    """Whether a process writes this run now: it then holds the lock that `Run` takes."""
    try:
        descriptor = os.open(directory / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)  # gives the lock back
    return False


def label_runs(records: Sequence[Record]) -> list[str]:
    """The last parts of the directories, as many as are needed to tell them apart."""
    parts = [record.directory.absolute().parts for record in records]
    for count in range(1, max(map(len, parts), default=0) + 1):
        labels = ["/".join(part[-count:]) for part in parts]
        if len(set(labels)) == len({*parts}):
            return labels
    return []


def write_about(directory: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Puts `changes` into about.json; returns all of it. Raises UserError for a damaged file and a full disk."""
    notes: list[str] = []
    about = _read_object(directory / ABOUT, notes) if (directory / ABOUT).exists() else {}
    if notes:
        raise UserError(f"{directory}: {notes[0]}; mend or delete it first")
    about |= changes
    with writing(directory / ABOUT):
        write_json(directory / ABOUT, about)
    return about


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """UserError in place of what the system says about a full disk or a folder that cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def _about(directory: Path, notes: list[str]) -> dict[str, Any]:
    about = _read_object(directory / ABOUT, notes) if (directory / ABOUT).exists() else {}
    tags = about.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        notes.append(f"the tags in {ABOUT} are not a list of texts and were left out")
        about["tags"] = []
    return about if "user" in about else {**about, "user": _owner(directory)}


def _owner(directory: Path) -> str:
    try:
        return directory.owner()
    except (KeyError, OSError, NotImplementedError):  # a user without a name, or a system without users
        return ""


def _read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_bytes())
    except FileNotFoundError:
        notes.append(f"{path.name} is missing")
        return {}
    except OSError as error:
        notes.append(f"{path.name} cannot be read ({error.strerror})")
        return {}
    except ValueError as error:
        notes.append(f"{path.name} is damaged ({error})")
        return {}
    if not isinstance(stored, dict):
        notes.append(f"{path.name} is damaged (not a JSON object)")
        return {}
    return stored


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), (int, float)) else None


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except OSError:
        return []


def _final(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    latest: dict[str, Any] = {}
    for row in rows:
        latest |= row
    numbers = {name: value for name, value in latest.items() if value is None or isinstance(value, (int, float))}
    return {name: value for name, value in numbers.items() if name not in ("step", "time")}


def _state(rows: Sequence[Mapping[str, Any]], planned: float | None, finished: bool) -> str:
    """Done once the next row would lie beyond the plan: not every loop logs its very last step."""
    if not rows:
        return "empty"
    steps = sorted({float(row["step"]) for row in rows})
    interval = steps[-1] - steps[-2] if len(steps) > 1 else 0.0
    if finished or planned is None or steps[-1] >= planned or steps[-1] + interval > planned:
        return "done"
    return "stopped"


def environment_field(config: Mapping[str, Any]) -> str | None:
    """The field of the config that names what the run is trained in or on."""
    return next((name for name in ENVIRONMENT_FIELDS if isinstance(config.get(name), str) and config[name]), None)


def _fingerprint(directory: Path, stored: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The same for a run wherever it lies: its first row has the time to the microsecond."""
    content = [stored, rows[0]] if rows else [str(directory.absolute())]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def _changed(directory: Path) -> float:
    try:
        return (directory / CONFIG).stat().st_mtime
    except OSError:
        return 0.0

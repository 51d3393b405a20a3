"""Checkpoints that survive a kill, a full disk and a flipped bit.

A checkpoint is a folder `step-000010` with `tensors.safetensors`, `state.json` and `checksum.json` (sha256 of the
two). It is written under a temporary name, flushed to the disk and renamed, so a folder with its final name is
complete; the checksum finds what happens to it later. Where several processes have written it, it also has a file of
each with the rows that this process has (`parts`), under the same checksum.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from zerozoo.runs.errors import UserError
from zerozoo.runs.parts import INDEX, PartedTensors, Rows, Team, write_index, write_part

TENSORS, STATE, CHECKSUM = "tensors.safetensors", "state.json", "checksum.json"
TEMPORARY = ".temporary-"
REPLACED = ".replaced"  # a checkpoint counts under this name until the one that replaces it is in place
NAME = re.compile(r"step-(\d+)(\.replaced)?")
HEADROOM = 1_000_000  # bytes wanted free beyond tensors and state: headers, blocks of the file system

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What `save_checkpoint` was given, bit for bit; `warnings` names newer ones that were damaged and skipped.

    The tensors of one that several processes have written are read when they are asked for (`PartedTensors`).
    """

    step: int
    tensors: Mapping[str, torch.Tensor]
    state: dict[str, Any]
    warnings: tuple[str, ...] = ()


class DamagedError(Exception):
    """This checkpoint must not be used; the message is the reason."""


def save_checkpoint(
    root: Path, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Writes `root/step-<step>`, then removes all but the `keep` newest; returns the folder.

    Tensors may have any shape, dtype and device (they come back on the CPU), but no two may share their memory:
    pass tied weights once. `state` holds JSON values with string keys; NaN and infinity are kept, tuples come back
    as lists. Checkpoints of later steps are removed too: whoever saves step 20 after step 30 has gone back, and
    step 30 belongs to a future that no longer happens. Raises UserError when the disk is full; the checkpoints that
    were there are then untouched.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    root = Path(root)
    text = _state_text(step, state, list(tensors))
    packed = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root)
    _require_space(root, step, sum(tensor.nbytes for tensor in packed.values()) + len(text))
    temporary = root / f"{TEMPORARY}{step:06d}"
    try:
        temporary.mkdir()
        _write_folder(temporary, packed, text)
        folder = _put_in_place(temporary, root / f"step-{step:06d}")
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_disk_full(error):
            raise UserError(_no_space(root, step, "the disk became full while it was written")) from error
        raise
    _prune(root, step, keep)
    return folder


def save_together(
    root: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    parts: Mapping[str, Rows],
    state: Mapping[str, Any],
    team: Team,
    keep: int = 2,
) -> None:
    """As `save_checkpoint`, by all processes of a team at once, on a disk that all of them see.

    Each writes its rows of the `parts`, which have the same names in all; `tensors` and `state` are those of the first.
    When one process cannot write, all of them raise UserError.
    """
    root = Path(root)
    temporary = root / f"{TEMPORARY}{step:06d}"
    text = _state_text(step, state, [*tensors, *parts])
    packed = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    sizes = team.gather([sum(rows.values.nbytes for rows in parts.values())])

    def begin() -> None:
        root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(root)
        _require_space(root, step, sum(sizes) + sum(tensor.nbytes for tensor in packed.values()) + len(text))
        temporary.mkdir()

    def write() -> tuple[str, str, dict[str, tuple[int, int]]]:
        if not temporary.exists():
            raise UserError(
                f"process {team.rank} does not see the folder {temporary}: the processes of a run need a --directory"
                " on a disk that all of them see"
            )
        path = write_part(temporary, team.rank, parts)
        _flush(path)
        return path.name, _sha256(path), {name: (rows.start, rows.stop) for name, rows in parts.items()}

    def finish(written: list[tuple[str, str, dict[str, tuple[int, int]]]]) -> None:
        write_index(temporary, parts, [held for *_, held in written])
        _write_folder(temporary, packed, text, {name: checksum for name, checksum, _ in written})
        _put_in_place(temporary, root / f"step-{step:06d}")

    try:
        _in_turn(team, begin if team.rank == 0 else None, root, step)
        written = _in_turn(team, write, root, step)
        _in_turn(team, (lambda: finish(written)) if team.rank == 0 else None, root, step)
    except BaseException:
        if team.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if team.rank == 0:
        _prune(root, step, keep)


def _in_turn(team: Team, action: Callable[[], Any] | None, root: Path, step: int) -> list[Any]:
    """What the action gives in every process; when it fails in one, all of them raise."""
    result, error = None, None
    try:
        result = action() if action else None
    except Exception as raised:
        error = raised
    if error is not None and is_disk_full(error):
        error = UserError(_no_space(root, step, "the disk became full while it was written"))
    outcomes = team.gather([(result, None if error is None else str(error))])
    if error is not None:
        raise error
    if failed := [reason for _, reason in outcomes if reason is not None]:
        raise UserError(failed[0])
    return [outcome for outcome, _ in outcomes]


def load_newest(root: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint below `root`, or None when there is none at all.

    A damaged one is skipped with a warning (logged, and in `Checkpoint.warnings`). Raises UserError when checkpoints
    exist but every one is damaged: to start again in silence would throw the run away.
    """
    root = Path(root)
    warnings: list[str] = []
    folders = _folders(root)
    for folder in folders:
        try:
            step, tensors, state = _read_folder(folder)
        except DamagedError as damage:
            if not folder.exists():  # the writing process has saved and pruned meanwhile: look again
                return load_newest(root)
            warnings.append(f"checkpoint {folder.name} is damaged ({damage}) and was skipped")
            log.warning("%s in %s", warnings[-1], root)
        else:
            return Checkpoint(step, tensors, state, tuple(warnings))
    if folders:
        raise UserError(
            f"none of the checkpoints in {root} can be used ({'; '.join(warnings)}): restore one from a copy, "
            f"or delete that folder to start from the beginning"
        )
    return None


def remove_leftovers(root: Path) -> None:
    """Removes what a killed writer left behind; only for the process that may write this run."""
    for leftover in Path(root).glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file such that after a kill or a power cut it holds either the old or the new content."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise UserError(f"the disk is full: {path} cannot be written; free some space") from error
        raise
    _sync_directory(path.parent)


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` says that the disk, the quota or the allowed file size is used up."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, SafetensorError):  # it has the system's error in its text only
        code = re.search(r"(?:os error|code:) (\d+)", str(error))
        return code is not None and int(code.group(1)) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return False


def _state_text(step: int, state: Mapping[str, Any], names: list[str]) -> bytes:
    _check_keys(state, "state")
    return json.dumps({"step": step, "tensors": names, "state": dict(state)}).encode()


def _check_keys(value: Any, where: str) -> None:
    """JSON turns the key 1 into "1" without a word; an exact resume must not depend on that."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}: a checkpoint's state needs string keys")
            _check_keys(inner, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_keys(inner, where)


def _write_folder(
    folder: Path, tensors: dict[str, torch.Tensor], text: bytes, parts: Mapping[str, str] | None = None
) -> None:
    """Write what is missing in a folder; `parts` are the checksums of the files of other processes that are there."""
    save_file(tensors, folder / TENSORS)
    (folder / STATE).write_bytes(text)
    own = [TENSORS, STATE, *([INDEX] if parts else [])]
    sums = {**{name: _sha256(folder / name) for name in own}, **(parts or {})}
    (folder / CHECKSUM).write_text(json.dumps(sums, indent=1) + "\n")
    for name in (*own, CHECKSUM):
        _flush(folder / name)
    _sync_directory(folder)


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _put_in_place(temporary: Path, folder: Path) -> Path:
    if folder.exists():  # a folder with something in it cannot be renamed over
        replaced = folder.with_name(folder.name + REPLACED)
        if replaced.exists():
            _discard(replaced)
        os.rename(folder, replaced)
    os.rename(temporary, folder)
    _sync_directory(folder.parent)
    return folder


def _read_folder(folder: Path) -> tuple[int, Mapping[str, torch.Tensor], dict[str, Any]]:
    try:
        sums = json.loads((folder / CHECKSUM).read_bytes())
        for name in {TENSORS: 0, STATE: 0, **sums}:
            if _sha256(folder / name) != sums[name]:
                raise DamagedError(f"{name} does not match its checksum")
        content = json.loads((folder / STATE).read_bytes())
        loaded = load_file(folder / TENSORS)
        # In the caller's order, which safetensors does not keep, and cloned into torch's own memory: what load_file
        # gives are windows into the file with the file's alignment, and some kernels round differently for another.
        whole = {name: loaded[name].clone() for name in content["tensors"] if name in loaded or INDEX not in sums}
        tensors = PartedTensors(folder, whole, content["tensors"]) if INDEX in sums else whole
        step, state = int(content["step"]), content["state"]
    except FileNotFoundError as error:
        raise DamagedError(f"{Path(error.filename or 'a file').name} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DamagedError(f"{type(error).__name__}: {error}") from error
    if step != _step(folder):
        raise DamagedError(f"it holds step {step}")
    return step, tensors, state


def _folders(root: Path) -> list[Path]:
    """Checkpoint folders, newest first; of two of one step the one that replaces the other comes first."""
    found = [path for path in Path(root).glob("step-*") if path.is_dir() and NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (_step(path), not path.name.endswith(REPLACED)), reverse=True)


def _step(folder: Path) -> int:
    return int(folder.name.removesuffix(REPLACED).removeprefix("step-"))


def _prune(root: Path, step: int, keep: int) -> None:
    folders = _folders(root)
    current = [path for path in folders if _step(path) <= step and not path.name.endswith(REPLACED)]
    for folder in folders:
        if folder not in current[:keep]:
            _discard(folder)


def _discard(folder: Path) -> None:
    # Renamed first, so that a kill in the middle of the removal leaves no half checkpoint under a valid name.
    doomed = folder.with_name(f"{TEMPORARY}discarded-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _require_space(root: Path, step: int, size: int) -> None:
    needed, free = size + HEADROOM, shutil.disk_usage(root).free
    if free < needed:
        raise UserError(_no_space(root, step, f"it needs {_size(needed)} and {_size(free)} are free"))


def _no_space(root: Path, step: int, reason: str) -> str:
    folders = _folders(root)
    kept = f"the checkpoint of step {_step(folders[0])} is kept" if folders else "there is no earlier one"
    return f"no space for the checkpoint of step {step} in {root}: {reason}; {kept}; free some space and resume"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _sync_directory(folder: Path) -> None:
    """Flushes the names in `folder` to the disk: only then is a rename durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

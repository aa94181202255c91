"""Resume states on disk: whole or absent, verified by hash; the newest two are kept.

So is the one written at the step of the best held-out loss. There need not be one: the best weights
themselves are exported when they are found.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ..dit.whole_files import PARTIAL, flush_to_disk
from .files import file_sha256, require_space, write_json, write_tensors

log = logging.getLogger("dreamomni")

KEPT = 2
ASIDE = ".old-"
"""How the name of a checkpoint begins while another of its step takes its place, or after a kill then."""
FOLDER = re.compile(rf"(?:{re.escape(ASIDE)})?step-(\d{{9}})")
STATE, TENSORS, MANIFEST = "state.json", "state.safetensors", "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """Everything a run continues from: `tensors` and JSON `data`, after `step` optimizer steps."""

    step: int
    tensors: dict[str, Tensor]
    data: dict[str, Any]


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, oldest first, whole or not."""
    if not folder.is_dir():
        return []
    matches = [FOLDER.fullmatch(entry.name) for entry in folder.iterdir() if entry.is_dir()]
    return sorted({int(match.group(1)) for match in matches if match})


def checkpoint_path(folder: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` steps: also one put aside whose successor never came."""
    final, aside = places(folder, step)
    return aside if aside.is_dir() and not final.exists() else final


def places(folder: Path, step: int) -> tuple[Path, Path]:
    """Where the checkpoint after `step` steps lies, and where it is put while another takes its place."""
    name = f"step-{step:09d}"
    return folder / name, folder / f"{ASIDE}{name}"


def save_checkpoint(folder: Path, state: RunState, best_step: int | None = None) -> Path:
    """Write a checkpoint and then remove older ones; OSError (disk full) leaves the older ones untouched."""
    require_space(folder, sum(t.numel() * t.element_size() for t in state.tensors.values()), "a checkpoint")
    remove_partial(folder)
    partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    try:
        write_tensors(partial / TENSORS, state.tensors)
        write_json(partial / STATE, {"step": state.step, "data": state.data})
        hashes = {name: file_sha256(partial / name, lambda: mark(partial)) for name in (TENSORS, STATE)}
        write_json(partial / MANIFEST, hashes)
        flush_to_disk(partial)
        final, aside = places(folder, state.step)
        if final.exists():
            # Not removed first: a kill in between would lose the newest state.
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(final, aside)
        os.replace(partial, final)
        flush_to_disk(folder)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    prune(folder, best_step)
    return final


def mark(folder: Path) -> None:
    """Touch the folder, so that who watches it sees progress."""
    with suppress(OSError):
        os.utime(folder)


def remove_partial(folder: Path) -> None:
    """Clear away what a killed run left half written."""
    leftovers = list(folder.glob(f"{PARTIAL}*"))
    for step in checkpoint_steps(folder):
        final, aside = places(folder, step)
        if final.exists():
            leftovers.append(aside)
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)


def prune(folder: Path, best_step: int | None) -> None:
    """Keep the newest two checkpoints, and that of the best step where one was written at that step."""
    for step in checkpoint_steps(folder)[:-KEPT]:
        if step != best_step:
            for place in places(folder, step):
                shutil.rmtree(place, ignore_errors=True)


def damage(path: Path, files: Sequence[str] = (TENSORS, STATE)) -> str | None:
    """What is wrong with these files of a checkpoint, or None when each has its recorded hash."""
    try:
        hashes: Mapping[str, str] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        wrong = [name for name in files if hashes.get(name) != file_sha256(path / name)]
    except (OSError, ValueError) as error:
        return str(error)
    return f"{', '.join(wrong)} changed since it was written" if wrong else None


def load_checkpoint(path: Path) -> RunState:
    """The state in one checkpoint folder; ValueError when it is damaged."""
    fault = damage(path)
    if fault is not None:
        raise ValueError(f"checkpoint {path} is damaged: {fault}")
    data = json.loads((path / STATE).read_text(encoding="utf-8"))
    # Copies: the optimizer keeps some of them, and Windows lets nobody remove a file that is mapped.
    tensors = {name: tensor.clone() for name, tensor in load_file(path / TENSORS).items()}
    return RunState(step=data["step"], tensors=tensors, data=data["data"])


def load_newest(folder: Path) -> tuple[RunState | None, list[str]]:
    """(newest whole state or None, messages about the damaged ones that were passed over)."""
    messages = []
    for step in reversed(checkpoint_steps(folder)):
        try:
            return load_checkpoint(checkpoint_path(folder, step)), messages
        except ValueError as error:
            messages.append(f"{error}; it is passed over")
            log.warning(messages[-1])
    return None, messages


def newest_data(folder: Path) -> dict[str, Any] | None:
    """`data` of the newest checkpoint whose state.json is whole; None when there is none.

    The tensors, which may take minutes to read, are left alone: whoever continues from them checks them.
    """
    for step in reversed(checkpoint_steps(folder)):
        path = checkpoint_path(folder, step)
        fault = damage(path, (STATE,))
        if fault is None:
            return json.loads((path / STATE).read_text(encoding="utf-8"))["data"]
        log.warning("checkpoint %s is damaged: %s; it is passed over", path, fault)
    return None


def put_aside_damaged(folder: Path, newer_than: int) -> None:
    """Rename the checkpoints that were passed over, so that whole ones need not make room for them."""
    for step in checkpoint_steps(folder):
        if step > newer_than:
            final, aside = places(folder, step)
            damaged = folder / f"damaged-{final.name}"
            shutil.rmtree(damaged, ignore_errors=True)
            checkpoint_path(folder, step).rename(damaged)
            shutil.rmtree(aside, ignore_errors=True)

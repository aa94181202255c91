"""The models that a run starts from: their files, what these weigh and hash to, and the bare network."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from ..model_loaders import lora_check
from ..training.base_files import files_sha256, weights_of
from ..training.config import RunConfig
from ..training.families import load_family
from ..training.files import CHUNK
from .progress import check_cancelled, progress_reporter

HASHED_BETWEEN = 16 * CHUNK
"""Bytes of weights between two moves of the bar."""


def base_parts(config: RunConfig) -> dict[str, tuple[Path, ...]]:
    """Role -> weight files of the network that is trained, and of every other base that is one file."""
    places = {role: Path(path) for role, path in config.base.items() if path}
    network = load_family(config.family).base_role
    return {role: weights_of(path) for role, path in places.items() if role == network or path.is_file()}


def base_hashes(config: RunConfig) -> dict[str, str]:
    """SHA-256 of the weights of each base, those that encode among them; moves the bar, stops at a cancel.

    A LoRA names them, and a run does not go on with others.
    """
    parts = {role: weights_of(Path(path)) for role, path in config.base.items() if path}
    files = [file for part in parts.values() for file in part]
    report = hashing_report(sum(file.stat().st_size for file in files))
    return {role: files_sha256(part, report) for role, part in parts.items() if part}


def hashing_report(size: int) -> Callable[[], None]:
    """What is called after each CHUNK of `size` bytes that are read; it raises when cancelled.

    Tens of gigabytes take a minute, and a bar that is told of every chunk would slow the reading down.
    """
    report, chunks = progress_reporter(max(1, -(-size // HASHED_BETWEEN))), count(1)

    def read() -> None:
        check_cancelled()
        done, rest = divmod(next(chunks) * CHUNK, HASHED_BETWEEN)
        if not rest:
            report(done, None)

    return read


def bare_model(config: RunConfig) -> Any:
    """ComfyUI's model of a run's base without weights; None when its LoRA is for no MODEL."""
    base = Path(config.base.get(load_family(config.family).base_role, ""))
    return lora_check.bare_model(config.family, base, weights_of(base))

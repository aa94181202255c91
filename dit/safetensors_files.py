"""Safetensors files on disk: errors that say what to do."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from safetensors import SafetensorError


@contextmanager
def write_errors(name: str) -> Generator[None]:
    """Turn safetensors' own error while it writes `name`, as a full disk is one, into an OSError."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{name} could not be written: {error}") from error

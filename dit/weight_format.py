"""The one format of weights that runs no code when it is read."""

from __future__ import annotations

from collections.abc import Iterable

SUFFIXES = (".safetensors",)


def require_safetensors(names: Iterable[str], place: str, suffixes: tuple[str, ...] = SUFFIXES) -> None:
    """Raise ValueError for a file of another format that `place` names: ComfyUI would unpickle it."""
    for name in names:
        if not name.lower().endswith(suffixes):
            raise ValueError(
                f"{place} names {name}, which may run code when it is read; only {' and '.join(suffixes)} "
                "files are loaded. Download the safetensors version"
            )

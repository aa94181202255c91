"""What the configs of network, latent space and small VAE refuse alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError naming the allowed values unless `value` is one of them."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; use one of {', '.join(allowed)}")


def known_only(kind: Any, values: Mapping[str, Any], place: str) -> None:
    """Raise ValueError where `place` names fields that the dataclass `kind` does not have."""
    unknown = sorted(set(values) - {item.name for item in fields(kind)})
    if unknown:
        raise ValueError(
            f"{place} has fields this version does not know: {', '.join(unknown)}. "
            "Update the pack, or remove them if they are typing errors."
        )

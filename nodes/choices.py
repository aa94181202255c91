"""The choices of a widget, checked where a node runs: ComfyUI takes any word that comes through its API."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

from ..training.config import one_of

Choice = TypeVar("Choice", bound=Enum)


def chosen(kind: type[Choice], name: str, value: str) -> Choice:
    """The member of `kind` that the widget `name` stands at; ValueError with the allowed values."""
    one_of(name, value, tuple(member.value for member in kind))
    return kind(value)

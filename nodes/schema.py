"""Schemas that load on every supported ComfyUI: keywords a host does not know yet are left out."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from comfy_api.latest import io

SCHEMA_FIELDS = frozenset(field.name for field in dataclasses.fields(io.Schema))


def node_schema(**fields: Any) -> io.Schema:
    """`io.Schema` without the keywords this host would reject (`search_aliases` before 0.11, ...)."""
    return io.Schema(**{name: value for name, value in fields.items() if name in SCHEMA_FIELDS})


def node_input(kind: Any, name: str, **options: Any) -> io.Input:
    """`kind.Input(name, ...)` without the keywords this host would reject (`advanced` before 0.10, ...)."""
    known = inspect.signature(kind.Input.__init__).parameters
    return kind.Input(name, **{key: value for key, value in options.items() if key in known})

"""Frozen configs to plain JSON and back, and what changed between two of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from typing import Any, TypeVar

from .config import RunConfig

T = TypeVar("T")

# Settings that may differ between a run and its continuation: they change neither the meaning of the saved
# weights nor the order of the samples already seen.
HARMLESS = frozenset(
    {
        "stages.steps",
        "stages.learning_rate",
        "optimizer.clip_norm",
        "optimizer.warmup_steps",
        "optimizer.weight_decay",
        "output",
        "validation.every",
        "validation.patience",
        "memory.gradient_checkpointing",
        "memory.stream_base",
        "memory.offload_activations",
    }
)


def to_json(config: Any) -> dict[str, Any]:
    """A config as nested dicts, lists and numbers."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(kind: type[T], data: dict[str, Any]) -> T:
    """A config of class `kind` from `to_json`'s output; ValueError on a name the class does not have."""
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(data) - hints.keys())
    if unknown:
        raise ValueError(
            f"{kind.__name__} does not know {', '.join(unknown)}; it knows {', '.join(sorted(hints))}"
        )
    return kind(**{name: restored(hints[name], value) for name, value in data.items()})


def restored(hint: Any, value: Any) -> Any:
    """`value` as the annotation `hint` wants it: nested dataclasses and tuples are rebuilt."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [argument for argument in arguments if dataclasses.is_dataclass(argument)]
        return restored(kinds[0], value) if kinds and isinstance(value, dict) else value
    if origin is tuple:
        return tuple(restored(arguments[0], item) for item in value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_json(hint, value)
    return value


def config_hash(config: RunConfig) -> str:
    """Hex digest of every setting."""
    return hashlib.sha256(json.dumps(to_json(config), sort_keys=True).encode()).hexdigest()


def flattened(data: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> plain value; items of lists are numbered."""
    if isinstance(data, dict):
        parts = [flattened(value, f"{prefix}{name}.") for name, value in data.items()]
    elif isinstance(data, list):
        parts = [flattened(value, f"{prefix}{index}.") for index, value in enumerate(data)]
    else:
        return {prefix[:-1]: data}
    return {name: value for part in parts for name, value in part.items()}


def is_harmless(name: str) -> bool:
    """Whether the dotted setting may change when a run continues."""
    plain = ".".join(part for part in name.split(".") if not part.isdigit())
    return any(plain == known or plain.startswith(known + ".") for known in HARMLESS)


def reference_sides(config: RunConfig, other: RunConfig) -> list[int]:
    """How large references are in each stage of `config` that `other` has too."""
    common = zip(config.stages, other.stages, strict=False)
    return [config.reference_side(stage.resolution) for stage, _ in common]


def changed_settings(old: RunConfig, new: RunConfig) -> tuple[list[str], list[str]]:
    """(harmless, refused) changes from `old` to `new`, as `name: old -> new`; further stages are harmless.

    So is another limit of the references that leaves them their size in every common stage.
    """
    before, after = flattened(to_json(old)), flattened(to_json(new))
    harmless, refused = [], []
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name):
            continue
        line = f"{name}: {before.get(name)!r} -> {after.get(name)!r}"
        is_unfelt = name == "reference_resolution" and reference_sides(old, new) == reference_sides(new, old)
        is_added = name.startswith("stages.") and int(name.split(".")[1]) >= len(old.stages)
        (harmless if is_harmless(name) or is_added or is_unfelt else refused).append(line)
    return harmless, refused

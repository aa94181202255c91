"""What a run gave up when memory ran out, kept in its folder so that it goes on from there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from .config import RunConfig
from .files import write_json

LADDER = "ladder.json"
SWITCHES = ("gradient_checkpointing", "offload_activations", "stream_base")


def remember_rung(folder: Path, config: RunConfig, gave_up: str) -> None:
    """Keep what was given up, so that a continued run starts there."""
    path = folder / LADDER
    rungs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    rungs.append({"gave_up": gave_up, "changes": ladder_settings(config)})
    write_json(path, rungs)


def ladder_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that the ladder may change."""
    return {
        "gradient_checkpointing": config.memory.gradient_checkpointing,
        "offload_activations": config.memory.offload_activations,
        "stream_base": config.memory.stream_base,
        "reference_resolution": config.reference_resolution,
        "resolutions": [stage.resolution for stage in config.stages],
    }


def laddered(config: RunConfig, folder: Path) -> RunConfig:
    """The user's config, or a checkpoint's, with what this run had to give up before.

    Where the user asks for less than that, the user's word counts. A stage added since keeps its size.
    """
    path = folder / LADDER
    if not path.is_file():
        return config
    last = json.loads(path.read_text(encoding="utf-8"))[-1]["changes"]
    switches = {name: getattr(config.memory, name) or last[name] for name in SWITCHES}
    sizes = [size for size in (config.reference_resolution, last["reference_resolution"]) if size]
    common = [
        dataclasses.replace(stage, resolution=min(stage.resolution, resolution))
        for stage, resolution in zip(config.stages, last["resolutions"], strict=False)
    ]
    return dataclasses.replace(
        config,
        memory=dataclasses.replace(config.memory, **switches),
        reference_resolution=min(sizes, default=0),
        stages=(*common, *config.stages[len(common) :]),
    )

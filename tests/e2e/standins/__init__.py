"""Tiny stand-ins for the models of the shipped workflows, so that every workflow runs on a CPU in seconds.

A module of this folder may end with `STAND_INS`, one `StandIn` for each workflow of its part. Workflows stay
as they are shipped; a stand-in writes small model files under the names the workflow uses, puts nodes of
`standin_nodes` in place of stock loaders that accept no small files, and turns down sizes and steps.

    STAND_INS = [
        StandIn(
            workflow="edit-with-references",
            write_models=write_models,                     # (models folder) -> None
            replaced={"DualCLIPLoader": ("StandInFluxCLIP", {"text_dim": 24, "pooled_dim": 16})},
            settings={"DreamOmniSchedule.steps": 2, "DreamOmniReferenceSet.resize": "none"},
        )
    ]
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """How one shipped workflow runs on models of a few megabytes."""

    workflow: str
    """Name of the file in workflows/, without `.json`."""
    write_models: Callable[[Path], None]
    """Writes what the workflow's loaders ask for into ComfyUI's models folder."""
    replaced: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Node class -> (class put in its place, its inputs)."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`Class.input` -> value, in every node of that class."""
    picture_sizes: tuple[tuple[int, int], ...] = ((128, 96), (96, 128), (112, 112))
    """(width, height) of the pictures uploaded for LoadImage, in turn."""
    write_inputs: Callable[[Path], None] | None = None
    """Writes whatever else the workflow reads into ComfyUI's input folder."""
    repeatable: bool = True
    """Whether a second run from scratch must give the same pictures."""
    needs_seed: bool = True
    """Whether another seed must give another picture."""

    def rules(self) -> dict[str, Any]:
        """What has to be changed in the prompt, as JSON; `adapted_prompt.adapt` does it."""
        replaced = {name: [kind, dict(inputs)] for name, (kind, inputs) in self.replaced.items()}
        return {"replaced": replaced, "settings": dict(self.settings)}

    def prepare(self, base: Path, workflow: Mapping[str, Any]) -> None:
        """Write models and pictures under ComfyUI's base folder."""
        self.write_models(base / "models")
        write_pictures(base / "input", workflow, self.picture_sizes)
        if self.write_inputs:
            self.write_inputs(base / "input")


def stand_ins() -> dict[str, StandIn]:
    """All stand-ins by workflow."""
    found: dict[str, StandIn] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name != "__main__":
            part = importlib.import_module(f"{__name__}.{module.name}")
            for item in getattr(part, "STAND_INS", []):
                assert item.workflow not in found, f"two stand-ins for {item.workflow}"
                found[item.workflow] = item
    return found


def write_pictures(folder: Path, workflow: Mapping[str, Any], sizes: tuple[tuple[int, int], ...]) -> None:
    """A different smooth picture for every LoadImage of the workflow, under the name it has there."""
    import numpy as np
    from PIL import Image

    names = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"].startswith("LoadImage")]
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(dict.fromkeys(names)):
        width, height = sizes[number % len(sizes)]
        rows, columns = np.mgrid[0:height, 0:width]
        waves = [np.sin(rows / (9 + number) + k) * np.cos(columns / (7 + number) - k) for k in range(3)]
        pixels = ((np.stack(waves, -1) + 1) * 127).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)

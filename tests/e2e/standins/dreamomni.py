"""Stand-ins for the DreamOmni workflows: a tiny random model folder with its VLM, on blocks of pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_dreamomni import write_dreamomni

from . import StandIn

FOLDER = "dreamomni"


def write_models(models: Path) -> None:
    """The folder under the name the workflows use."""
    folder = models / "dreamomni" / FOLDER
    if not (folder / "config.json").is_file():
        write_dreamomni(folder)


def dreamomni(task: str, **more: Any) -> StandIn:
    """A DreamOmni workflow on small pictures with two steps."""
    settings = {
        "EmptyImage.width": 64,
        "EmptyImage.height": 48,
        "ImageScaleToTotalPixels.megapixels": 0.01,
        "KSampler.steps": 2,
    }
    return StandIn(workflow=f"dreamomni-{task}", write_models=write_models, settings=settings | more)


STAND_INS = [
    dreamomni("text-to-image"),
    dreamomni("instruction-edit"),
    dreamomni("inpaint", **{"DreamOmniMaskedSource.left": 16, "DreamOmniMaskedSource.right": 16}),
    dreamomni("drag", **{"DreamOmniDragPrompt.points": "30, 30 -> 50, 40\n40, 35"}),
    dreamomni("reference"),
]

"""`make-sticker-dataset` needs no models; here it makes a few small samples."""

from __future__ import annotations

from pathlib import Path

from . import StandIn


def write_models(folder: Path) -> None:
    """Nothing is loaded."""
    folder.mkdir(parents=True, exist_ok=True)


STAND_INS = [
    StandIn(
        workflow="make-sticker-dataset",
        write_models=write_models,
        settings={
            "DreamOmniStickerDataset.size": 64,
            "DreamOmniStickerDataset.count": 6,
            "DreamOmniStickerDataset.processes": 1,
        },
        # Another seed is another dataset, which the folder of the first one refuses.
        needs_seed=False,
    )
]

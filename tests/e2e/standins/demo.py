"""The demo workflows run on the pack's small model; where it is not there, on a tiny random one."""

from __future__ import annotations

from pathlib import Path

from pack.host.places import ROOT
from tiny_dreamomni import write_adapter, write_dreamomni

from . import StandIn


def write_models(models: Path) -> None:
    """Nothing for the shipped model."""
    folder = models / "dreamomni" / "small"
    if (ROOT / "assets" / "small").is_dir() or folder.is_dir():
        return
    write_dreamomni(folder)
    for seed, task in enumerate(("edit", "generate")):
        write_adapter(folder / "loras" / f"{task}.safetensors", seed=seed)


STAND_INS = [
    StandIn(workflow=f"demo-{name}", write_models=write_models)
    for name in ("edit", "reference-edit", "generate", "switch")
]

"""The demo workflows need no stand-ins: they run on the model and the pictures that come with the pack."""

from __future__ import annotations

from pathlib import Path

from . import StandIn


def write_nothing(models: Path) -> None:
    """The model lies in the pack."""


STAND_INS = [
    StandIn(workflow=f"demo-{name}", write_models=write_nothing)
    for name in ("edit", "reference-edit", "generate", "switch")
]

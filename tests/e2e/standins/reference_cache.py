"""Stand-ins for the reference cache workflow: those of the Kontext workflows."""

from __future__ import annotations

from .kontext import kontext

STAND_INS = [kontext("reference-cache")]

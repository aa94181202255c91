"""A way onto the device without a stream of its own, for a CPU."""

from __future__ import annotations

from pack.dit.reference_stream import Copies


class DirectLane:
    """Copies in the order of the program."""

    def start(self, slot: int, copies: Copies) -> None:
        for source, target in copies:
            target.copy_(source)

    def finish(self, slot: int) -> None:
        """Nothing is under way."""

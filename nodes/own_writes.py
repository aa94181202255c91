"""What nodes write themselves, so that their own writing does not make ComfyUI run them again.

A node that writes files must run again when somebody else has changed or deleted them, and must not when
they are as it left them. ComfyUI keeps results as long as its process lives, and so does this.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

from .fingerprints import folder_state


class OwnWrites:
    """How often others have changed what a node wrote."""

    def __init__(self) -> None:
        self._left: dict[tuple[Path, Hashable], tuple[str, int]] = {}

    def changes(self, path: Path, settings: Hashable = None) -> int:
        """Counts how often the files were changed by others since the first call.

        `settings` are those inputs of the node that decide what it writes there; None stands for linked ones,
        which nobody knows when this is asked.
        """
        state = folder_state(path)
        left, count = self._left.get((path, settings), (state, 0))
        if state != left:
            count += 1
        self._left[path, settings] = (state, count)
        return count

    def wrote(self, path: Path, settings: Hashable = None) -> None:
        """Take what is there now as left by the node itself, also if its settings were linked."""
        state = folder_state(path)
        for asked in {settings, None}:
            count = self._left.get((path, asked), ("", 0))[1]
            self._left[path, asked] = (state, count)


OWN_WRITES = OwnWrites()

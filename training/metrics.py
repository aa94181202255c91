"""The run's diary: one JSON line per event, only ever appended, readable after a crash."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"


class MetricsFile:
    """Appends events to `metrics.jsonl` of a run folder; every line is flushed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = path.open("a", encoding="utf-8")
        if torn:  # a killed run may leave half a line; the next event must not be glued to it
            self._file.write("\n")

    def append(self, event: dict[str, Any]) -> None:
        """Write one event."""
        self._file.write(json.dumps(finite_numbers(event)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def finite_numbers(event: dict[str, Any]) -> dict[str, Any]:
    """The event with NaN and infinity as text, which JSON cannot hold as numbers."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in event.items()
    }


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of the file, in the order written."""
    if not path.is_file():
        return []
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:  # the line a crash cut short
            continue
    return events


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Events of the run as it counts: what a resumed run repeated is replaced by the repetition."""
    return without_repeats(read_lines(folder / FILE))


def without_repeats(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events with everything after the resumed step dropped at each `started` or `rewound` event."""
    kept: list[dict[str, Any]] = []
    for event in events:
        if event.get("event") in ("started", "rewound"):
            kept = [old for old in kept if old.get("step", 0) <= event["step"]]
        kept.append(event)
    return kept

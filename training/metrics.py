"""The run's diary: one JSON line per event, only ever appended, readable after a crash."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .events import Event, event_line, event_of

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

    def append(self, event: Event) -> None:
        """Write one event."""
        self._file.write(event_line(event))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[Event]:
    """The events of all whole lines of the file, in the order written."""
    if not path.is_file():
        return []
    events = map(event_of, path.read_text(encoding="utf-8").splitlines())
    return [event for event in events if event is not None]  # None: the line a crash cut short


def read_metrics(folder: Path) -> list[Event]:
    """Events of the run as it counts: what a resumed run repeated is replaced by the repetition."""
    return without_repeats(read_lines(folder / FILE))


def without_repeats(events: Iterable[Event]) -> list[Event]:
    """Events with everything after the resumed step dropped at each `started` or `rewound` event."""
    kept: list[Event] = []
    for event in events:
        if event["event"] in ("started", "rewound"):
            kept = [old for old in kept if old.get("step", 0) <= event["step"]]
        kept.append(event)
    return kept

"""Fair comparisons in one process, and one table format for all of them."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("torch", "diffusers", "transformers", "numpy")


@dataclass(frozen=True)
class Table:
    """One result: named rows of numbers or words, and the sentence that says what it shows."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]
    note: str = ""
    chart: tuple[str, str] | None = None
    """(label column, value column) drawn as bars above the table in the picture."""
    lines: bool = False
    """Draw every row as a line over the columns of numbers instead."""
    details: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(
                f"{self.name}: {len(self.columns)} columns, but a row holds {len(wrong[0])}: {wrong[0]}"
            )
        missing = [name for name in self.chart or () if name not in self.columns]
        if missing:
            raise ValueError(f"{self.name}: no column {missing[0]!r} to draw")

    def column(self, name: str) -> list[str | float]:
        """The values of one column, top to bottom."""
        return [row[self.columns.index(name)] for row in self.rows]


def seconds(side: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call by the clock, with the GPU's queue drained before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    side()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def work_clock() -> Callable[[], float]:
    """Wall time on a GPU; without one the processor time of this process, so that other jobs count less."""
    return time.perf_counter if torch.cuda.is_available() else time.process_time


def measure(
    sides: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every side, `rounds` times each; the sides alternate, so a slow minute hits all of them."""
    for _ in range(warm_up):
        for side in sides.values():
            side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(seconds(side, clock))
    return times


def compare(
    name: str,
    sides: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    expected: Mapping[str, float] | None = None,
    note: str = "",
) -> Table:
    """Time the sides against the first one: minimum, median and both ratios, the expected ratio beside."""
    times = measure(sides, rounds)
    base = next(iter(times.values()))
    columns = (
        "side",
        "min s",
        "median s",
        "min ratio",
        "median ratio",
        *(["expected ratio"] if expected else []),
    )
    rows = []
    for side, taken in times.items():
        ratios = (min(taken) / min(base), statistics.median(taken) / statistics.median(base))
        row = (side, min(taken), statistics.median(taken), *ratios)
        rows.append((*row, *([expected.get(side, float("nan"))] if expected else [])))
    return Table(
        name,
        columns,
        tuple(rows),
        note,
        chart=("side", "median ratio"),
        details={"rounds": rounds, "times": times},
    )


def environment() -> dict[str, str]:
    """Hardware and versions that a number means nothing without."""
    found = {name: metadata.version(name) for name in PACKAGES if _installed(name)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} thread(s)"
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": cores,
        "gpu": device,
        **found,
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def format_cell(value: str | float) -> str:
    """Words as they are, numbers with four significant digits."""
    return value if isinstance(value, str) else f"{value:.4g}"


def as_text(table: Table) -> str:
    """The table in aligned columns, for the terminal."""
    cells = [list(table.columns), *[[format_cell(value) for value in row] for row in table.rows]]
    widths = [max(len(row[index]) for row in cells) for index in range(len(table.columns))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([f"## {table.name}", *lines, *([table.note] if table.note else []), ""])


def save(table: Table, folder: Path) -> Path:
    """Write <name>.json and, where matplotlib is installed, <name>.png into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / "".join(letter if letter.isalnum() else "-" for letter in table.name.lower()).strip("-")
    path = stem.with_suffix(".json")
    path.write_text(json.dumps({**asdict(table), "environment": environment()}, indent=1) + "\n")
    draw(table, stem.with_suffix(".png"))
    return path


def draw(table: Table, path: Path) -> None:
    """The table as a picture: bars of the chart column, if one is named, above the cells."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    height, has_chart = 0.3 * (len(table.rows) + 2), bool(table.chart) or table.lines
    figure = Figure(figsize=(1.3 * len(table.columns) + 2, height + (3 if has_chart else 0)), dpi=110)
    areas = figure.subplots(
        2 if has_chart else 1, 1, squeeze=False, height_ratios=[3, height] if has_chart else None
    )
    if table.lines:
        for row in table.rows:
            areas[0][0].plot(table.columns[1:], [float(value) for value in row[1:]], label=row[0])
        areas[0][0].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    if table.chart:
        label, value = table.chart
        areas[0][0].barh(
            [str(name) for name in table.column(label)], [float(number) for number in table.column(value)]
        )
        areas[0][0].invert_yaxis()
        areas[0][0].set_xlabel(value)
    areas[0][0].set_title(table.name)
    areas[-1][0].axis("off")
    cells = [[format_cell(value) for value in row] for row in table.rows]
    areas[-1][0].table(cells, colLabels=table.columns, loc="center", cellLoc="left")
    figure.savefig(path, bbox_inches="tight")

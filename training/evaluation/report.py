"""Rates with intervals, tables, and contact sheets of judged results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from ..contact_sheet import SheetRow, contact_sheet
from ..synthesis.render import Canvas
from .cases import GROUPS, Case
from .rules import Verdict

Z95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""

RULE_NAMES = ("quadrants", "changed region", "outside", "readout")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A success rate with its Wilson interval, shares 0..1."""

    successes: int
    count: int

    @property
    def share(self) -> float:
        """The rate itself; nan without cases."""
        return self.successes / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (1927, equation for the score test)."""
        if not self.count:
            return 0.0, 1.0
        n, p, z2 = self.count, self.share, Z95 * Z95
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        low = 0.0 if self.successes == 0 else centre - half
        return low, 1.0 if self.successes == n else centre + half

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.0f} % ({100 * low:.0f}-{100 * high:.0f})" if self.count else "-"


def rate(verdicts: Sequence[Verdict]) -> Rate:
    """The success rate of some verdicts."""
    return Rate(successes=sum(verdict.success for verdict in verdicts), count=len(verdicts))


def select(verdicts: Sequence[Verdict], task: str | None = None, group: str | None = None) -> list[Verdict]:
    """The verdicts of a task and group; None takes all."""
    return [
        verdict
        for verdict in verdicts
        if (task is None or verdict.task == task) and (group is None or verdict.group == group)
    ]


def markdown_table(results: Mapping[str, Sequence[Verdict]]) -> str:
    """One row for each task, for every method its rate with one and with several objects."""
    tasks = list(dict.fromkeys(verdict.task for verdicts in results.values() for verdict in verdicts))
    heads = [f"{name}, {group}" for name in results for group in GROUPS]
    lines = [f"| task | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for task in [*tasks, None]:
        cells = [str(rate(select(rows, task, group))) for rows in results.values() for group in GROUPS]
        lines.append(f"| {task or '**all**'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rule_table(verdicts: Sequence[Verdict]) -> str:
    """How many cases keep each rule, by task: where a method fails."""
    lines = [f"| task | {' | '.join(RULE_NAMES)} | all |", "|---" * (len(RULE_NAMES) + 2) + "|"]
    for task in dict.fromkeys(verdict.task for verdict in verdicts):
        rows = select(verdicts, task)
        shares = [100 * sum(row.rules[place] for row in rows) / len(rows) for place in range(len(RULE_NAMES))]
        cells = " | ".join(f"{share:.0f} %" for share in shares)
        lines.append(f"| {task} | {cells} | {rate(rows)} |")
    return "\n".join(lines)


def judged_row(case: Case, result: Canvas, verdict: Verdict) -> SheetRow:
    """A case on a contact sheet: source, references, result, target, words and verdict."""
    sample = case.sample
    pictures = [("source", sample.source)] if sample.source is not None else []
    first = 2 if sample.source is not None else 1
    pictures += [(f"image {first + place}", picture) for place, picture in enumerate(sample.references)]
    pictures += [("result", result), ("target", sample.target)]
    broken = [name for name, kept in zip(RULE_NAMES, verdict.rules, strict=True) if not kept]
    faults = "; ".join(fault for fault in verdict.faults if fault != "not read")
    why = f" [{', '.join(broken)}{': ' + faults if faults else ''}]" if broken else ""
    return SheetRow(
        pictures=tuple((name, Image.fromarray(picture)) for name, picture in pictures),
        text=sample.plan.instruction + why,
        heading=f"{case.id}  {'right' if verdict.success else 'wrong'}",
    )


def judged_sheet(rows: Sequence[tuple[Case, Canvas, Verdict]], side: int = 144) -> Image.Image:
    """A contact sheet of judged results."""
    return contact_sheet([judged_row(*row) for row in rows], side)


def require_distinct(names: Sequence[str]) -> None:
    """Raise ValueError when two columns of a table would have the same name."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"several folders are called {', '.join(twice)}; rename them, or judge them one by one"
        )

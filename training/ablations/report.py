"""Tables in Markdown and pictures of the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .intervals import Mean, mean_of, speed
from .kinds import KINDS
from .variants import EXPERIMENTS, Budget, Job, Variant

Results = Mapping[str, Mapping[str, Any]]
"""Name of a run -> what `finish` wrote."""
TITLES = {
    "a": "Skips between blocks and convolutions",
    "b": "Position scheme of two references",
    "c": "Weight of the changed region",
    "d": "Joint training",
    "e": "Adapter switch",
}
COLUMNS = {
    "a": ("edit", "generate"),
    "b": ("two_edit", "two_sheets"),
    "c": ("edit",),
    "d": ("edit", "generate"),
    "e": ("reference", "sheets"),
}
"""Experiment -> kinds of samples it is measured on."""


def of_seeds(results: Results, variant: Variant, budget: Budget, seeds: int) -> list[Mapping[str, Any]]:
    """The runs of a variant, by seed."""
    return [results[Job(variant=variant, seed=seed, budget=budget).name] for seed in range(seeds)]


def curve_of(run: Mapping[str, Any], kind: str, part: str = "everywhere") -> list[tuple[int, float]]:
    """(step, held-out error) points of a run."""
    return [(point["step"], point[kind][part]) for point in run["curve"]]


def success(run: Mapping[str, Any], kind: str) -> float:
    """Share of judged cases that keep every rule; 0 without cases."""
    tally = run["judged"][kind]
    return tally["successes"] / tally["count"] if tally["count"] else 0.0


def copied(run: Mapping[str, Any], kind: str) -> float:
    """Share of plain copies among the judged cases where a copy is wrong; 0 without such."""
    tally = run["judged"][kind]
    return tally["copies"] / tally["could_copy"] if tally["could_copy"] else 0.0


def last_error(run: Mapping[str, Any], kind: str, part: str = "everywhere") -> float:
    """The held-out error at the end of a run."""
    return curve_of(run, kind, part)[-1][1]


def cells(runs: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    """One variant's numbers on one kind of samples; differences are taken seed by seed."""
    errors = [
        mean_of([1000 * last_error(run, kind, part) for run in runs]) for part in ("everywhere", "changed")
    ]
    gaps = [
        1000 * (last_error(run, kind) - last_error(one, kind)) for run, one in zip(runs, base, strict=True)
    ]
    more = [100 * (success(run, kind) - success(one, kind)) for run, one in zip(runs, base, strict=True)]
    row = [errors[0].text(2), errors[1].text(2), marked(mean_of(gaps), 2), steps_ratio(runs, base, kind)]
    row += [mean_of([success(run, kind) for run in runs]).text(1, 100), marked(mean_of(more), 1)]
    row.append(mean_of([copied(run, kind) for run in runs]).text(1, 100) if KINDS[kind].can_copy else "-")
    return row


def steps_ratio(runs: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], kind: str) -> str:
    """How many times more steps the runs take than the first variant's; `-` for one that is not trained."""
    pairs = [(curve_of(one, kind), curve_of(run, kind)) for run, one in zip(runs, base, strict=True)]
    if any(len(curve) < 2 for pair in pairs for curve in pair):
        return "-"
    return mean_of([speed(*pair) for pair in pairs]).text(2)


def marked(difference: Mean, digits: int) -> str:
    """A difference, with a star where its interval excludes zero."""
    return difference.text(digits) + (" *" if difference.excludes_zero else "")


def table(letter: str, results: Results, budget: Budget, seeds: int) -> str:
    """The Markdown table of one experiment."""
    heads = ["variant", "on", "error", "in the changed region", "more than the first", "its steps / first's"]
    heads += ["right, %", "more right", "copies, %"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    first, *_ = EXPERIMENTS[letter]
    base = of_seeds(results, first, budget, seeds)
    for kind in COLUMNS[letter]:
        for variant in EXPERIMENTS[letter]:
            row = cells(of_seeds(results, variant, budget, seeds), base, kind)
            lines.append(f"| {variant.name} | {KINDS[kind].words} | {' | '.join(row)} |")
    return "\n".join(lines)


def mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """The mean at every step that all curves have; a run that was stopped while measured lacks one."""
    known = [dict(curve) for curve in curves]
    shared = sorted(set.intersection(*(set(points) for points in known)))
    return [(step, sum(points[step] for points in known) / len(known)) for step in shared]


def draw_curves(letter: str, results: Results, budget: Budget, seeds: int, path: Path) -> None:
    """One panel for each kind of samples: the mean of each variant, its seeds as thin lines."""
    from matplotlib.figure import Figure

    kinds = COLUMNS[letter]
    figure = Figure(figsize=(5 * len(kinds) + 0.5, 3.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        for number, variant in enumerate(EXPERIMENTS[letter]):
            curves = [curve_of(run, kind) for run in of_seeds(results, variant, budget, seeds)]
            mean = mean_curve(curves)
            if len(mean) == 1:  # of a model that is not trained
                panel.axhline(mean[0][1], color=f"C{number}", label=variant.name)
                continue
            for curve in curves:
                panel.plot(*zip(*curve, strict=True), color=f"C{number}", alpha=0.3, linewidth=0.8)
            panel.plot(*zip(*mean, strict=True), color=f"C{number}", label=variant.name)
        panel.set(title=KINDS[kind].words, xlabel="steps", ylabel="held-out squared error", yscale="log")
        panel.legend(fontsize=8)
    figure.suptitle(TITLES[letter], fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def write_report(
    letters: Sequence[str],
    results: Results,
    budget: Budget,
    seeds: int,
    folder: Path,
) -> str:
    """Write table.md and the curves into a folder; the text of all tables."""
    parts = []
    for letter in letters:
        parts.append(f"### {TITLES[letter]}\n\n{table(letter, results, budget, seeds)}")
        draw_curves(letter, results, budget, seeds, folder / f"ablation-{letter}.png")
    text = "\n\n".join(parts) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(text, encoding="utf-8")
    return text

"""The judge on the command line: `python dev.py evaluate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..synthesis.config import MIN_SIDE, recipe_for
from .cases import CASES_PER_GROUP, held_out_cases
from .exchange import answers_from, write_cases
from .report import rule_table
from .run import EDIT_TASKS, Evaluation, Outcome, evaluate, groups

if TYPE_CHECKING:
    from ..recipes.editor import JudgedModels


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="dev.py evaluate",
        description="Judge models or answers on held-out edits. Without any the two baselines stand alone.",
    )
    made.add_argument("models", nargs="*", type=Path, metavar="MODEL", help="folders made by train-small")
    made.add_argument(
        "--size",
        type=int,
        default=64,
        help=f"picture size, at least {MIN_SIDE} (64); with a model, its own",
    )
    made.add_argument(
        "--cases",
        type=int,
        default=CASES_PER_GROUP,
        help=f"cases for each task, for one and for several objects ({CASES_PER_GROUP})",
    )
    made.add_argument("--tasks", nargs="+", default=list(EDIT_TASKS), help="tasks to judge")
    made.add_argument("--steps", type=int, default=8, help="evaluations of a model for each picture (8)")
    made.add_argument(
        "--adapters", default="own", help="which adapter a model gets for a task: own, crossed or off (own)"
    )
    made.add_argument("--write-cases", type=Path, metavar="DIR", help="write the cases as a dataset and stop")
    made.add_argument(
        "--answers",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder with <case id>.png; may be given several times",
    )
    made.add_argument("--out", type=Path, metavar="DIR", help="folder for the tables and contact sheets")
    return made


def show_progress(name: str, done: int) -> None:
    """One line that is written over."""
    sys.stderr.write(f"\r{name} {done}   ")


def save(outcome: Outcome, folder: Path) -> None:
    """Write the tables and the contact sheets."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [outcome.table, *(f"{name}\n\n{rule_table(rows)}" for name, rows in outcome.verdicts.items())]
    (folder / "table.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    for name, sheet in outcome.sheets.items():
        sheet.save(folder / f"{name}.png")


def model_editors(options: argparse.Namespace) -> JudgedModels | None:
    """Editors of the named model folders and the recipe they are judged on; None without any."""
    if not options.models:
        return None
    from ..recipes.editor import judged_models

    return judged_models(options.models, options.steps, options.adapters)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the options say; the exit code."""
    options = parser().parse_args(arguments)
    try:
        models = model_editors(options)
        evaluation = Evaluation(
            config=recipe_for(options.size, options.size) if models is None else models.config,
            tasks=tuple(options.tasks),
            cases_per_group=options.cases,
        )
        if options.write_cases:
            asked = (
                case
                for task, group in groups(evaluation)
                for case in held_out_cases(evaluation.config, task, group, evaluation.cases_per_group)
            )
            sys.stdout.write(f"{write_cases(options.write_cases, asked)} cases in {options.write_cases}\n")
            return 0
        editors = {} if models is None else dict(models.editors)
        editors |= {folder.name: answers_from(folder) for folder in options.answers}
        outcome = evaluate(editors, evaluation, show_progress)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stderr.write("\n")
    sys.stdout.write(outcome.table + "\n")
    if options.out:
        save(outcome, options.out)
    return 0

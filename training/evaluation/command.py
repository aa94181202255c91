"""The judge on the command line: `python dev.py evaluate`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..synthesis.config import MIN_SIDE, SynthesisConfig, recipe_for
from .cases import CASES_PER_GROUP, cases_fingerprint, held_out_cases
from .exchange import ASKED_FILE, Asked, answer_the_same_cases, answers_from, write_cases
from .report import require_distinct, rule_table
from .run import EDIT_TASKS, STICKER_TASKS, Evaluation, Outcome, evaluate, groups

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
    made.add_argument("--tasks", nargs="+", help="tasks to judge (all)")
    made.add_argument("--steps", type=int, default=4, help="evaluations of a model for each picture (4)")
    made.add_argument("--solver", help="solver of a model's pictures (euler)")
    made.add_argument(
        "--schedule",
        help="schedule of a model's pictures (fixed: even steps, shifted as the model's config says)",
    )
    made.add_argument(
        "--stickers",
        type=Path,
        metavar="DIR",
        help="judge on scenes of the stickers in a folder instead of drawn shapes: a harder set",
    )
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
        help="folder with <case id>.png, in the folder of the cases or with a copy of its "
        f"{ASKED_FILE}; may be given several times",
    )
    made.add_argument("--out", type=Path, metavar="DIR", help="folder for the tables and contact sheets")
    return made


def show_progress(name: str, done: int) -> None:
    """One line that is written over."""
    sys.stderr.write(f"\r{name} {done}   ")


def make_folder(folder: Path) -> None:
    """Have a folder for the results; ValueError if there cannot be one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the folder {folder} cannot be made: {error.strerror}. Give --out the name of a new folder, or "
            "of one that may be written."
        ) from error


def save(outcome: Outcome, folder: Path, heading: str) -> None:
    """Write the tables, every verdict and the contact sheets into a folder that is there."""
    rules = [f"Rules kept, {name}\n\n{rule_table(rows)}" for name, rows in outcome.verdicts.items()]
    (folder / "table.md").write_text("\n\n".join([heading, outcome.table, *rules]) + "\n", encoding="utf-8")
    verdicts = {
        name: {row.case_id: int(row.success) for row in rows} for name, rows in outcome.verdicts.items()
    }
    (folder / "verdicts.json").write_text(json.dumps(verdicts, indent=0) + "\n", encoding="utf-8")
    for name, sheet in outcome.sheets.items():
        sheet.save(folder / f"{name}.png")


def model_editors(options: argparse.Namespace) -> JudgedModels | None:
    """Editors of the named model folders and the recipe they are judged on; None without any."""
    if not options.models:
        return None
    from ..recipes.editor import Sampling, judged_models

    asked = {"solver": options.solver, "schedule": options.schedule}
    chosen = {name: value for name, value in asked.items() if value is not None}
    sampling = Sampling(evaluations=options.steps, **chosen)
    return judged_models(options.models, sampling, options.adapters)


def with_stickers(config: SynthesisConfig, folder: Path) -> SynthesisConfig:
    """The recipe with every object from a folder of stickers."""
    return dataclasses.replace(config, stickers_folder=str(folder), sticker_share=1.0)


def require_sticker_tasks(tasks: Sequence[str]) -> None:
    """ValueError for a task whose scenes would be drawn shapes all the same."""
    if drawn := [task for task in tasks if task in EDIT_TASKS and task not in STICKER_TASKS]:
        raise ValueError(
            f"{', '.join(drawn)} cannot be judged with stickers, which have no colour or pattern of their "
            "own; leave it out, or judge without --stickers"
        )


def heading_of(options: argparse.Namespace, config: SynthesisConfig) -> str:
    """One line that says what was judged, for above the table."""
    what = "stickers" if options.stickers else "drawn shapes"
    parts = [f"{options.cases} held-out cases for each task and group", what]
    parts.append(f"{config.width} x {config.height} px")
    if options.models:
        parts += [f"{options.steps} evaluations", f"adapters {options.adapters}"]
    return ", ".join(parts) + "; right answers with 95 % Wilson intervals."


def asked_by(options: argparse.Namespace, config: SynthesisConfig) -> Asked:
    """Which cases the options ask for."""
    words = [folder.resolve().name for folder in options.models] or [f"--size {options.size}"]
    if options.stickers:
        words.append(f"--stickers {options.stickers.resolve().name}")
    return Asked(recipe=cases_fingerprint(config), options=" ".join(words))


def doubts(folders: Sequence[Path], judged: Asked) -> str:
    """A paragraph on the answers that do not say which cases they are to; ValueError for those to others."""
    silent = [folder.name for folder in folders if not answer_the_same_cases(folder, judged)]
    if not silent:
        return ""
    return (
        f"\n\nTaken for answers to the cases of {judged}, which is not certain: {', '.join(silent)}. "
        f"No {ASKED_FILE} lies there or in the folder above; copy it from the folder of the cases."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the options say; the exit code."""
    options = parser().parse_args(arguments)
    try:
        models = model_editors(options)
        config = recipe_for(options.size, options.size) if models is None else models.config
        if options.stickers:
            config = with_stickers(config, options.stickers)
            require_sticker_tasks(options.tasks or ())
        evaluation = Evaluation(
            config=config,
            tasks=tuple(options.tasks or (STICKER_TASKS if options.stickers else EDIT_TASKS)),
            cases_per_group=options.cases,
        )
        asked = asked_by(options, config)
        if options.write_cases:
            cases = (
                case
                for task, group in groups(evaluation)
                for case in held_out_cases(evaluation.config, task, group, evaluation.cases_per_group)
            )
            count = write_cases(options.write_cases, cases, asked)
            sys.stdout.write(f"{count} cases in {options.write_cases}\n")
            return 0
        heading = heading_of(options, config) + doubts(options.answers, asked)
        editors = {} if models is None else dict(models.editors)
        require_distinct([*editors, *(folder.name for folder in options.answers)])
        editors |= {folder.name: answers_from(folder) for folder in options.answers}
        if options.out:
            make_folder(options.out)  # before the judging, which would be in vain
        outcome = evaluate(editors, evaluation, show_progress)
        sys.stderr.write("\n")
        sys.stdout.write(f"{heading}\n\n{outcome.table}\n")
        if options.out:
            save(outcome, options.out, heading)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0

"""Whether training is repeatable: the first steps of the network twice, loss by loss."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from ..events import Event, Heard
from ..launch import TrainingError
from ..run_file import RunFile
from .small import SmallRecipe
from .small_run import Train, train_base

log = logging.getLogger("dreamomni")


class EnoughHeardError(Exception):
    """The steps asked for are done."""


def first_losses(recipe: SmallRecipe, folder: Path, steps: int, device: str, train: Train) -> list[float]:
    """Losses of the first `steps` steps of a fresh run; the folder is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    losses: list[float] = []

    def watched(run: RunFile, place: Path, told: Heard) -> int:
        def heard(event: Event | None) -> None:
            told(event)
            if event is not None and event["event"] == "step":
                losses.append(event["loss"])
            if len(losses) >= steps:
                raise EnoughHeardError

        return train(run, place, heard)

    try:
        train_base(recipe, folder, device, watched)
    except EnoughHeardError:
        log.info("%d steps heard in %s", steps, folder)
    return losses


def check_repeat(recipe: SmallRecipe, work: Path, steps: int, device: str, train: Train) -> float:
    """Train the first steps twice; the last loss. TrainingError names the first step that differs."""
    one, two = (first_losses(recipe, work / f"repeat-{name}", steps, device, train) for name in "ab")
    if len(one) < steps or len(two) < steps:
        raise TrainingError(f"only {min(len(one), len(two))} of {steps} steps were trained")
    differs = [step for step, pair in enumerate(zip(one, two, strict=True), start=1) if pair[0] != pair[1]]
    if differs:
        step = differs[0]
        raise TrainingError(
            f"the two runs differ from step {step} of {steps} on: {one[step - 1]} and {two[step - 1]}"
        )
    return one[-1]

"""The command `dev.py train-small`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..launch import TrainingError, run_once
from .repeat import check_repeat
from .small import SmallRecipe
from .small_run import train_small

log = logging.getLogger("dreamomni")

ROOT = Path(__file__).resolve().parents[2]
ADJUSTABLE = {
    "side": int,
    "seed": int,
    "steps": int,
    "batch_size": int,
    "learning_rate": float,
    "further_steps": int,
    "distinct_samples": int,
    "edit_steps": int,
    "generate_steps": int,
    "lora_batch_size": int,
    "lora_samples": int,
    "precision": str,
    "checkpoint_every": int,
}
"""Settings of the recipe that the command line may change, and their kinds."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="dev.py train-small",
        description="Train the small model from nothing; the same command goes on where it stopped.",
        allow_abbrev=False,
    )
    made.add_argument("--work", type=Path, default=ROOT / "output" / "small", help="checkpoints and data")
    made.add_argument(
        "--out",
        type=Path,
        default=ROOT / "assets" / "small",
        help="the finished folder; an older model there is replaced",
    )
    made.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    made.add_argument("--processes", type=int, default=1, help="processes that share a step's samples")
    made.add_argument(
        "--repeat", type=int, metavar="N", help="only train the first N steps twice and compare the losses"
    )
    defaults = SmallRecipe()
    made.add_argument(
        "--refinements",
        type=int,
        default=len(defaults.refinements),
        choices=range(len(defaults.refinements) + 1),
        metavar="N",
        help=f"how many of the {len(defaults.refinements)} further runs of the network are made (all)",
    )
    for name, kind in ADJUSTABLE.items():
        default = getattr(defaults, name)
        made.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"({default})")
    return made


def recipe_of(options: argparse.Namespace) -> SmallRecipe:
    """The recipe with what the command line changed."""
    further = SmallRecipe().refinements[: options.refinements]
    return SmallRecipe(**{name: getattr(options, name) for name in ADJUSTABLE}, refinements=further)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the options say; the exit code."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        train = partial(run_once, processes=options.processes)
        if options.repeat:
            loss = check_repeat(recipe_of(options), options.work, options.repeat, options.device, train)
            log.info("%d steps twice: every loss is equal, the last one is %.6f", options.repeat, loss)
            return 0
        out = train_small(recipe_of(options), options.work, options.out, options.device, train)
    except (ValueError, OSError, TrainingError) as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        log.info("stopped; the same command goes on from the last checkpoint")
        return 130
    log.info("the model is in %s; judge it with `python dev.py evaluate %s`", out, out)
    return 0

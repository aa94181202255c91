"""The command `dev.py ablate`."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ..launch import TrainingError
from .carry_out import Workplace, all_results, finish_free
from .report import write_report
from .variants import EXPERIMENTS, Budget, jobs_of

log = logging.getLogger("dreamomni")

ROOT = Path(__file__).resolve().parents[2]
LETTERS = tuple(EXPERIMENTS)


def parser() -> argparse.ArgumentParser:
    """The options."""
    plain = Budget()
    made = argparse.ArgumentParser(
        prog="dev.py ablate",
        description="Put the papers' claims to the test: (a) skips, (b) position schemes, (c) weight of the "
        "changed region, (d) joint training, (e) the adapters' switch. What is finished is not done again.",
        allow_abbrev=False,
    )
    made.add_argument(
        "experiments", nargs="*", default=list(LETTERS), metavar="a|b|c|d|e", help="default: all"
    )
    made.add_argument("--seeds", type=int, default=3, help="seeds of every variant (3)")
    made.add_argument(
        "--budget", type=int, default=plain.steps, help=f"steps of every network ({plain.steps})"
    )
    made.add_argument(
        "--lora-budget", type=int, default=plain.lora_steps, help=f"steps of every LoRA ({plain.lora_steps})"
    )
    made.add_argument(
        "--cases", type=int, default=plain.cases, help=f"judged cases, task and group ({plain.cases})"
    )
    made.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each (2)")
    made.add_argument(
        "--model", type=Path, default=ROOT / "assets" / "small", help="finished model of b and e"
    )
    made.add_argument("--work", type=Path, default=ROOT / "output" / "ablations", help="folder of the runs")
    made.add_argument("--out", type=Path, help="folder of tables and curves (WORK/report)")
    made.add_argument("--share", action="store_true", help=argparse.SUPPRESS)
    return made


def budget_of(options: argparse.Namespace) -> Budget:
    """What the options say. A LoRA sees each of its samples once."""
    return Budget(
        steps=options.budget,
        lora_steps=options.lora_budget,
        lora_samples=options.lora_budget * Budget().lora_batch_size,
        cases=options.cases,
    )


def finish_together(arguments: Sequence[str], processes: int) -> None:
    """Carry the runs out in processes like this one; each takes the next run that nobody has."""
    own = [sys.executable, str(ROOT / "bench" / "ablate.py"), *arguments, "--share"]
    started = [subprocess.Popen(own) for _ in range(processes)]
    try:
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
    if failed := [code for code in codes if code != 0]:
        raise TrainingError(f"a process ended with code {failed[0]}; what it said stands above")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the options say; the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(arguments)
    if unknown := [letter for letter in options.experiments if letter not in LETTERS]:
        sys.stderr.write(f"there is no experiment {unknown[0]!r}; choose from {', '.join(LETTERS)}\n")
        return 1
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    # One thread for each run: two runs side by side use two cores best.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    began, work = time.monotonic(), options.work.resolve()
    try:
        budget = budget_of(options)
        place = Workplace(work, budget, options.model.resolve())
        jobs = jobs_of("".join(options.experiments), options.seeds, budget)
        if options.share or options.processes == 1:
            finish_free(place, jobs)
        else:
            finish_together(arguments, options.processes)
        if options.share:
            return 0
        results = all_results(place, jobs)
        out = options.out or work / "report"
        text = write_report(options.experiments, results, budget, options.seeds, out)
    except (ValueError, OSError, TrainingError) as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        log.info("stopped; the same command goes on")
        return 130
    log.info(
        "%d runs, %.1f minutes; tables and curves in %s", len(jobs), (time.monotonic() - began) / 60, out
    )
    sys.stdout.write(text)
    return 0

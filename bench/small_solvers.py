"""Solver error of the small model against evaluations: distance to 400 Euler steps on held-out cases.

`bench/solvers.py` measures the same on flows known in closed form; here the field is a real, trained network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..samplers.solvers import SOLVERS
from ..training.evaluation.cases import GROUPS, Case, held_out_cases
from ..training.evaluation.rules import Judge
from ..training.families.base import Batch
from ..training.families.dreamomni_vlm import TrainedPair
from ..training.recipes.editor import FolderEditor, Sampling, canvas, case_noise, question, read_recipe
from ..training.recipes.small import RECIPE, SmallRecipe
from ..training.recipes.small_tasks import BASE_TASKS, LORA_TASKS
from .harness import Table

MODEL = Path(__file__).resolve().parent.parent / "assets" / "small"
EVALUATIONS = (2, 4, 6, 8, 12)
SCHEDULES: dict[str, tuple[str, float | None]] = {
    "linear": ("linear", None),
    "fixed 3": ("fixed", 3.0),
    "flux-dynamic": ("flux-dynamic", None),
    "beta": ("beta", None),
}
"""Name in the table -> schedule and shift. `omnigen` is `fixed` with another name for the shift."""
EXACT = Sampling(evaluations=400, solver="euler", schedule="linear")
CASES = 1
"""Cases of every task and group."""
JUDGED_CASES = 6
JUDGED = (("euler", "linear"), ("euler", "beta"), ("adams-2", "linear"), ("adams-2", "beta"))
"""What is also judged: the picture that is nearest to the exact solution need not be the right one."""
JUDGED_EVALUATIONS = (1, 2, 4, 8, 12)
BATCH = 32


def cases_of(folder: Path, count: int) -> list[Case]:
    """Held-out cases of every task that the folder was trained for."""
    recipe = read_recipe(folder) if (folder / RECIPE).is_file() else SmallRecipe()
    tasks = [task for task, _ in BASE_TASKS]
    tasks += [task for name in LORA_TASKS for task in trained_tasks(folder, name)]
    config = recipe.synthesis((), split="test")
    return [case for task in tasks for group in GROUPS for case in held_out_cases(config, task, group, count)]


def trained_tasks(folder: Path, lora: str) -> list[str]:
    """The tasks of an adapter that the folder has."""
    return (
        [task for task, _ in LORA_TASKS[lora]] if (folder / "loras" / f"{lora}.safetensors").is_file() else []
    )


Inside = Callable[[TrainedPair, Batch, Tensor], AbstractContextManager[Any]]


def untouched(pair: TrainedPair, batch: Batch, noise: Tensor) -> AbstractContextManager[None]:
    """The network as it is."""
    return nullcontext()


class Solved:
    """Pictures of some cases with any sampling; words and pictures are read once."""

    def __init__(self, folder: Path, cases: list[Case]) -> None:
        self.editor, self.cases = FolderEditor(folder, 1, torch.device("cpu")), cases
        self.batches = list(self.told())

    def told(self) -> Iterator[tuple]:
        """(network, what it is told, noise, numbers) of cases that share a batch."""
        alike: dict[tuple, list[int]] = {}
        for number, case in enumerate(self.cases):
            pair = self.editor.pair_for(case.task)
            alike.setdefault((id(pair), self.editor.family.signature(question(case))), []).append(number)
        for numbers in alike.values():
            pair = self.editor.pair_for(self.cases[numbers[0]].task)
            with torch.inference_mode():
                batch = self.editor.read(pair, [question(self.cases[number]) for number in numbers])
            yield pair, batch, torch.stack([case_noise(self.cases[number]) for number in numbers]), numbers

    @torch.inference_mode()
    def __call__(self, sampling: Sampling, inside: Inside = untouched) -> Tensor:
        """RGB (cases, 3, H, W) in -1..1; each batch is solved in the context of its `inside`."""
        found: dict[int, Tensor] = {}
        for pair, batch, noise, numbers in self.batches:
            with inside(pair, batch, noise):
                found |= zip(numbers, self.editor.solve(pair, batch, noise, sampling), strict=True)
        return torch.stack([found[number] for number in range(len(self.cases))])


def asked(solver: str, name: str, evaluations: int) -> Sampling:
    """The sampling of a row at a number of evaluations."""
    schedule, shift = SCHEDULES[name]
    return Sampling(evaluations=evaluations, solver=solver, schedule=schedule, shift=shift)


def decibels(result: Tensor, exact: Tensor) -> float:
    """Signal over error, dB, mean of the cases (B, 3, H, W); at most 99 for equal pictures."""
    error = (result - exact).square().mean(dim=(1, 2, 3)).clamp(min=1e-12)
    return float((10 * torch.log10(exact.square().mean(dim=(1, 2, 3)) / error)).clamp(max=99).mean())


def drawn_table(title: str, evaluations: Sequence[int], rows: Sequence[tuple], note: str) -> Table:
    """A table that is also drawn as lines over the number of evaluations."""
    columns = ("solver / schedule", *(f"{count} evaluations" for count in evaluations))
    return Table(title, columns, tuple(rows), note=note, lines=True)


def error_table(folder: Path, count: int = CASES) -> Table:
    """dB to the exact solution for every solver and schedule."""
    solved = Solved(folder, cases_of(folder, count))
    exact = solved(EXACT)
    rows = []
    for solver in SOLVERS:
        for schedule in SCHEDULES:
            settings = [asked(solver, schedule, number) for number in EVALUATIONS]
            values = [decibels(solved(sampling), exact) for sampling in settings]
            rows.append((f"{solver} / {schedule}", *values))
    note = f"dB to {EXACT.evaluations} Euler steps, mean of {len(solved.cases)} held-out cases"
    return drawn_table("Small model, solver error", EVALUATIONS, rows, note)


def right_share(cases: Sequence[Case], results: Tensor) -> float:
    """Per cent of the results (cases, 3, H, W) that the judge passes."""
    judge = Judge()
    passed = [judge.judge(case, canvas(row)).success for case, row in zip(cases, results, strict=True)]
    return 100 * sum(passed) / len(passed)


def judged_table(folder: Path, count: int = JUDGED_CASES) -> Table:
    """Right answers, per cent, of some settings."""
    solved = Solved(folder, cases_of(folder, count))
    rows = []
    for solver, schedule in JUDGED:
        runs = (solved(asked(solver, schedule, number)) for number in JUDGED_EVALUATIONS)
        shares = [right_share(solved.cases, pictures) for pictures in runs]
        rows.append((f"{solver} / {schedule}", *shares))
    note = f"per cent of {len(solved.cases)} held-out cases, every task alike"
    return drawn_table("Small model, right answers", JUDGED_EVALUATIONS, rows, note)


def tables(model: Path | None = None) -> list[Table]:
    """Error and right answers of a model folder; nothing where the pack ships none."""
    folder = model or MODEL
    if model is None and not (folder / "config.json").is_file():
        return []
    return [error_table(folder), judged_table(folder)]

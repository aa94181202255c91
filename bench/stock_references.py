"""What it does to pictures when references stay those of an earlier step (mode `stock` of Reference Cache).

Measured on the trained small model: its attention is that of the cache, reading the keys and values that the
pictures had in the last full step. The pictures are still computed here, and nobody looks at them: this shows
the error, not the time.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..dit.dreamomni.layers import scaled_dot_product
from ..dit.dreamomni.network import DreamOmniNetwork
from ..training.evaluation.cases import GROUPS, Case, held_out_cases
from ..training.recipes.editor import Sampling, read_recipe
from ..training.recipes.small_tasks import LORA_TASKS
from .harness import Table
from .small_solvers import MODEL, Solved, right_share

TASKS: dict[str, tuple[str, ...]] = {
    "edits of the source": ("recolour", "replace", "move"),
    "edits with a reference": tuple(task for task, _ in LORA_TASKS["edit"]),
    "scenes from references": tuple(task for task, _ in LORA_TASKS["generate"]),
}
"""Kinds of requests; only the last has no source that the network's exit could copy."""
CASES = 4
"""Cases of every task and group."""
STEPS = 28
PLANS: tuple[tuple[int, int], ...] = ((1, STEPS), (3, STEPS), (6, 8), (6, 3))
"""(warm_up, refresh_every) of the node: which steps are full."""
WORST = 0.1
"""Share of the cases below the second figure of a cell."""


class Schedule(Protocol):
    """Which steps compute their references."""

    def is_full(self, step: int) -> bool:
        """Whether a step does."""
        ...


@dataclass
class NotedAttention:
    """Attention of a whole run; in steps that are not full the pictures' keys and values are older ones."""

    schedule: Schedule
    pictures: slice
    """Where the tokens of the pictures are in the sequence."""
    num_blocks: int
    calls: int = 0
    noted: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, L, D) each."""
        step, block = divmod(self.calls, self.num_blocks)
        self.calls += 1
        if self.schedule.is_full(step):
            self.noted[block] = key[:, :, self.pictures].clone(), value[:, :, self.pictures].clone()
        else:
            key, value = key.clone(), value.clone()
            key[:, :, self.pictures], value[:, :, self.pictures] = self.noted[block]
        return scaled_dot_product(query, key, value, mask)


@contextmanager
def noting(
    dit: DreamOmniNetwork, references: Sequence[Tensor], noise: Tensor, schedule: Schedule
) -> Generator[NotedAttention]:
    """The network attends by the schedule inside the block; one run, one evaluation a step."""
    block = dit.config.latent.downscale
    counts = [
        dit.grid(torch.empty(1, 1, *(side // block for side in picture.shape[-2:]), device="meta")).num_tokens
        for picture in (noise, *references)
    ]
    blocks = sum(len(group.blocks) for part in (dit.encoder, dit.decoder) for group in part)
    attention = NotedAttention(schedule, slice(counts[0], sum(counts)), blocks)

    def attending(_: Any, inputs: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return inputs, {**named, "attention": attention}

    handle = dit.register_forward_pre_hook(attending, with_kwargs=True)
    try:
        yield attention
    finally:
        handle.remove()


def psnr(result: Tensor, exact: Tensor) -> Tensor:
    """(B,) dB of RGB (B, 3, H, W) in -1..1; at most 99."""
    error = ((result - exact) / 2).square().mean(dim=(1, 2, 3)).clamp(min=1e-10)
    return (-10 * torch.log10(error)).clamp(max=99)


def asked_cases(folder: Path, count: int) -> dict[str, list[Case]]:
    """Held-out cases of each kind of request."""
    config = read_recipe(folder).synthesis((), split="test")
    return {
        kind: [
            case for task in tasks for group in GROUPS for case in held_out_cases(config, task, group, count)
        ]
        for kind, tasks in TASKS.items()
    }


def pictures(solved: Solved, sampling: Sampling, schedule: Schedule) -> Tensor:
    """RGB (cases, 3, H, W) in -1..1, by a schedule of full steps."""
    return solved(
        sampling,
        lambda pair, batch, noise: noting(pair.dit, batch.conditions["references"], noise, schedule),
    )


def error_table(folder: Path, count: int = CASES, steps: int = STEPS) -> Table:
    """Error to the run in full and right answers, for every plan and kind of request."""
    from ..model_loaders.stock_cache import StockSettings

    sampling = Sampling(evaluations=steps)
    rows: list[list[str | float]] = [[f"all {steps}", steps]]
    rows += [
        [f"the first {first}" + (f", then 1 in {every}" if every < steps else ""), 0]
        for first, every in PLANS
    ]
    for cases in asked_cases(folder, count).values():
        solved = Solved(folder, cases)
        whole = solved(sampling)
        rows[0] += ["-", "-", right_share(cases, whole)]
        for row, (first, every) in zip(rows[1:], PLANS, strict=True):
            schedule = StockSettings(warm_up=first, refresh_every=every)
            row[1] = sum(map(schedule.is_full, range(steps)))
            results = pictures(solved, sampling, schedule)
            error = psnr(results, whole)
            row += [float(error.mean()), float(error.quantile(WORST)), right_share(cases, results)]
    columns = ["full steps", f"of {steps}"]
    columns += [f"{kind}: {what}" for kind in TASKS for what in ("dB", "worst tenth dB", "right %")]
    note = f"{count} held-out cases for each task and group; dB: PSNR to the run in full"
    return Table("References of an earlier step, small model", tuple(columns), tuple(map(tuple, rows)), note)


def tables(model: Path | None = None) -> list[Table]:
    """The error table of a model folder."""
    return [error_table(model or MODEL)]

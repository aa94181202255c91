"""Solver error at equal numbers of evaluations, on two flows whose velocity is known in closed form.

The data is a mixture of round Gaussians, so the denoised prediction is exact and costs nothing. `edit`
has three outcomes close together (a reference picture pins the result), `many` has 24 separate ones.
It measures the error of the integration alone: a real network adds its own, and may gain less.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..samplers.flow import expand_sigma
from ..samplers.schedules import ScheduleSettings, make_sigmas
from ..samplers.solvers import SOLVERS
from .harness import Table

SEEDS, DIMENSIONS = 24, 1024
EVALUATIONS = (8, 10, 12, 16, 28, 50)
REFERENCE_STEPS = 1200
ROWS = (
    ("euler", "flux-dynamic"),
    ("heun", "flux-dynamic"),
    ("ab2", "flux-dynamic"),
    ("core dpmpp_2m", "flux-dynamic"),
    ("euler", "beta"),
    ("core ipndm", "beta"),
    ("ab2", "beta"),
    ("adams-2", "beta"),
    ("adams-3", "beta"),
)


@dataclass(frozen=True)
class GaussianMixture:
    """A rectified flow towards a mixture of Gaussians; `model(x, sigma)` is its exact denoiser."""

    centres: Tensor
    """K x C."""
    deviation: float
    bf16: bool = False
    """Round every velocity to bfloat16, as a real network's output is."""
    wrong: float = 0.0
    """Size of a fixed smooth error added to every velocity, relative to the velocity."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The mean of the data given x (B x C) at sigma (B)."""
        noise = expand_sigma(sigma, x)
        signal = 1 - noise
        variance = (signal * self.deviation) ** 2 + noise**2
        from_centres = x[:, None] - signal[..., None] * self.centres
        weights = torch.softmax(-from_centres.square().sum(-1) / (2 * variance), dim=-1)
        gain = signal * self.deviation**2 / variance
        denoised = weights @ self.centres + gain * (x - signal * (weights @ self.centres))
        if not self.bf16 and not self.wrong:
            return denoised
        velocity = (x - denoised) / noise
        velocity = velocity + self.wrong * velocity.std() * torch.sin(3 * x + 2 * noise)
        return x - noise * (velocity.bfloat16().to(x) if self.bf16 else velocity)


def edit_problem(**options: float) -> GaussianMixture:
    """Three outcomes that differ by a tenth of the picture's own deviation."""
    draw = torch.Generator().manual_seed(1)
    picture = torch.randn(1, DIMENSIONS, generator=draw, dtype=torch.float64)
    changes = torch.randn(3, DIMENSIONS, generator=draw, dtype=torch.float64)
    return GaussianMixture(picture + 0.1 * changes, deviation=0.3, **options)


def many_problem(**options: float) -> GaussianMixture:
    """24 unrelated outcomes, faint enough beside the noise that the choice among them falls late."""
    draw = torch.Generator().manual_seed(2)
    centres = torch.randn(24, DIMENSIONS, generator=draw, dtype=torch.float64)
    return GaussianMixture(0.2 * centres, deviation=0.1, **options)


PROBLEMS = {"edit": edit_problem, "many": many_problem}


def solver_named(name: str) -> Callable[..., Tensor]:
    """One of ours, or ComfyUI's `sample_<name>` for the rows marked `core`."""
    if not name.startswith("core "):
        return SOLVERS[name]
    return getattr(
        importlib.import_module("comfy.k_diffusion.sampling"), f"sample_{name.removeprefix('core ')}"
    )


def solve(
    problem: GaussianMixture, solver: str, schedule: str, evaluations: int, seeds: int = SEEDS
) -> Tensor:
    """End points (seeds x DIMENSIONS) after a number of evaluations; Heun takes half as many steps."""
    start = torch.randn(seeds, DIMENSIONS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = (evaluations + 1) // 2 if solver == "heun" else evaluations
    sigmas = make_sigmas(schedule, steps, ScheduleSettings()).double()
    return solver_named(solver)(problem, start, sigmas, disable=True)


def decibels(result: Tensor, reference: Tensor) -> Tensor:
    """Signal power over error power of each seed, dB (higher is better)."""
    error = (result - reference).square().mean(-1)
    return 10 * torch.log10(reference.square().mean(-1) / error)


def exact_ends(problem: GaussianMixture, seeds: int = SEEDS) -> Tensor:
    """End points after so many evaluations that what is left of the error does not show."""
    return solve(problem, "adams-2", "flux-dynamic", REFERENCE_STEPS, seeds)


def has_core() -> bool:
    """Whether ComfyUI is on the path, so that its own solvers can stand beside ours."""
    return importlib.util.find_spec("comfy") is not None


def solver_table(name: str, title: str, **options: float) -> Table:
    """Mean error of every solver and schedule at every number of evaluations."""
    problem = PROBLEMS[name](**options)
    reference = exact_ends(problem)
    rows = [row for row in ROWS if has_core() or not row[0].startswith("core ")]
    values = tuple(
        (
            f"{solver} / {schedule}",
            *(
                float(decibels(solve(problem, solver, schedule, count), reference).mean())
                for count in EVALUATIONS
            ),
        )
        for solver, schedule in rows
    )
    columns = ("solver / schedule", *(f"{count} evaluations" for count in EVALUATIONS))
    note = f"dB to {REFERENCE_STEPS} evaluations, mean of {SEEDS} seeds, {DIMENSIONS} dimensions"
    return Table(title, columns, values, note, chart=("solver / schedule", "12 evaluations"))


def tables() -> list[Table]:
    """Both problems exactly, then with bf16 velocities and a fixed 3 % error in the field."""
    return [
        solver_table("edit", "Solver error, edit"),
        solver_table("many", "Solver error, many"),
        solver_table("edit", "Solver error, edit, bf16 and 3 % wrong", bf16=True, wrong=0.03),
        solver_table("many", "Solver error, many, bf16 and 3 % wrong", bf16=True, wrong=0.03),
    ]

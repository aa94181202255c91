"""Noise schedules: falling sigmas, `steps + 1` values that start at 1 and end in 0.

`uniform` below is the unshifted share of noise; a time shift moves steps towards the noisy end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from scipy.special import betaincinv
from torch import Tensor

Sigmas = TypeVar("Sigmas", float, Tensor)

MU_TOKENS = (256, 4096)
MU_RANGE = (0.5, 1.15)
"""FLUX.1: mu is 0.5 at 256 noise tokens and 1.15 at 4096, on a straight line through both (and beyond)."""

BETA_SHAPE = 0.6
"""alpha = beta of the beta distribution behind the `beta` schedule, as in ComfyUI."""


def flux_mu(
    tokens: int, mu_tokens: tuple[int, int] = MU_TOKENS, mu_range: tuple[float, float] = MU_RANGE
) -> float:
    """FLUX.1's log time shift for a number of noise tokens; reference and text tokens do not count."""
    if tokens < 1:
        raise ValueError(f"the schedule needs at least 1 noise token, got {tokens}")
    slope = (mu_range[1] - mu_range[0]) / (mu_tokens[1] - mu_tokens[0])
    return mu_range[0] + slope * (tokens - mu_tokens[0])


def shift_sigmas(sigmas: Sigmas, shift: float) -> Sigmas:
    """The time shift shift * s / (1 + (shift - 1) * s); 1 changes nothing, ends stay at 0 and 1."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def uniform_sigmas(steps: int) -> Tensor:
    """steps + 1 evenly spaced values from 1 to 0, in double precision."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def beta_sigmas(steps: int) -> Tensor:
    """steps + 1 quantiles of the beta distribution from 1 to 0: dense at both ends."""
    quantiles = betaincinv(BETA_SHAPE, BETA_SHAPE, uniform_sigmas(steps).numpy())
    return torch.from_numpy(quantiles)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleSettings:
    """What a schedule may depend on besides the number of steps."""

    tokens: int = 4096
    """Noise tokens of the picture: latent height * width / 4 for FLUX.1."""
    shift_value: float = 1.0
    """Factor of the fixed shift; OmniGen calls it time_shifting_factor."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"the schedule needs at least 1 noise token, got {self.tokens}")
        if not (math.isfinite(self.shift_value) and self.shift_value > 0):
            raise ValueError(
                f"shift_value must be a number above 0 (1 = no shift, ComfyUI's FLUX uses 3.16), got "
                f"{self.shift_value}"
            )


def flux_dynamic(steps: int, settings: ScheduleSettings) -> Tensor:
    """FLUX.1's schedule: evenly spaced, shifted by exp(mu) with mu from the noise tokens only."""
    return shift_sigmas(uniform_sigmas(steps), math.exp(flux_mu(settings.tokens)))


def fixed_shift(steps: int, settings: ScheduleSettings) -> Tensor:
    """Evenly spaced, shifted by the given factor."""
    return shift_sigmas(uniform_sigmas(steps), settings.shift_value)


def linear(steps: int, settings: ScheduleSettings) -> Tensor:
    """Evenly spaced, no shift."""
    return uniform_sigmas(steps)


def beta(steps: int, settings: ScheduleSettings) -> Tensor:
    """Beta quantiles, then FLUX.1's dynamic shift: the schedule to use with the Adams solvers."""
    return shift_sigmas(beta_sigmas(steps), math.exp(flux_mu(settings.tokens)))


def omnigen(steps: int, settings: ScheduleSettings) -> Tensor:
    """OmniGen's t / (t + f - f * t), which counts from noise 0 to data 1, turned to our direction.

    With t = 1 - s that is the shift by f. Written as published it ends a rounding error beside 0 for many f.
    """
    return fixed_shift(steps, settings)


def make_sigmas(name: str, steps: int, settings: ScheduleSettings, denoise: float = 1.0) -> Tensor:
    """Sigmas of a named schedule, float32; denoise < 1 keeps the last part of a longer schedule.

    With denoise the schedule is made for int(steps / denoise) steps and its last steps + 1 values are kept,
    as ComfyUI's schedulers do; denoise 0 gives an empty tensor, which samplers read as "nothing to do".
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; choose one of {', '.join(SCHEDULES)}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 <= denoise <= 1:
        raise ValueError(f"denoise must be between 0 and 1, got {denoise}")
    if denoise == 0:
        return torch.zeros(0)
    total = max(steps, int(steps / denoise))
    return SCHEDULES[name](total, settings)[-(steps + 1) :].float()


SCHEDULES: dict[str, Callable[[int, ScheduleSettings], Tensor]] = {
    "flux-dynamic": flux_dynamic,
    "fixed": fixed_shift,
    "linear": linear,
    "beta": beta,
    "omnigen": omnigen,
}

"""Draws of the noise share sigma for training (1 = noise): uniform, logit-normal, shifted, dynamic shift.

Every draw belongs to (seed, optimizer step, slot in the global batch), never to a running generator:
accumulation, several processes and a resumed run therefore see the same numbers.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from ..samplers.schedules import flux_mu, shift_sigmas
from .config import TimestepConfig


def slot_generator(seed: int, step: int, slot: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on its arguments only; `purpose` separates noise, sigma and dropout."""
    digest = hashlib.sha256(f"{seed}/{step}/{slot}/{purpose}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def dynamic_shift(config: TimestepConfig, num_tokens: int) -> float:
    """e^mu with mu linear in the number of target tokens (FLUX: 256 -> 0.5, 4096 -> 1.15)."""
    mu_tokens, mu_range = (config.base_tokens, config.max_tokens), (config.base_mu, config.max_mu)
    return math.exp(flux_mu(num_tokens, mu_tokens, mu_range))


def draw_sigma(config: TimestepConfig, num_tokens: int, generator: torch.Generator) -> Tensor:
    """One sigma in (0, 1), a scalar tensor; `num_tokens` is read by the dynamic shift only."""
    if config.kind == "uniform":
        return torch.rand((), generator=generator)
    sigma = torch.sigmoid(config.mean + config.std * torch.randn((), generator=generator))
    if config.kind == "shifted":
        return shift_sigmas(sigma, config.shift)
    if config.kind == "dynamic_shift":
        return shift_sigmas(sigma, dynamic_shift(config, num_tokens))
    return sigma

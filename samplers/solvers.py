"""ODE solvers of the rectified flow dx/dsigma = velocity, with the k-diffusion signature.

`model(x, sigma, **extra_args)` returns the denoised prediction; sigma is a tensor of B values.
All take uneven, falling sigmas; every solver but Heun spends one evaluation a step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import trange

from .flow import velocity_from_denoised

Model = Callable[..., Tensor]
Callback = Callable[[dict[str, Any]], None]
Noise = Callable[[Tensor, Tensor], Tensor]
Options = dict[str, Any]


class Evaluator:
    """Calls the model, reports the step to the callback and hands out velocities."""

    def __init__(
        self, model: Model, sigmas: Tensor, extra_args: Options | None, callback: Callback | None
    ) -> None:
        if not bool((sigmas[1:] < sigmas[:-1]).all()):
            raise ValueError(f"sigmas must fall from step to step, got {sigmas.tolist()}")
        self.model, self.callback, self.extra_args = model, callback, extra_args or {}

    def velocity(self, x: Tensor, sigma: Tensor, step: int | None = None) -> Tensor:
        """The velocity of x at sigma; with a step number the callback hears of it (preview, cancel)."""
        denoised = self.model(x, sigma * x.new_ones([x.shape[0]]), **self.extra_args)
        if self.callback is not None and step is not None:
            self.callback({"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        return velocity_from_denoised(x, denoised, sigma)


def adams_weights(nodes: list[float], start: float, stop: float) -> list[float]:
    """Weights w with sum(w_j * f(nodes_j)) = integral of f from start to stop, exact for polynomials.

    Adams-Bashforth when all nodes are points passed before, Adams-Moulton when `stop` is among them. The
    nodes are measured in steps from `start`, which keeps the small linear system well conditioned.
    """
    length = stop - start
    distances = torch.tensor([(node - start) / length for node in nodes], dtype=torch.float64)
    powers = torch.arange(len(nodes), dtype=torch.float64)
    weights = torch.linalg.solve(distances[None, :] ** powers[:, None], 1 / (powers + 1))
    return (weights * length).tolist()


def advance(x: Tensor, velocities: list[Tensor], nodes: list[float], start: float, stop: float) -> Tensor:
    """x moved from start to stop under the polynomial through the velocities at the nodes."""
    for weight, velocity in zip(adams_weights(nodes, start, stop), velocities, strict=True):
        x = x + weight * velocity
    return x


def seeded_noise(x: Tensor, seed: int | None) -> Noise:
    """Normal noise shaped like x, drawn on the CPU so that a seed means the same on every device."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        # One beyond the seed, of which there are 64 bits: the first noise was drawn with the seed itself.
        generator.manual_seed((seed + 1) % 2**64)
    return lambda sigma, sigma_next: torch.randn(x.shape, generator=generator).to(x)


def ancestral_step(sigma: Tensor, sigma_next: Tensor, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """(sigma to step down to, factor, noise amount) with factor * x + amount * noise back at sigma_next.

    The same choice as ComfyUI's `euler_ancestral` makes for rectified flow; eta 0 gives sigma_next, 1, 0.
    """
    down = sigma_next * (1 + (sigma_next / sigma - 1) * eta)
    factor = (1 - sigma_next) / (1 - down)
    amount = (sigma_next**2 - (down * factor) ** 2).clamp(min=0).sqrt()
    return down, factor, amount


@torch.no_grad()
def single_step(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Options | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    heun: bool,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: Noise | None = None,
) -> Tensor:
    """Euler (one straight line a step) or Heun (the mean of both ends, two evaluations a step).

    They keep no history, so eta > 0 may add fresh noise between steps: `s_noise` times normal noise, for
    models whose noise is not of deviation 1.
    """
    evaluate = Evaluator(model, sigmas, extra_args, callback)
    for step in trange(len(sigmas) - 1, disable=disable):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        down, factor, amount = sigma_next, 1.0, None
        if eta > 0 and sigma_next > 0:
            down, factor, amount = ancestral_step(sigma, sigma_next, eta)
        velocity = evaluate.velocity(x, sigma, step)
        if heun and down > 0:
            velocity = (velocity + evaluate.velocity(x + (down - sigma) * velocity, down)) / 2
        x = factor * (x + (down - sigma) * velocity)
        if amount is not None:
            noise_sampler = noise_sampler or seeded_noise(x, evaluate.extra_args.get("seed"))
            x = x + amount * s_noise * noise_sampler(sigma, sigma_next)
    return x


@torch.no_grad()
def multistep(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Options | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    order: int,
    correct: bool,
    eta: float = 0.0,
) -> Tensor:
    """Adams-Bashforth from the last `order` velocities, optionally corrected by Adams-Moulton.

    With `correct` each evaluation serves twice: it corrects the point it was made from (the corrected
    point is never evaluated again: predict, evaluate, correct) and feeds the next prediction. The step
    to sigma 0 is predicted only, since the velocity there is not needed.

    Raises ValueError for eta > 0: fresh noise between steps would make the kept velocities wrong.
    """
    if eta > 0:
        raise ValueError(
            f"this solver keeps earlier velocities and allows no eta, got {eta}; use euler or heun"
        )
    evaluate = Evaluator(model, sigmas, extra_args, callback)
    levels = sigmas.tolist()
    point, velocities, nodes = x, [], []
    for step in trange(len(levels) - 1, disable=disable):
        velocities = [evaluate.velocity(x, sigmas[step], step), *velocities][:order]
        nodes = [levels[step], *nodes][:order]
        if correct and step > 0:
            x = advance(point, velocities, nodes, nodes[1], nodes[0])
        point = x
        x = advance(point, velocities, nodes, levels[step], levels[step + 1])
    return x


KEEPS_HISTORY: dict[str, Callable[..., Tensor]] = {
    "adams-2": partial(multistep, order=2, correct=True),
    "adams-3": partial(multistep, order=3, correct=True),
    "ab2": partial(multistep, order=2, correct=False),
}
"""Solvers that build on earlier steps and allow no eta."""

SOLVERS: dict[str, Callable[..., Tensor]] = {
    **KEEPS_HISTORY,
    "euler": partial(single_step, heun=False),
    "heun": partial(single_step, heun=True),
}
"""Every solver by name; `adams-2` is the one to use at few evaluations."""

"""One step and a whole sampling with our nodes in ComfyUI, against diffusers with ids and packing by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from host_models import diffusers_kontext, kontext_model, kontext_weights
from kontext_steps import (
    TARGET,
    conditioning,
    diffusers_velocity,
    encoded,
    host_velocity,
    noise_like,
    process_in,
    references,
    relative_error,
    text_of,
)
from torch import Tensor

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return kontext_weights()


@pytest.fixture(scope="module")
def network(weights: dict[str, Tensor]) -> Any:
    return diffusers_kontext(weights)


@pytest.mark.parametrize("count", range(6))
def test_one_step_equals_diffusers(weights: dict[str, Tensor], network: Any, count: int) -> None:
    model, latents = kontext_model(weights), references(count)
    cond, x, sigma = conditioning(latents), noise_like(1, 16, *TARGET, seed=3), 0.7
    got = host_velocity(encoded(model), x, sigma, cond)
    expected = diffusers_velocity(network, x, sigma, *text_of(cond), process_in(model, latents))
    assert relative_error(got, expected) < 1e-4


@pytest.mark.parametrize("scheme", ["index+offset", "index", "offset", "none"])
def test_each_scheme_equals_its_ids_in_diffusers_and_differs_from_the_others(
    weights: dict[str, Tensor], network: Any, scheme: str
) -> None:
    model, latents = kontext_model(weights), references(3)
    cond, x, sigma = conditioning(latents), noise_like(1, 16, *TARGET, seed=3), 0.4
    got = host_velocity(encoded(model, scheme), x, sigma, cond)
    inputs = process_in(model, latents)
    for other in ("index+offset", "index", "offset", "none"):
        expected = diffusers_velocity(network, x, sigma, *text_of(cond), inputs, scheme=other)
        assert (relative_error(got, expected) < 1e-4) == (other == scheme), other


def test_one_reference_equals_stock_kontext_bit_for_bit(weights: dict[str, Tensor]) -> None:
    model, cond = kontext_model(weights), conditioning(references(1))
    stock = [[cond[0][0], {k: v for k, v in cond[0][1].items() if k != "reference_latents_method"}]]
    x = noise_like(1, 16, *TARGET, seed=3)
    for scheme in ("index+offset", "index", "offset", "none"):
        got = host_velocity(encoded(model, scheme), x, 0.5, cond)
        assert torch.equal(got, host_velocity(model, x, 0.5, stock))


def test_a_batch_is_edited_one_by_one_against_the_same_references(weights: dict[str, Tensor]) -> None:
    model = encoded(kontext_model(weights))
    sources, others = references(1, batch=3), references(3)[1:]
    x = noise_like(3, 16, *TARGET, seed=3)
    together = host_velocity(model, x, 0.5, conditioning(sources + others))
    for n in range(3):
        alone = host_velocity(model, x[n : n + 1], 0.5, conditioning([sources[0][n : n + 1], *others]))
        assert relative_error(together[n : n + 1], alone) < 1e-5


def test_a_latent_of_odd_size_is_padded_and_cropped(weights: dict[str, Tensor], network: Any) -> None:
    """A 5x7 target and a 3x5 reference count as 3x4 and 2x3 tokens; the result keeps 5x7."""
    model = kontext_model(weights)
    latents = [noise_like(1, 16, 3, 5, seed=8), noise_like(1, 16, 4, 4, seed=9)]
    x = noise_like(1, 16, 5, 7, seed=3)
    got = host_velocity(encoded(model), x, 0.5, conditioning(latents))
    assert got.shape == x.shape
    grown = [torch.nn.functional.pad(process_in(model, latents)[0], (0, 1, 0, 1), mode="circular")]
    grown += process_in(model, latents[1:])
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="circular")
    expected = diffusers_velocity(diffusers_kontext(weights), padded, 0.5, *text_of(conditioning([])), grown)[
        :, :, :5, :7
    ]
    assert relative_error(got, expected) < 1e-4


def test_eight_euler_steps_equal_diffusers_scheduler(weights: dict[str, Tensor], network: Any) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from pack.nodes.sampling import Schedule, Solver

    import comfy.samplers

    model, latents = kontext_model(weights), references(3)
    cond, noise = conditioning(latents), noise_like(1, 16, *TARGET, seed=5)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = 0.5 + (1.15 - 0.5) * (TARGET[0] * TARGET[1] // 4 - 256) / (4096 - 256)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 8, 8), mu=mu)
    sigmas = scheduler.sigmas.clone()
    inputs, expected = process_in(model, latents), noise
    for timestep in scheduler.timesteps:
        velocity = diffusers_velocity(network, expected, float(timestep) / 1000, *text_of(cond), inputs)
        expected = scheduler.step(velocity, timestep, expected, return_dict=False)[0]

    # An empty latent is zero inside the model; only a latent that is not all zero is shifted on the way in.
    zero = torch.zeros_like(noise)
    (ours,) = Schedule.execute(model, {"samples": zero}, 8, "flux-dynamic", 1.0, 1.0).args
    torch.testing.assert_close(ours, sigmas, atol=1e-6, rtol=1e-5)
    guider = comfy.samplers.CFGGuider(encoded(model))
    guider.set_conds(cond, cond)
    guider.set_cfg(1.0)
    for sampler in (Solver.execute("euler").args[0], comfy.samplers.sampler_object("euler")):
        with torch.inference_mode():
            got = guider.sample(noise, zero, sampler, ours, seed=0)
        assert relative_error(model.model.process_latent_in(got), expected) < 1e-4

"""One step and a whole sampling with our nodes in ComfyUI, against diffusers with ids and packing by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from host_models import TINY, diffusers_kontext, kontext_model, kontext_weights
from torch import Tensor

pytestmark = pytest.mark.host

# Latent sizes (height, width), all different, in pixels of the latent.
SIZES = [(4, 6), (8, 2), (6, 10), (2, 4), (10, 8)]
TARGET = (6, 8)
GUIDANCE = 3.5


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return kontext_weights()


@pytest.fixture(scope="module")
def network(weights: dict[str, Tensor]) -> Any:
    return diffusers_kontext(weights)


def noise_like(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def references(count: int, batch: int = 1) -> list[Tensor]:
    return [noise_like(batch, 16, *size, seed=40 + n) for n, size in enumerate(SIZES[:count])]


def pack(latent: Tensor) -> Tensor:
    """2x2 pixels to a token: channel-major, then row, then column inside the patch."""
    b, c, h, w = latent.shape
    return latent.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    b, _, packed = tokens.shape
    grid = tokens.view(b, height // 2, width // 2, packed // 4, 2, 2)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(b, packed // 4, height, width)


def ids_by_hand(latents: list[Tensor], scheme: str = "index+offset") -> Tensor:
    """The rule written out: noise (0, y, x); image n (n, y, x + widths of the images before it)."""
    rows = [(0, y, x) for y in range(TARGET[0] // 2) for x in range(TARGET[1] // 2)]
    widths = 0
    for n, latent in enumerate(latents, start=1):
        height, width = latent.shape[2] // 2, latent.shape[3] // 2
        index, shift = (n if "index" in scheme else 1), (widths if "offset" in scheme else 0)
        rows += [(index, y, x + shift) for y in range(height) for x in range(width)]
        widths += width
    return torch.tensor(rows, dtype=torch.float32)


def diffusers_velocity(
    network: Any, x: Tensor, sigma: float, text: Tensor, pooled: Tensor, latents: list[Tensor], **kwargs: Any
) -> Tensor:
    tokens = torch.cat([pack(x), *(pack(latent.expand(len(x), -1, -1, -1)) for latent in latents)], 1)
    with torch.no_grad():
        out = network(
            hidden_states=tokens,
            encoder_hidden_states=text.expand(len(x), -1, -1),
            pooled_projections=pooled.expand(len(x), -1),
            timestep=torch.full((len(x),), sigma),
            guidance=torch.full((len(x),), GUIDANCE),
            txt_ids=torch.zeros(text.shape[1], 3),
            img_ids=ids_by_hand(latents, **kwargs),
            return_dict=False,
        )[0]
    return unpack(out[:, : x.shape[2] * x.shape[3] // 4], *x.shape[2:])


def process_in(model: Any, latents: list[Tensor]) -> list[Tensor]:
    return [model.model.process_latent_in(latent) for latent in latents]


def encoded(model: Any, scheme: str = "index+offset") -> Any:
    from pack.nodes.kontext import PositionEncoding

    return PositionEncoding.execute(model, scheme).args[0]


def conditioning(latents: list[Tensor]) -> list:
    from pack.model_loaders.reference_latents import append_reference_latents

    text, pooled = noise_like(1, 5, TINY.text_dim, seed=1), noise_like(1, TINY.pooled_dim, seed=2)
    return append_reference_latents([[text, {"pooled_output": pooled, "guidance": GUIDANCE}]], latents)


def host_velocity(model: Any, x: Tensor, sigma: float, cond: list) -> Tensor:
    """The velocity of one evaluation through the sampler's own path, wrappers and patches included."""
    import comfy.samplers

    velocities = []

    class OneStep(comfy.samplers.Sampler):
        def sample(self, wrap: Any, sigmas: Any, extra_args: Any, *_: Any) -> Tensor:
            denoised = wrap(x, torch.full((len(x),), sigma), **extra_args)
            velocities.append((x - denoised) / sigma)
            return x

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(cond, cond)
    guider.set_cfg(1.0)
    with torch.inference_mode():
        guider.sample(torch.zeros_like(x), torch.zeros_like(x), OneStep(), torch.tensor([sigma, 0.0]), seed=0)
    return velocities[0]


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def text_of(cond: list) -> tuple[Tensor, Tensor]:
    return cond[0][0], cond[0][1]["pooled_output"]


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

    guider = comfy.samplers.CFGGuider(encoded(model))
    guider.set_conds(cond, cond)
    guider.set_cfg(1.0)
    with torch.inference_mode():
        # Sampling starts from noise alone; an empty latent is zero after the model's own shift.
        zero = model.model.process_latent_out(torch.zeros_like(noise))
        got = guider.sample(noise, zero, comfy.samplers.sampler_object("euler"), sigmas, seed=0)
    assert relative_error(model.model.process_latent_in(got), expected) < 1e-4

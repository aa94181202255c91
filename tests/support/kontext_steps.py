"""One step of a Kontext MODEL through ComfyUI's sampling path, and of diffusers' network with ids by hand."""

from __future__ import annotations

from typing import Any

import torch
from host_models import TINY
from torch import Tensor

# Latent sizes (height, width), all different, in pixels of the latent.
SIZES = [(4, 6), (8, 2), (6, 10), (2, 4), (10, 8)]
TARGET = (6, 8)
GUIDANCE = 3.5


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

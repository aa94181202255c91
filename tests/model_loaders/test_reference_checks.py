"""A latent of another VAE is named: the one to start from, or the reference, by the model's own channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_flux import tiny_conditioning, tiny_flux
from tiny_omnigen import tiny_config, write_official
from torch import Tensor

pytestmark = pytest.mark.host

Run = Callable[[Tensor, list[Tensor]], Tensor]


def sampled(model: Any, conditioning: list, start: Tensor) -> Tensor:
    """What KSampler makes of a latent and a conditioning."""
    import nodes

    latent = {"samples": start}
    with torch.inference_mode():
        made = nodes.common_ksampler(model, 1, 1, 1.0, "euler", "simple", conditioning, conditioning, latent)
    return made[0]["samples"]


@pytest.fixture(scope="module")
def flux() -> Run:
    from pack.nodes.kontext import PositionEncoding

    model = PositionEncoding.execute(tiny_flux(), "index+offset").args[0]
    return lambda start, latents: sampled(model, tiny_conditioning(reference_latents=latents), start)


@pytest.fixture(scope="module")
def omnigen(tmp_path_factory: pytest.TempPathFactory) -> Run:
    from pack.model_loaders.omnigen import load_omnigen

    model, processor = load_omnigen(write_official(tmp_path_factory.mktemp("og"), tiny_config()), "fp32")

    def run(start: Tensor, latents: list[Tensor]) -> Tensor:
        prompt = "<img><|image_1|></img> with a hat" if latents else "a cat"
        ids = processor.tokenize(prompt, [(48, 32)] * len(latents)).as_tensor()
        return sampled(model, [[ids, {"reference_latents": latents}]], start)

    return run


@pytest.fixture(params=["flux", "omnigen"])
def case(request: pytest.FixtureRequest) -> tuple[Run, int, int]:
    """A run, the channels of its model, and the channels of another."""
    mine, other = (16, 4) if request.param == "flux" else (4, 16)
    return request.getfixturevalue(request.param), mine, other


def picture(channels: int) -> Tensor:
    return torch.ones(1, channels, 4, 6)


def wrong_start(channels: int) -> str:
    shape = rf"as \(batch, {channels}, height, width\). Encode it with the VAE of this model"
    return rf"^the latent to start from has shape \(.*\), this model takes {channels} channels, {shape}"


@pytest.mark.parametrize("references", [0, 1])
def test_a_start_of_another_vae_is_named(case: tuple[Run, int, int], references: int) -> None:
    run, mine, other = case
    with pytest.raises(ValueError, match=wrong_start(mine)):
        run(picture(other), [picture(mine)] * references)


@pytest.mark.parametrize("references", [0, 1])
def test_an_empty_latent_for_video_is_named(case: tuple[Run, int, int], references: int) -> None:
    run, mine, _ = case
    with pytest.raises(ValueError, match=wrong_start(mine)):
        run(torch.zeros(1, 16, 1, 4, 6), [picture(mine)] * references)


def test_a_reference_of_another_vae_is_named(case: tuple[Run, int, int]) -> None:
    run, mine, other = case
    with pytest.raises(ValueError, match=rf"^reference 1 is a latent .* this model takes {mine} channels: "):
        run(picture(mine), [picture(other)])


@pytest.mark.parametrize("references", [0, 1])
def test_latents_of_the_model_and_any_empty_picture_are_taken(
    case: tuple[Run, int, int], references: int
) -> None:
    run, mine, other = case
    for start in (picture(mine), torch.zeros(1, other, 4, 6)):
        made = run(start, [picture(mine)] * references)
        assert made.shape == (1, mine, 4, 6)
        assert made.isfinite().all()

"""Sample pictures of a run: drawn by the solver and along the sigmas that inference takes."""

from __future__ import annotations

import pytest
import torch
from pack.samplers.flow import denoised_from_velocity
from pack.samplers.schedules import ScheduleSettings, make_sigmas
from pack.samplers.solvers import SOLVERS
from pack.training.config import OutputConfig, RunConfig
from pack.training.families import load_family
from pack.training.families.base import Batch
from torch import Tensor, nn

from tests.training.toy import ToyFamily, toy_config


class StraightFamily(ToyFamily):
    """The velocity of a network that knows the target; it writes down at which sigmas it was asked."""

    def __init__(self, noise: Tensor) -> None:
        self.noise, self.asked = noise, []

    def predict_velocity(self, network: nn.Module, batch: Batch, noisy: Tensor, sigmas: Tensor) -> Tensor:
        self.asked.append(sigmas.tolist())
        share = sigmas.view(-1, 1, 1, 1)
        torch.testing.assert_close(noisy, (1 - share) * batch.target + share * self.noise)
        return self.noise - batch.target


class BentFamily(ToyFamily):
    """A velocity that turns with picture and noise share."""

    def predict_velocity(self, network: nn.Module, batch: Batch, noisy: Tensor, sigmas: Tensor) -> Tensor:
        return torch.sin(3 * noisy) + sigmas.view(-1, 1, 1, 1)


def start_noise() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))


def test_a_straight_path_is_followed_to_the_target() -> None:
    noise, target = start_noise(), torch.ones(2, 3, 4, 4)
    family, config = StraightFamily(noise), toy_config(output=OutputConfig(sample_steps=5))
    sigmas = family.preview_sigmas(config, 4)
    assert sigmas.tolist() == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    sample = family.sample(nn.Identity(), Batch(ids=("a", "b"), target=target), noise, sigmas, config)
    torch.testing.assert_close(sample, target)
    assert family.asked == [pytest.approx([sigma] * 2) for sigma in sigmas[:-1].tolist()]


def test_a_picture_is_the_one_that_the_euler_of_inference_draws() -> None:
    family, config, noise = BentFamily(), toy_config(output=OutputConfig(sample_steps=9)), start_noise()
    sigmas, batch = family.preview_sigmas(config, 4), Batch(ids=("a", "b"), target=noise)

    def model(noisy: Tensor, sigma: Tensor) -> Tensor:
        velocity = family.predict_velocity(nn.Identity(), batch, noisy, sigma)
        return denoised_from_velocity(noisy, velocity, sigma)

    sample = family.sample(nn.Identity(), batch, noise, sigmas, config)
    assert torch.equal(sample, SOLVERS["euler"](model, noise, sigmas, disable=True))
    with pytest.raises(ValueError, match="sigmas must fall from step to step"):
        family.sample(nn.Identity(), batch, noise, sigmas.flip(0), config)


@pytest.mark.parametrize("tokens", [64, 1024, 4096])
def test_kontext_pictures_take_the_sigmas_of_inference(tokens: int) -> None:
    config = RunConfig(name="x", family="kontext", output=OutputConfig(sample_steps=7))
    sigmas = load_family("kontext").preview_sigmas(config, tokens)
    assert torch.equal(sigmas, make_sigmas("flux-dynamic", 7, ScheduleSettings(tokens=tokens)))


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_dreamomni_pictures_take_the_sigmas_of_inference(shift: float) -> None:
    options = {"preset": "tiny", "network.vlm_width": 64, "network.sampling_shift": shift}
    config = RunConfig(
        name="x", family="dreamomni", options=options, output=OutputConfig(sample_steps=7), adapter=None
    )
    sigmas = load_family("dreamomni").preview_sigmas(config, 256)
    assert torch.equal(sigmas, make_sigmas("fixed", 7, ScheduleSettings(shift_value=shift)))

"""Sample pictures of a run: integrated exactly, along the sigmas that inference takes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pack.samplers.schedules import ScheduleSettings, make_sigmas
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


def test_a_straight_path_is_followed_to_the_target() -> None:
    noise, target = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    family, config = StraightFamily(noise), toy_config(output=OutputConfig(sample_steps=5))
    sigmas = family.preview_sigmas(config, 4)
    assert sigmas == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    sample = family.sample(nn.Identity(), Batch(ids=("a", "b"), target=target), noise, sigmas, config)
    torch.testing.assert_close(sample, target)
    assert family.asked == [pytest.approx([sigma] * 2) for sigma in sigmas[:-1]]


@pytest.mark.parametrize("tokens", [64, 1024, 4096])
def test_kontext_pictures_take_the_sigmas_of_inference(tokens: int) -> None:
    config = RunConfig(name="x", family="kontext", output=OutputConfig(sample_steps=7))
    sigmas = load_family("kontext").preview_sigmas(config, tokens)
    expected = make_sigmas("flux-dynamic", 7, ScheduleSettings(tokens=tokens))
    torch.testing.assert_close(torch.tensor(sigmas), expected)
    assert all(later < sigma for sigma, later in pairwise(sigmas))


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_dreamomni_pictures_take_the_sigmas_of_inference(shift: float) -> None:
    options = {"preset": "tiny", "network.vlm_width": 64, "network.sampling_shift": shift}
    config = RunConfig(
        name="x", family="dreamomni", options=options, output=OutputConfig(sample_steps=7), adapter=None
    )
    sigmas = load_family("dreamomni").preview_sigmas(config, 256)
    expected = make_sigmas("fixed", 7, ScheduleSettings(shift_value=shift))
    torch.testing.assert_close(torch.tensor(sigmas), expected)

"""Objective and sigma draws against hand-written values and diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from pack.samplers.schedules import flux_mu, shift_sigmas
from pack.training.config import ObjectiveConfig, TimestepConfig
from pack.training.objective import (
    code_weights,
    mask_weights,
    paper_weights,
    region_weights,
    velocity_loss,
)
from pack.training.timesteps import draw_sigma, dynamic_shift, slot_generator


def upstream_rule(latent: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """OmniGen's inactive block, one sample at a time."""
    weights = []
    for x, y in zip(latent, source, strict=True):
        difference = (x - y).abs()
        mean = difference.mean().item()
        w = torch.ones_like(x)
        if mean < 0.001:
            w = torch.zeros_like(x)
        elif mean <= 0.8:
            w[difference > 0.3] = min(max(1 / (mean + 1e-6), 5), 64)
        weights.append(w)
    return torch.stack(weights)


def test_code_weights_follow_the_released_rule_for_every_branch() -> None:
    source = torch.zeros(4, 2, 8, 8)
    latent = source.clone()
    latent[1, :, 0, 0] = 1.0  # mean 1/64: weight 63.99
    latent[2, :, :4] = 1.0  # mean 0.5: clamped up to 5
    latent[3] = 2.0  # mean 2: untouched
    torch.testing.assert_close(code_weights(latent, source), upstream_rule(latent, source))
    assert code_weights(latent, source)[1, 0, 0, 0] == pytest.approx(64, rel=1e-3)


def test_paper_weights_leave_unchanged_places_alone() -> None:
    source = torch.zeros(1, 1, 4, 4)
    latent = source.clone()
    latent[0, 0, 0, 0] = 1.0  # mean square 1/16
    weights = paper_weights(latent, source)
    assert weights[0, 0, 0, 0] == pytest.approx(16)
    assert weights[0, 0, 1:].eq(1).all()


def test_mask_weights_and_the_cases_without_a_source() -> None:
    like = torch.zeros(1, 2, 2, 2)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2, :2] = 1
    torch.testing.assert_close(mask_weights(mask, 4.0, like)[0, 0], torch.tensor([[4.0, 1.0], [1.0, 1.0]]))
    edit = ObjectiveConfig(region_weighting="omnigen_code")
    assert region_weights(edit, like, None, None) is None
    assert region_weights(edit, like, torch.zeros(1, 2, 4, 4), None) is None
    assert region_weights(ObjectiveConfig(region_weighting="mask"), like, None, None) is None


def test_loss_is_the_mean_square_of_each_sample() -> None:
    target = torch.zeros(2, 1, 2, 2)
    velocity = target.clone()
    velocity[1] = 2.0
    assert velocity_loss(velocity, target).tolist() == [0.0, 4.0]
    assert velocity_loss(velocity, target, torch.full_like(target, 0.5)).tolist() == [0.0, 2.0]


def draws(config: TimestepConfig, tokens: int = 4096, count: int = 4000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([draw_sigma(config, tokens, generator) for _ in range(count)])


def test_sigma_draws_have_their_distribution() -> None:
    uniform = draws(TimestepConfig(kind="uniform"))
    assert uniform.mean() == pytest.approx(0.5, abs=0.02)
    assert uniform.std() == pytest.approx(math.sqrt(1 / 12), abs=0.01)
    logit = torch.logit(draws(TimestepConfig(kind="logit_normal", mean=0.3, std=1.5)))
    assert logit.mean() == pytest.approx(0.3, abs=0.08)
    assert logit.std() == pytest.approx(1.5, abs=0.06)
    # A time shift moves the logit by log(shift).
    shifted = torch.logit(draws(TimestepConfig(kind="shifted", shift=3.0)))
    assert shifted.mean() == pytest.approx(math.log(3.0), abs=0.06)


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_dynamic_shift_is_the_schedulers(tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    scheduler.set_timesteps(sigmas=[0.7], mu=mu)
    shift = dynamic_shift(TimestepConfig(), tokens)
    assert shift * 0.7 / (1 + (shift - 1) * 0.7) == pytest.approx(scheduler.sigmas[0].item(), abs=1e-6)


@pytest.mark.parametrize("tokens", [1, 100, 256, 1024, 4096, 9000])
def test_training_and_sampling_shift_time_alike_to_the_bit(tokens: int) -> None:
    config = TimestepConfig(kind="dynamic_shift")
    shift = dynamic_shift(config, tokens)
    assert shift == math.exp(flux_mu(tokens)) == math.exp(0.5 + (1.15 - 0.5) / (4096 - 256) * (tokens - 256))
    own = TimestepConfig(base_tokens=10, base_mu=0.1, max_tokens=20, max_mu=0.3)
    assert dynamic_shift(own, 15) == pytest.approx(math.exp(0.2))
    drawn = draws(TimestepConfig(), count=50)
    shifted = draws(config, tokens, count=50)
    assert torch.equal(shifted, shift * drawn / (1 + (shift - 1) * drawn))
    assert torch.equal(draws(TimestepConfig(kind="shifted", shift=6.0), count=50), shift_sigmas(drawn, 6.0))


def test_slot_draws_depend_on_their_arguments_only() -> None:
    def draw(*key: object) -> float:
        return torch.rand((), generator=slot_generator(*key)).item()

    assert draw(1, 2, 3, "noise") == draw(1, 2, 3, "noise")
    others = {draw(1, 2, 3, "noise"), draw(2, 2, 3, "noise"), draw(1, 3, 3, "noise"), draw(1, 2, 4, "noise")}
    assert len(others | {draw(1, 2, 3, "sigma")}) == 5

"""The convention: sigma 1 is noise, velocity is noise - data."""

from __future__ import annotations

import pytest
import torch
from pack.samplers import flow


def test_noising_ends_are_data_and_noise_and_the_velocity_is_their_difference() -> None:
    data, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    sigma = torch.tensor([0.0, 0.25, 1.0])
    mixed = flow.noised(data, noise, sigma)
    torch.testing.assert_close(mixed[0], data[0])
    torch.testing.assert_close(mixed[1], 0.75 * data[1] + 0.25 * noise[1])
    torch.testing.assert_close(mixed[2], noise[2])
    velocity = flow.velocity_target(data, noise)
    torch.testing.assert_close(flow.denoised_from_velocity(mixed, velocity, sigma), data)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noising_is_the_sum_written_out_bit_for_bit(batch: int, dtype: torch.dtype) -> None:
    """A batch of one too: a run that goes on must see the numbers it saw before."""
    data, noise = torch.randn(2, batch, 4, 6, 6).to(dtype)
    sigma = torch.rand(batch)
    share = sigma.to(dtype).view(-1, 1, 1, 1)
    noisy = (1 - share) * data + share * noise
    assert torch.equal(flow.noised(data, noise, sigma), noisy)
    assert torch.equal(flow.denoised_from_velocity(noisy, noise, sigma), noisy - share * noise)


def test_one_point_of_the_path_by_hand() -> None:
    """Data (2, 4) and noise (10, 0) at a quarter of the way; the velocity is their difference."""
    x, denoised = torch.tensor([[4.0, 3.0]]), torch.tensor([[2.0, 4.0]])
    assert flow.velocity_from_denoised(x, denoised, 0.25).tolist() == [[8.0, -4.0]]


@pytest.mark.parametrize("sigma", [1.0, 0.3])
def test_the_velocity_leads_from_the_data(sigma: float) -> None:
    data, noise = torch.randn(2, 2, 4, 3, 3, dtype=torch.float64)
    x = (1 - sigma) * data + sigma * noise
    torch.testing.assert_close(flow.velocity_from_denoised(x, data, sigma), noise - data)


def test_each_batch_item_has_its_own_sigma() -> None:
    x, denoised = torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    velocity = flow.velocity_from_denoised(x, denoised, torch.tensor([0.25, 1.0]))
    assert velocity.flatten(1).mean(1).tolist() == [4.0, 1.0]

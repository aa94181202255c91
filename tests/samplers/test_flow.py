"""The convention: sigma 1 is noise, velocity is noise - data."""

from __future__ import annotations

import pytest
import torch
from pack.samplers import flow


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

"""The convention: sigma 1 is noise, velocity is noise - data."""

from __future__ import annotations

import pytest
import torch
from pack.samplers import flow


def test_one_point_of_the_path_by_hand() -> None:
    data, noise = torch.tensor([[2.0, 4.0]]), torch.tensor([[10.0, 0.0]])
    assert flow.add_noise(data, noise, 0.25).tolist() == [[4.0, 3.0]]
    assert flow.velocity_target(data, noise).tolist() == [[8.0, -4.0]]
    assert flow.denoised_from_velocity(
        torch.tensor([[4.0, 3.0]]), torch.tensor([[8.0, -4.0]]), 0.25
    ).tolist() == [[2.0, 4.0]]


@pytest.mark.parametrize("sigma", [1.0, 0.3, torch.tensor([0.9, 0.2])])
def test_denoised_and_velocity_are_inverse(sigma: float | torch.Tensor) -> None:
    x, velocity = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    denoised = flow.denoised_from_velocity(x, velocity, sigma)
    torch.testing.assert_close(flow.velocity_from_denoised(x, denoised, sigma), velocity)


def test_each_batch_item_has_its_own_sigma() -> None:
    data, noise = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    assert flow.add_noise(data, noise, torch.tensor([0.25, 1.0])).flatten(1).mean(1).tolist() == [0.25, 1.0]

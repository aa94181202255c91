"""Schedules against diffusers' scheduler, ComfyUI's and hand-written tables."""

from __future__ import annotations

import math
from pathlib import Path

import numpy
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from pack.samplers.schedules import SCHEDULES, ScheduleSettings, flux_mu, make_sigmas, shift_sigmas

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (4096, 1.15), (1024, 0.63), (8192, 1.8433333)])
def test_mu_by_hand(tokens: int, mu: float) -> None:
    assert flux_mu(tokens) == pytest.approx(mu, abs=1e-6)


def test_the_time_shift_is_written_once() -> None:
    folders = ("dit", "samplers", "training", "model_loaders", "nodes")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = [path.name for path in files if "(shift - 1) *" in path.read_text(encoding="utf-8")]
    assert found == ["schedules.py"]


def test_numbers_and_tensors_are_shifted_alike() -> None:
    numbers = [0.0, 0.1, 0.75, 1.0]
    tensor = torch.tensor(numbers, dtype=torch.float64)
    assert [shift_sigmas(number, 3.0) for number in numbers] == shift_sigmas(tensor, 3.0).tolist()
    assert shift_sigmas(0.75, 3.0) == 0.9


@pytest.mark.parametrize("tokens", [256, 1000, 4096])
@pytest.mark.parametrize("steps", [1, 8, 30])
def test_flux_dynamic_is_diffusers(tokens: int, steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = flux_mu(tokens)
    scheduler.set_timesteps(sigmas=numpy.linspace(1, 1 / steps, steps).tolist(), mu=mu)
    ours = make_sigmas("flux-dynamic", steps, ScheduleSettings(tokens=tokens))
    torch.testing.assert_close(ours, scheduler.sigmas, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_fixed_shift_is_diffusers(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=numpy.linspace(1, 1 / 12, 12).tolist())
    ours = make_sigmas("fixed", 12, ScheduleSettings(shift_value=shift))
    torch.testing.assert_close(ours, scheduler.sigmas, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["omnigen", "fixed"])
def test_the_last_sigma_is_exactly_zero_for_every_shift(name: str) -> None:
    for hundredths in range(1, 1001):
        settings = ScheduleSettings(shift_value=hundredths / 100)
        sigmas = make_sigmas(name, 3, settings)
        assert (float(sigmas[0]), float(sigmas[-1])) == (1.0, 0.0), settings.shift_value


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_omnigen_by_its_own_formula(factor: float) -> None:
    time = torch.linspace(0, 1, 51, dtype=torch.float64)
    published = time / (time + factor - factor * time)
    ours = make_sigmas("omnigen", 50, ScheduleSettings(shift_value=factor)).double()
    torch.testing.assert_close(1 - ours, published, atol=1e-7, rtol=0)


def test_linear_by_hand() -> None:
    assert make_sigmas("linear", 4, ScheduleSettings()).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.host
def test_beta_is_comfyui_without_its_rounding() -> None:
    import comfy.model_sampling
    import comfy.samplers

    sampling = comfy.model_sampling.ModelSamplingFlux()
    core = comfy.samplers.calculate_sigmas(sampling, "beta", 12)
    torch.testing.assert_close(make_sigmas("beta", 12, ScheduleSettings()), core, atol=5e-4, rtol=0)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 12, 1000])
def test_every_schedule_falls_from_one_to_zero(name: str, steps: int) -> None:
    sigmas = make_sigmas(name, steps, ScheduleSettings(tokens=500, shift_value=2.5))
    assert sigmas.dtype == torch.float32 and len(sigmas) == steps + 1
    assert sigmas[0] == 1 and sigmas[-1] == 0
    assert bool((sigmas[1:] < sigmas[:-1]).all())


def test_denoise_keeps_the_end_of_a_longer_schedule() -> None:
    whole = make_sigmas("beta", 20, ScheduleSettings())
    assert torch.equal(make_sigmas("beta", 12, ScheduleSettings(), denoise=0.6), whole[-13:])
    assert len(make_sigmas("beta", 12, ScheduleSettings(), denoise=0.0)) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"name": "karras"}, "unknown schedule 'karras'; choose one of flux-dynamic"),
        ({"denoise": 1.5}, "denoise must be between 0 and 1, got 1.5"),
        ({"denoise": math.nan}, "denoise must be between 0 and 1, got nan"),
    ],
)
def test_bad_requests_are_named(change: dict, message: str) -> None:
    request = {"name": "beta", "steps": 4, "settings": ScheduleSettings(), **change}
    with pytest.raises(ValueError, match=message):
        make_sigmas(**request)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_shift_value_is_named(value: float) -> None:
    with pytest.raises(ValueError, match="shift_value must be a number above 0"):
        ScheduleSettings(shift_value=value)
    with pytest.raises(ValueError, match="at least 1 noise token, got 0"):
        ScheduleSettings(tokens=0)

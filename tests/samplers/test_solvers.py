"""Solvers on fields with a known solution: exactness, order, and what they ask of the model."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from pack.bench import solvers as bench
from pack.samplers.schedules import ScheduleSettings, make_sigmas
from pack.samplers.solvers import KEEPS_HISTORY, SOLVERS, adams_weights
from torch import Tensor

UNEVEN = torch.tensor([1.0, 0.9, 0.7, 0.65, 0.3, 0.1, 0.0], dtype=torch.float64)


class CurvedField:
    """dx/dsigma = x * cos(2 sigma): x(sigma) = x(1) * exp((sin(2 sigma) - sin 2) / 2)."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.asked.append(float(sigma[0]))
        share = sigma.reshape(-1, 1)
        return x - share * x * torch.cos(2 * share)

    @staticmethod
    def end(start: Tensor) -> Tensor:
        return start * math.exp(-math.sin(2) / 2)


def uneven_sigmas(steps: int) -> Tensor:
    """Smoothly uneven, so that halving the steps halves every step."""
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return even + 0.12 * torch.sin(2 * math.pi * even)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 5])
def test_exact_on_a_straight_field(name: str, steps: int) -> None:
    data, noise = torch.randn(2, 16, 4, 4, dtype=torch.float64), torch.randn(2, 16, 4, 4, dtype=torch.float64)
    sigmas = uneven_sigmas(steps)
    end = SOLVERS[name](
        lambda x, sigma: x - sigma.reshape(-1, 1, 1, 1) * (noise - data), noise, sigmas, disable=True
    )
    torch.testing.assert_close(end, data, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("name", "order"), [("euler", 1), ("heun", 2), ("ab2", 2), ("adams-2", 2), ("adams-3", 3)]
)
def test_order_by_halving_the_step(name: str, order: int) -> None:
    start = torch.ones(1, 1, dtype=torch.float64)
    errors = [
        abs(
            float(
                SOLVERS[name](CurvedField(), start, uneven_sigmas(steps), disable=True)
                - CurvedField.end(start)
            )
        )
        for steps in (320, 640)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


def test_adams_weights_by_hand() -> None:
    assert adams_weights([0.0, -1.0], 0.0, 1.0) == pytest.approx([3 / 2, -1 / 2])
    assert adams_weights([1.0, 0.0], 0.0, 1.0) == pytest.approx([1 / 2, 1 / 2])
    assert adams_weights([1.0, 0.0, -1.0], 0.0, 1.0) == pytest.approx([5 / 12, 8 / 12, -1 / 12])
    # Uneven and falling: x**2 from 0.5 to 0.2 through its values at 0.5, 0.6 and 0.9.
    nodes = [0.5, 0.6, 0.9]
    area = sum(w * node**2 for w, node in zip(adams_weights(nodes, 0.5, 0.2), nodes, strict=True))
    assert area == pytest.approx((0.2**3 - 0.5**3) / 3)


@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_and_callbacks(name: str) -> None:
    field, heard = CurvedField(), []
    SOLVERS[name](field, torch.ones(3, 1, dtype=torch.float64), UNEVEN, callback=heard.append, disable=True)
    # Heun looks at both ends of every step but the last, where sigma is 0.
    assert len(field.asked) == (11 if name == "heun" else 6)
    assert min(field.asked) > 0
    assert [entry["i"] for entry in heard] == list(range(6))
    assert [float(entry["sigma"]) for entry in heard] == UNEVEN[:-1].tolist()
    assert all(entry["denoised"].shape == (3, 1) for entry in heard)


@pytest.mark.parametrize("name", SOLVERS)
def test_extra_arguments_reach_the_model(name: str) -> None:
    seen = []

    def model(x: Tensor, sigma: Tensor, seed: int, denoise_mask: Tensor | None) -> Tensor:
        seen.append((seed, denoise_mask))
        return x * 0

    SOLVERS[name](model, torch.ones(1, 2), UNEVEN, extra_args={"seed": 5, "denoise_mask": None}, disable=True)
    assert set(seen) == {(5, None)}


@pytest.mark.parametrize("name", SOLVERS)
def test_sigmas_that_do_not_fall_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="sigmas must fall from step to step"):
        SOLVERS[name](CurvedField(), torch.ones(1, 1), torch.tensor([1.0, 0.5, 0.5, 0.0]), disable=True)


@pytest.mark.parametrize("name", sorted(KEEPS_HISTORY))
def test_no_eta_with_history(name: str) -> None:
    with pytest.raises(ValueError, match=r"allows no eta, got 0.5; use euler or heun"):
        SOLVERS[name](CurvedField(), torch.ones(1, 1), UNEVEN, disable=True, eta=0.5)


@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_eta_keeps_the_noise_level(name: str, scale: float) -> None:
    """Data exactly 0: a point at sigma must be noise of deviation sigma, with fresh noise or without.

    For a model with noise of another deviation than 1, that many times sigma.
    """
    seen = {}

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        seen[float(sigma[0])] = float(x.std())
        return torch.zeros_like(x)

    start = scale * torch.randn(1, 200_000, generator=torch.Generator().manual_seed(0))
    SOLVERS[name](model, start, UNEVEN.float(), extra_args={}, disable=True, eta=1.0, s_noise=scale)
    for sigma, deviation in seen.items():
        assert deviation == pytest.approx(scale * sigma, rel=0.02)


class LoadedField(CurvedField):
    """Newer ComfyUI's samplers ask the loaded model for the deviation of its noise, 1 if it names none."""

    inner_model = SimpleNamespace(model_patcher=SimpleNamespace(get_model_object=lambda name: None))


@pytest.mark.host
def test_eta_is_comfyuis_ancestral_euler() -> None:
    import comfy.k_diffusion.sampling

    noises = [torch.randn(2, 8, dtype=torch.float64) for _ in range(6)]
    for eta in (0.0, 0.4, 1.0):
        ours, core = iter(noises), iter(noises)
        start, field = torch.randn(2, 8, dtype=torch.float64), LoadedField()
        mine = SOLVERS["euler"](
            field, start, UNEVEN, disable=True, eta=eta, noise_sampler=lambda *_, n=ours: next(n)
        )
        theirs = comfy.k_diffusion.sampling.sample_euler_ancestral_RF(
            field, start, UNEVEN, disable=True, eta=eta, noise_sampler=lambda *_, n=core: next(n)
        )
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


def test_eta_repeats_with_the_seed() -> None:
    def run(seed: int) -> Tensor:
        return SOLVERS["euler"](
            lambda x, sigma, seed: x * 0.5,
            torch.ones(1, 4),
            UNEVEN.float(),
            {"seed": seed},
            disable=True,
            eta=1.0,
        )

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    # The largest seed a node takes.
    assert not torch.equal(run(2**64 - 1), run(1))


def test_the_largest_seed_without_eta() -> None:
    def end(extra_args: dict) -> Tensor:
        return SOLVERS["euler"](
            lambda x, sigma, seed: x * 0.5, torch.ones(1, 4), UNEVEN.float(), extra_args, disable=True
        )

    assert torch.equal(end({"seed": 2**64 - 1}), end({"seed": 1}))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_noise_without_a_seed_leaves_the_global_generator_alone(eta: float) -> None:
    before = torch.random.get_rng_state()
    SOLVERS["euler"](lambda x, sigma: x * 0.5, torch.ones(1, 4), UNEVEN.float(), disable=True, eta=eta)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", ["edit", "many"])
@pytest.mark.parametrize("options", [{}, {"bf16": True, "wrong": 0.03}])
def test_twelve_adams_evaluations_beat_fifty_of_euler(name: str, options: dict) -> None:
    problem = bench.PROBLEMS[name](**options)
    reference = bench.solve(problem, "adams-2", "flux-dynamic", 500, seeds=3)
    adams = bench.decibels(bench.solve(problem, "adams-2", "beta", 12, seeds=3), reference)
    euler = bench.decibels(bench.solve(problem, "euler", "flux-dynamic", 50, seeds=3), reference)
    assert float((adams - euler).min()) > 0


def test_the_denoiser_of_the_benchmark_is_the_flows() -> None:
    """One Gaussian: dx/dsigma has the closed form x(sigma) = m (1 - sigma) + x(1) * spread(sigma)."""
    centre = torch.randn(1, 8, dtype=torch.float64)
    start = torch.randn(2, 8, dtype=torch.float64)
    problem = bench.GaussianMixture(centre, deviation=0.3)
    end = SOLVERS["adams-3"](
        problem, start, make_sigmas("beta", 400, ScheduleSettings()).double(), disable=True
    )
    torch.testing.assert_close(end, centre + 0.3 * start, atol=1e-6, rtol=0)

"""Solver and Schedule in the real host, on ComfyUI's own Flux class at tiny size."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_flux import tiny_conditioning, tiny_flux, tiny_latent

pytestmark = pytest.mark.host
NAMES = ["adams-2", "adams-3", "ab2", "euler", "heun"]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_flux()


def schedule(model: Any, latent: torch.Tensor, steps: int = 4, **options: Any) -> torch.Tensor:
    from pack.nodes.sampling import Schedule

    request = {"shift": "beta", "shift_value": 1.0, "denoise": 1.0, **options}
    return Schedule.execute(model, {"samples": latent}, steps, **request).args[0]


def sample(
    model: Any, solver: str, sigmas: torch.Tensor, latent: dict, seed: int = 3, **options: Any
) -> tuple:
    from comfy_extras.nodes_custom_sampler import BasicGuider, Noise_RandomNoise, SamplerCustomAdvanced
    from pack.nodes.sampling import Solver

    sampler = Solver.execute(solver, **options).args[0]
    guider = BasicGuider.execute(model, tiny_conditioning()).args[0]
    return SamplerCustomAdvanced.execute(Noise_RandomNoise(seed), guider, sampler, sigmas, latent).args


@pytest.mark.parametrize("name", NAMES)
def test_all_solvers_go_to_the_same_end(model: Any, name: str) -> None:
    """Coarse on purpose: random weights make a field that oscillates with sigma."""
    latent = tiny_latent(4, 4) * 0
    many = sample(model, "euler", schedule(model, latent, 200), {"samples": latent})[0]["samples"]
    few = sample(model, name, schedule(model, latent, 50), {"samples": latent})[0]["samples"]
    assert float((few - many).norm() / many.norm()) < 0.05


def test_euler_is_comfyuis_euler(model: Any) -> None:
    from comfy_extras.nodes_custom_sampler import BasicGuider, Noise_RandomNoise, SamplerCustomAdvanced

    import comfy.samplers

    latent = {"samples": tiny_latent() * 0}
    sigmas = schedule(model, latent["samples"])
    guider = BasicGuider.execute(model, tiny_conditioning()).args[0]
    core = SamplerCustomAdvanced.execute(
        Noise_RandomNoise(3), guider, comfy.samplers.sampler_object("euler"), sigmas, latent
    ).args[0]
    torch.testing.assert_close(
        sample(model, "euler", sigmas, latent)[0]["samples"], core["samples"], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_keeps_the_rest_of_the_latent(model: Any, name: str) -> None:
    latent = tiny_latent(8, 8)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    out = sample(model, name, schedule(model, latent), {"samples": latent, "noise_mask": mask})[0]["samples"]
    torch.testing.assert_close(out[..., :4], latent[..., :4], atol=1e-5, rtol=0)
    assert float((out[..., 4:] - latent[..., 4:]).abs().mean()) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_little_denoise_stays_near_the_latent(model: Any, name: str) -> None:
    latent = tiny_latent(8, 8)
    sigmas = schedule(model, latent, denoise=0.1, shift="linear")
    assert len(sigmas) == 5
    out = sample(model, name, sigmas, {"samples": latent})[0]["samples"]
    whole = sample(model, name, schedule(model, latent), {"samples": latent})[0]["samples"]
    assert float((out - latent).norm()) < 0.5 * float((whole - latent).norm())


@pytest.mark.parametrize("name", NAMES)
def test_both_outputs_previews_and_batches(model: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.utils
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod

    seen = []
    monkeypatch.setattr(latent_preview.args, "preview_method", LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(
        comfy.utils,
        "PROGRESS_BAR_HOOK",
        lambda value, total, preview, **_: seen.append((value, total, preview)),
    )
    latent = {"samples": tiny_latent(batch=2) * 0}
    final, denoised = sample(model, name, schedule(model, latent["samples"]), latent)
    assert final["samples"].shape == denoised["samples"].shape == (2, 16, 8, 12)
    # The bar counts 1 to 4 and carries a picture of 12 x 8 latent pixels.
    assert [entry[:2] for entry in seen if entry[2] is not None] == [(step, 4) for step in (1, 2, 3, 4)]
    assert seen[-1][2][1].size == (12, 8)


@pytest.mark.parametrize("name", NAMES)
def test_cancel_stops_and_the_next_run_is_untouched(model: Any, name: str) -> None:
    import comfy.model_management as management

    latent = {"samples": tiny_latent() * 0}
    sigmas = schedule(model, latent["samples"])
    before = sample(model, name, sigmas, latent)[0]["samples"]
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        sample(model, name, sigmas, latent)
    management.interrupt_current_processing(False)
    assert torch.equal(sample(model, name, sigmas, latent)[0]["samples"], before)


def test_eta_changes_the_picture_and_repeats(model: Any) -> None:
    latent = {"samples": tiny_latent() * 0}
    sigmas = schedule(model, latent["samples"])
    plain, noisy, again = (
        sample(model, "euler", sigmas, latent, eta=eta)[0]["samples"] for eta in (0.0, 0.7, 0.7)
    )
    assert torch.equal(noisy, again)
    assert not torch.allclose(plain, noisy, atol=0.01)


class EmptyPicture:
    """What a sampler is given for a MODEL that finds 0 behind any noise."""

    def __init__(self, model: Any) -> None:
        self.inner_model = SimpleNamespace(model_patcher=model)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize("scale", [None, 8.0])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_fresh_noise_is_as_strong_as_the_models(model: Any, name: str, scale: float | None) -> None:
    """Newer ComfyUI starts some models from stronger noise; theirs says so in `noise_scale`."""
    from pack.nodes.sampling import Solver

    model, strength = model.clone(), scale or 1.0
    if scale is not None:
        sampling = copy.deepcopy(model.get_model_object("model_sampling"))
        sampling.noise_scale = scale
        model.add_object_patch("model_sampling", sampling)
    solve = Solver.execute(name, eta=1.0).args[0].sampler_function
    start = strength * torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))
    end = solve(EmptyPicture(model), start, torch.tensor([1.0, 0.6, 0.5, 0.2]), disable=True)
    assert float(end.std()) == pytest.approx(strength * 0.2, rel=0.02)


def test_references_do_not_change_the_schedule_but_the_size_does(model: Any) -> None:
    from pack.samplers.schedules import ScheduleSettings, make_sigmas

    small, large = (
        schedule(model, torch.zeros(1, 16, side, side), 8, shift="flux-dynamic") for side in (32, 128)
    )
    assert torch.equal(small, make_sigmas("flux-dynamic", 8, ScheduleSettings(tokens=256)))
    assert torch.equal(large, make_sigmas("flux-dynamic", 8, ScheduleSettings(tokens=4096)))


def test_odd_latents_count_their_last_token(model: Any) -> None:
    from pack.nodes.sampling import count_tokens

    assert count_tokens(model, {"samples": torch.zeros(1, 16, 5, 7)}) == 12


def test_denoise_zero_gives_the_latent_back(model: Any) -> None:
    latent = tiny_latent()
    out = sample(model, "adams-2", schedule(model, latent, denoise=0.0), {"samples": latent})[0]["samples"]
    torch.testing.assert_close(out, latent)


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        (None, "no latent: connect the latent of the result"),
        ({}, "no latent: connect the latent of the result"),
        ({"samples": torch.full((1, 16, 4, 4), math.nan)}, "the latent contains NaN or infinite values"),
    ],
)
def test_a_latent_that_cannot_be_used_is_named(model: Any, latent: dict | None, message: str) -> None:
    from pack.nodes.sampling import Schedule

    with pytest.raises(ValueError, match=message):
        Schedule.execute(model, latent, 4, "beta", 1.0, 1.0)


def test_steps_below_one_are_named(model: Any) -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        schedule(model, tiny_latent(), 0)


def test_a_model_that_is_no_flow_is_named(model: Any) -> None:
    import comfy.model_sampling

    class Discrete(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    other = model.clone()
    other.add_object_patch("model_sampling", Discrete())
    with pytest.raises(
        ValueError, match=r"this schedule is for rectified-flow models .* samples with Discrete"
    ):
        schedule(other, tiny_latent())


@pytest.mark.parametrize(
    ("solver", "eta", "message"),
    [
        ("rk45", 0.0, "unknown solver 'rk45'; choose one of adams-2"),
        ("euler", 1.5, "eta must be between 0 and 1, got 1.5"),
        ("adams-2", 0.3, "adams-2 builds on earlier steps, which fresh noise .eta 0.3. would spoil"),
    ],
)
def test_solver_errors(solver: str, eta: float, message: str) -> None:
    from pack.nodes.sampling import Solver

    with pytest.raises(ValueError, match=message):
        Solver.execute(solver, eta)


def test_a_network_that_names_rows_and_columns_of_its_patch(model: Any) -> None:
    """As Wan's does; FLUX's is a plain 2."""
    patched = model.clone()

    class Named:
        patch_size = (1, 4, 4)

    patched.add_object_patch("diffusion_model", Named())
    for name in ("beta", "flux-dynamic"):
        # Twice the side with twice the patch: as many tokens.
        wide, plain = schedule(patched, tiny_latent(32, 48), shift=name), tiny_latent(16, 24)
        torch.testing.assert_close(wide, schedule(model, plain, shift=name), rtol=0, atol=0)

"""Solvers and schedules of the rectified flow as SAMPLER and SIGMAS."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import comfy.model_sampling
import comfy.samplers
from comfy_api.latest import io

from ..samplers.schedules import SCHEDULES, ScheduleSettings, make_sigmas
from ..samplers.solvers import KEEPS_HISTORY, SOLVERS
from .schema import node_input, node_schema
from .types import CATEGORY

DEFAULT_PATCH = 2


class Solver(io.ComfyNode):
    """Chooses how the flow is integrated."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniSolver",
            display_name="Solver",
            category=f"{CATEGORY}/sampling",
            description="A solver for SamplerCustomAdvanced. adams-2 needs far fewer steps than euler "
            "when Schedule's shift is beta.",
            search_aliases=["sampler", "adams", "fewer steps", "KSamplerSelect"],
            inputs=[
                node_input(
                    io.Combo,
                    "solver",
                    options=list(SOLVERS),
                    tooltip="adams-2: best at 8-16 steps. adams-3: best from 16 steps. euler: what models "
                    "were published with (28-50 steps). heun evaluates the model twice a step.",
                ),
                node_input(
                    io.Float,
                    "eta",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Fresh noise between steps, 0 = none. Only for euler and heun.",
                ),
            ],
            outputs=[io.Sampler.Output("sampler", display_name="sampler")],
        )

    @classmethod
    def execute(cls, solver: str, eta: float = 0.0) -> io.NodeOutput:
        check_solver(solver, eta)
        solve = partial(with_fresh_noise, SOLVERS[solver], eta=eta) if eta else SOLVERS[solver]
        return io.NodeOutput(comfy.samplers.KSAMPLER(solve))


class Schedule(io.ComfyNode):
    """Chooses where along the flow the steps are spent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniSchedule",
            display_name="Schedule",
            category=f"{CATEGORY}/sampling",
            description="Sigmas for SamplerCustomAdvanced, made for the size of the result: "
            "reference images do not change them.",
            search_aliases=["sigmas", "scheduler", "flux shift", "BasicScheduler", "ModelSamplingFlux"],
            inputs=[
                node_input(io.Model, "model", tooltip="The model that will be sampled (a rectified flow)."),
                node_input(io.Latent, "latent", tooltip="The latent of the result; its size sets the shift."),
                node_input(
                    io.Int, "steps", default=28, min=1, max=10000, tooltip="28 for euler, 12 for adams-2."
                ),
                node_input(
                    io.Combo,
                    "shift",
                    options=list(SCHEDULES),
                    tooltip="flux-dynamic: as FLUX.1 and DreamOmni2 were published. beta: for the adams "
                    "solvers. fixed: shift_value everywhere. linear: no shift. omnigen: OmniGen's own.",
                ),
                node_input(
                    io.Float,
                    "shift_value",
                    default=1.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    round=0.01,
                    tooltip="Only for fixed and omnigen. 1 = no shift; more: more steps near the noise.",
                ),
                node_input(
                    io.Float,
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.01,
                    tooltip="Below 1 the latent you wire into the sampler is kept in part, as in KSampler.",
                ),
            ],
            outputs=[io.Sigmas.Output("sigmas", display_name="sigmas")],
        )

    @classmethod
    def execute(
        cls, model: Any, latent: dict, steps: int, shift: str, shift_value: float, denoise: float
    ) -> io.NodeOutput:
        settings = ScheduleSettings(tokens=count_tokens(model, latent), shift_value=shift_value)
        return io.NodeOutput(make_sigmas(shift, steps, settings, denoise))


def with_fresh_noise(
    solve: Callable[..., Tensor], model: Any, x: Tensor, sigmas: Tensor, **options: Any
) -> Tensor:
    """`solve` with fresh noise as strong as the noise the model was trained with."""
    sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
    # Newer ComfyUI starts from noise of this deviation (HiDream-O1: 8); older ones always from 1.
    return solve(model, x, sigmas, s_noise=getattr(sampling, "noise_scale", 1.0), **options)


def check_solver(solver: str, eta: float) -> None:
    """Raise ValueError for an unknown solver or an eta it cannot use."""
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; choose one of {', '.join(SOLVERS)}.")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be between 0 and 1, got {eta}.")
    if eta and solver in KEEPS_HISTORY:
        raise ValueError(
            f"{solver} builds on earlier steps, which fresh noise (eta {eta}) would spoil. "
            "Set eta to 0, or choose euler or heun."
        )


def count_tokens(model: Any, latent: dict | None) -> int:
    """Tokens of the picture to be made; raises ValueError for a model or latent that has none."""
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, comfy.model_sampling.CONST):
        raise ValueError(
            f"this schedule is for rectified-flow models (FLUX.1 Kontext, OmniGen, DreamOmni); the model "
            f"samples with {type(sampling).__name__}. Use ComfyUI's BasicScheduler for it."
        )
    samples = latent.get("samples") if latent else None
    if samples is None or not isinstance(samples, Tensor) or samples.ndim < 4:
        raise ValueError("no latent: connect the latent of the result, such as EmptySD3LatentImage's.")
    if not bool(torch.isfinite(samples).all()):
        raise ValueError(
            "the latent contains NaN or infinite values. Look at the node that makes it; a VAE encoding in "
            "half precision is the usual cause."
        )
    patch = getattr(model.get_model_object("diffusion_model"), "patch_size", DEFAULT_PATCH)
    # Networks of video name the patch's frames, rows and columns.
    patch = int(patch[-1] if isinstance(patch, tuple | list) else patch)
    height, width = samples.shape[-2:]
    return max(1, -(-height // patch) * -(-width // patch))


NODES = [Solver, Schedule]

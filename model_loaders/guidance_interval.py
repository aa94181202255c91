"""Guidance between two sigmas: outside of them only the positive branch is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import comfy.model_sampling
import comfy.patcher_extension
import comfy.samplers

KEY = "dreamomni_guidance_interval"
SIGMA_SLACK = 1e-6
"""Sigmas come in float32, where 0.3 is a little more and the first of a shifted schedule may pass 1."""


def limit_guidance(model: Any, start_sigma: float, end_sigma: float) -> Any:
    """A clone of the ModelPatcher whose guidance works at start_sigma >= sigma > end_sigma.

    Elsewhere every guider gives its positive prediction. ValueError for an empty interval and for a model
    whose sigmas are not noise shares.
    """
    if not 0 <= end_sigma < start_sigma <= 1:
        raise ValueError(
            f"guidance from sigma {start_sigma} down to {end_sigma} is empty or outside 0..1: "
            "start_sigma must be the larger one"
        )
    check_flow(model)

    def predict(
        executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None = None
    ) -> Tensor:
        sigma = float(timestep.max())
        if sigma > start_sigma + SIGMA_SLACK:
            refuse_easycache(model_options)
        if start_sigma + SIGMA_SLACK >= sigma > end_sigma + SIGMA_SLACK:
            return executor(x, timestep, model_options, seed)
        return without_guidance(executor)(x, timestep, {**model_options, KEY: True}, seed)

    patched = model.clone()
    kinds = comfy.patcher_extension.WrappersMP
    for kind, wrapper in ((kinds.PREDICT_NOISE, predict), (kinds.CALC_COND_BATCH, one_branch)):
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched


def refuse_easycache(model_options: dict[str, Any]) -> None:
    """Raise ValueError under the stock EasyCache, which skips steps of a branch it has never seen.

    It would end in a KeyError in the middle of the run. LazyCache uses its option too, and gets along.
    """
    cache = model_options.get("transformer_options", {}).get("easycache")
    if type(cache).__name__ == "EasyCacheHolder":
        raise ValueError(
            "EasyCache needs the negative from the first step on. Set start_sigma to 1, use LazyCache, or "
            "take one of the two out."
        )


def without_guidance(executor: Any) -> Callable[..., Tensor]:
    """The rest of the wrappers, and behind them the positive prediction instead of the guider's formula.

    Not the formula with equal branches: Perp-Neg's divides by their difference.
    """
    guider = executor.class_obj
    positive = positive_of(guider)

    def predict(
        x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None = None
    ) -> Tensor:
        return comfy.samplers.sampling_function(
            guider.inner_model, x, timestep, positive, positive, 1.0, model_options=model_options, seed=seed
        )

    rest = executor.wrappers[executor.idx + 1 :]
    return comfy.patcher_extension.WrapperExecutor.new_class_executor(predict, guider, rest).execute


def one_branch(
    executor: Any,
    host_model: Any,
    conds: list[list[dict] | None],
    x: Tensor,
    timestep: Tensor,
    model_options: dict[str, Any],
) -> list[Tensor]:
    """Outside the interval one evaluation serves both branches; some samplers and patches ask for two."""
    wanted = [cond for cond in conds if cond is not None]
    if KEY not in model_options or not wanted:
        return executor(host_model, conds, x, timestep, model_options)
    (positive,) = executor(host_model, wanted[:1], x, timestep, model_options)
    return [positive for _ in conds]


def positive_of(guider: Any) -> list[dict]:
    """The conditioning a guider leads to; ValueError for one that calls none of its own so."""
    conds = getattr(guider, "conds", None) or {}
    if not conds.get("positive"):
        raise ValueError(
            f"{type(guider).__name__} names no positive conditioning (it has {', '.join(conds) or 'none'}), "
            "so Guidance Interval cannot tell which one to use alone. Use KSampler, CFGGuider or "
            "DualCFGGuider, or take the node out."
        )
    return conds["positive"]


def check_flow(model: Any) -> None:
    """Raise ValueError unless the model's sigma is its share of noise, between 0 and 1."""
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, comfy.model_sampling.CONST):
        raise ValueError(
            "Guidance Interval is for rectified-flow models (FLUX.1 Kontext, OmniGen, DreamOmni), whose "
            f"sigmas are shares of noise from 1 to 0; this MODEL ({type(model.model).__name__}) has sigmas "
            f"up to {float(sampling.sigma_max):.4g}, and would lose its guidance above 1. Take the node out."
        )

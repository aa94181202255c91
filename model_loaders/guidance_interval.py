"""Guidance between two sigmas: outside of them only the positive branch is evaluated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import comfy.patcher_extension

KEY = "dreamomni_guidance_interval"
NUM_DUAL_BRANCHES = 3


def limit_guidance(model: Any, start_sigma: float, end_sigma: float) -> Any:
    """A clone of the ModelPatcher whose guidance works at start_sigma >= sigma > end_sigma.

    The other branches get the positive prediction there, so every guidance formula of differences returns it.
    """
    if not 0 <= end_sigma < start_sigma <= 1:
        raise ValueError(
            f"guidance from sigma {start_sigma} down to {end_sigma} is empty or outside 0..1: "
            "start_sigma must be the larger one"
        )

    def branches(
        executor: Any,
        host_model: Any,
        conds: list[list[dict] | None],
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> list[Tensor]:
        if start_sigma >= float(timestep.max()) > end_sigma or len(conds) < 2:
            return executor(host_model, conds, x, timestep, model_options)
        # ComfyUI's own order: (positive, negative), and (negative, middle, positive) in DualCFGGuider.
        place = len(conds) - 1 if len(conds) == NUM_DUAL_BRANCHES else 0
        (positive,) = executor(host_model, [conds[place]], x, timestep, model_options)
        return [positive for _ in conds]

    patched = model.clone()
    kind = comfy.patcher_extension.WrappersMP.CALC_COND_BATCH
    patched.remove_wrappers_with_key(kind, KEY)
    patched.add_wrapper_with_key(kind, KEY, branches)
    return patched

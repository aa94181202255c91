"""References of an earlier step instead of the present one, for weights trained with full attention.

An approximation without training: some steps run in full and note the references' keys and values, the others
read them. Nothing outlives a run, because what is noted holds that run's noise and text.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import comfy.model_management as management

from ..dit.positions import latent_grid
from ..dit.reference_cache import OVERRIDE, NotNotedError, StepReader, StepRecorder
from .out_of_memory import raise_unless_out_of_memory
from .reference_reading import without_references
from .run_references import inference_dtype, num_values
from .stock_notes import StepNotes, blocks_of, branch_of

log = logging.getLogger("dreamomni")
FULL_NOTE = (
    "not enough GPU memory to keep the references: the other steps of this run are computed in full. "
    "Fewer or smaller references need less."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StockSettings:
    """Which steps run in full."""

    warm_up: int = 6
    """Steps at the start, where the picture is laid out; chosen, not published."""
    refresh_every: int = 8
    """Afterwards every n-th step."""

    def __post_init__(self) -> None:
        if self.warm_up < 1:
            raise ValueError(f"stock mode needs at least 1 warm-up step, got {self.warm_up}")
        if self.refresh_every < 1:
            raise ValueError(f"refresh_every must be at least 1, got {self.refresh_every}")

    def is_full(self, step: int) -> bool:
        """Whether a step computes its references."""
        return step < self.warm_up or (step - self.warm_up + 1) % self.refresh_every == 0


class StockCache:
    """The notes of one run, and the calls of the network that make or read them."""

    def __init__(
        self, network: Any, settings: StockSettings, report: Callable[[str], None] = log.info
    ) -> None:
        self.network, self.settings, self.report = network, settings, report
        self.notes = StepNotes(blocks_of(network))
        self.gave_up = False
        """Whether the notes of this run did not fit."""

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Keep nothing between runs, whatever ends them."""
        self.notes.kept.clear()
        self.gave_up = False
        try:
            return executor(*args, **kwargs)
        finally:
            self.notes.kept.clear()

    def prepare_sampling(
        self, executor: Any, model: Any, noise_shape: Sequence[int], conds: dict, *args: Any, **kwargs: Any
    ) -> Any:
        """Have room left for the notes when the model is loaded."""
        needed = noted_bytes(model, self.network, conds, noise_shape[0])
        return executor(model, shape_with_room(model, noise_shape, needed), conds, *args, **kwargs)

    def diffusion_model(
        self,
        executor: Callable[..., Tensor],
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        guidance: Tensor | None = None,
        ref_latents: Sequence[Tensor] | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **more: Any,
    ) -> Tensor:
        """One call of the network, in full or with noted references."""
        options = transformer_options or {}
        inputs = (x, timestep, context, y, guidance, ref_latents, control)
        if not ref_latents or self.gave_up:
            return executor(*inputs, options, **more)
        try:
            return executor(*inputs, self.with_references(list(ref_latents), x, options), **more)
        except NotNotedError:
            self.notes.forget(branch_of(options))
        except RuntimeError as error:
            raise_unless_out_of_memory(error)
            self.gave_up = True
        # Not in the handlers: the error holds on to what the call had made.
        if self.gave_up:
            self.notes.kept.clear()
            management.soft_empty_cache()
            self.report(FULL_NOTE)
        return self.diffusion_model(executor, *inputs, options, **more)

    def with_references(self, latents: list[Tensor], x: Tensor, options: dict[str, Any]) -> dict[str, Any]:
        """The transformer options of this call: noting, or reading and cutting."""
        inner, branch = options.get(OVERRIDE), branch_of(options)
        noted, step = self.notes.find(branch, latents), step_of(options)
        if noted is None or step is None or self.settings.is_full(step):
            grids = [latent_grid(*latent.shape[-2:], self.network.patch_size) for latent in latents]
            fresh = self.notes.begin(branch, latents)
            return {**options, OVERRIDE: StepRecorder(sum(g.num_tokens for g in grids), fresh.layers, inner)}
        first = latent_grid(*x.shape[-2:], self.network.patch_size).num_tokens
        patches = options.get("patches", {})
        after = [*patches.get("post_input", []), lambda tokens: without_references(tokens, first)]
        reader = StepReader(noted.layers, inner)
        return {**options, OVERRIDE: reader, "patches": {**patches, "post_input": after}}


def step_of(options: dict[str, Any]) -> int | None:
    """Number of the step from the run's sigmas, or None where the host does not tell."""
    sigma, sigmas = options.get("sigmas"), options.get("sample_sigmas")
    if sigma is None or sigmas is None:
        return None
    return int((sigmas.to(sigma) > sigma.max() * (1 + 1e-5)).sum())


def noted_bytes(model: Any, network: Any, conds: dict[str, Any], batch: int) -> int:
    """Memory that the references of all conditionings leave, for `batch` pictures."""
    latents = [
        latent
        for group in conds.values()
        for cond in group
        for latent in cond.get("reference_latents") or []
        if latent.ndim == 4
    ]
    return batch * inference_dtype(model).itemsize * sum(num_values(network, latent) for latent in latents)


def shape_with_room(model: Any, shape: Sequence[int], num_bytes: int) -> list[int]:
    """The noise shape (B, C, h, w) made higher, so that ComfyUI asks for `num_bytes` more.

    The shape is only estimated from, and all that a wrapper can change; the estimate grows with the height.
    """

    def higher(rows: int) -> list[int]:
        return [*shape[:-2], shape[-2] + rows, shape[-1]]

    row = model.memory_required(higher(1)) - model.memory_required(higher(0))
    return higher(math.ceil(num_bytes / row))

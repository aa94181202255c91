"""Feature Mixing on any FLUX.1 MODEL: two wrappers on a clone.

One checks what a run is started with, the other hands every call of the network the attention of
`dit.feature_mixing`. ComfyUI computes conditionings together or apart, but always for the whole batch of
latents, so pairs are never torn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import comfy.ldm.flux.model
from comfy.patcher_extension import WrappersMP

from ..dit.feature_mixing import PairAttention
from ..dit.positions import latent_grid
from ..dit.reference_cache import OVERRIDE
from .paired_inputs import PAIR, TEXT_LENGTHS

KEY = "dreamomni_feature_mixing"
NEVER_REACHED = (
    "Feature Mixing did nothing: this MODEL never asked for another attention, so another node or pack has "
    "put its own in place (a SageAttention or speed-up patch, for example). Take that node out, or update it."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MixingRange:
    """When the target sees its source, as shares of the way from noise to picture."""

    start_percent: float = 0.0
    """Chosen, not published: all steps."""
    end_percent: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start_percent <= self.end_percent <= 1:
            raise ValueError(
                f"start_percent {self.start_percent} and end_percent {self.end_percent} must lie between 0 "
                "and 1, the end not before the start"
            )

    def holds(self, sampling: Any, sigma: float) -> bool:
        """Whether mixing is on at a sigma of a model's sampling."""
        if self.start_percent == self.end_percent:
            return False
        start, end = (float(sampling.percent_to_sigma(at)) for at in (self.start_percent, self.end_percent))
        # A sampler may begin a rounding error above the model's own first sigma.
        return (self.start_percent == 0 or start >= sigma) and sigma > end


@dataclass
class FeatureMixing:
    """What is hung into a MODEL; remembers of a run only whether its attention was asked for."""

    network: Any
    when: MixingRange
    is_wanted: bool = False
    is_reached: bool = False

    def outer_sample(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A run: refuse what is no batch of pairs, and a run in which nothing was mixed."""
        check_run(noise, getattr(executor.class_obj, "conds", {}))
        self.is_wanted = self.is_reached = False
        result = executor(noise, *args, **kwargs)
        if self.is_wanted and not self.is_reached:
            raise ValueError(NEVER_REACHED)
        return result

    def apply_model(
        self,
        executor: Any,
        x: Tensor,
        sigma: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **more: Any,
    ) -> Tensor:
        """One call of the network."""
        options = transformer_options or {}
        lengths = more.pop(TEXT_LENGTHS, None)
        is_mixing = self.when.holds(executor.class_obj.model_sampling, float(sigma.max()))
        if not is_mixing and lengths is None:
            return executor(x, sigma, c_concat, c_crossattn, control, options, **more)
        pairs = PairAttention(
            num_noise=latent_grid(*x.shape[-2:], self.network.patch_size).num_tokens,
            is_mixing=is_mixing,
            text_lengths=lengths,
            inner=options.get(OVERRIDE),
        )
        options = {**options, OVERRIDE: pairs}
        result = executor(x, sigma, c_concat, c_crossattn, control, options, **more)
        self.is_wanted = True
        self.is_reached = self.is_reached or pairs.was_reached
        return result


def check_run(noise: Tensor, conds: dict[str, list[dict[str, Any]]]) -> None:
    """Raise ValueError unless pairs are sampled, by a conditioning of pairs, without reference pictures."""
    if len(noise) % 2:
        raise ValueError(
            f"{len(noise)} picture(s) are sampled with the model of Feature Mixing, which needs pairs. "
            "Connect the latent that Feature Mixing gives."
        )
    every = [condition for group in conds.values() for condition in group]
    if not any(condition.get(PAIR) for condition in every):
        raise ValueError(
            "no conditioning of Feature Mixing reaches the sampler, so source and target would have the same "
            "prompt. Connect the conditioning that Feature Mixing gives as positive."
        )
    if any(condition.get("reference_latents") for condition in every):
        raise ValueError(
            "Feature Mixing makes pictures from words; the conditioning holds reference pictures. Take out "
            "Reference Conditioning or ReferenceLatent, or take out Feature Mixing."
        )


def text_to_image_network(model: Any) -> Any:
    """The FLUX.1 network inside a ModelPatcher; raises ValueError for anything else, saying what it is."""
    network = model.get_model_object("diffusion_model")
    network = getattr(network, "_orig_mod", network)  # torch.compile's shell
    got = f"{type(model.model).__name__} ({type(network).__name__})"
    if "nunchaku" in type(network).__module__.lower():
        got = "a nunchaku Flux, whose attention other nodes cannot reach"
    elif isinstance(network, comfy.ldm.flux.model.Flux):
        axes = len(network.params.axes_dim)
        if axes == 3:
            return network
        got = f"a Flux with {axes} position axes (FLUX.2)"
    raise ValueError(
        f"Feature Mixing is for FLUX.1; this MODEL is {got}. Load FLUX.1 dev or schnell with Load Diffusion "
        "Model or a GGUF loader."
    )


def attach_feature_mixing(model: Any, when: MixingRange) -> Any:
    """A clone of the ModelPatcher that samples pairs; replaces an earlier range.

    Raises ValueError for anything but FLUX.1.
    """
    mixing = FeatureMixing(text_to_image_network(model), when)
    patched = model.clone()
    wrappers: list[tuple[str, Callable[..., Any]]] = [
        (WrappersMP.OUTER_SAMPLE, mixing.outer_sample),
        (WrappersMP.APPLY_MODEL, mixing.apply_model),
    ]
    for kind, wrapper in wrappers:
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched

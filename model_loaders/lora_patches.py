"""A LoRA's weights -> ComfyUI's patches, and what ComfyUI leaves of them.

Names it does not read are given back; parts of PEFT it has no reader for are added or refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

import comfy.lora

BIAS = ".lora_B.bias"
MAGNITUDE = ".lora_magnitude_vector"
TEXT_ENCODER_ROOTS = ("lora_te", "text_encoder", "te1.", "te2.")


class ReadNames(dict[str, Tensor]):
    """A LoRA's weights that note which of them were taken out, whatever the reader is."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__(weights)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """The weight, noted as read; `default` where there is none."""
        if name in self:
            self.read.add(name)
        return super().get(name, default)


def read_patches(
    weights: Mapping[str, Tensor], places: Mapping[str, Any]
) -> tuple[dict[Any, Any], list[str]]:
    """ComfyUI's patches of the weights, and the names it did not read; without text encoders' names."""
    noted = ReadNames(weights)
    patches = comfy.lora.load_lora(noted, places, log_missing=False)
    if patches and not noted.read:  # a host that copies the weights first: only the names can tell
        return patches, unmatched_names(weights, places)
    return patches, [name for name in weights if name not in noted.read | text_encoder_names(weights)]


def refuse_dora(name: str, weights: Iterable[str]) -> None:
    """Raise ValueError for a LoRA that PEFT trained with DoRA.

    Its magnitudes divide by the norm of each output row; ComfyUI's `dora_scale` by another, so that renaming
    them would give other pictures than the trainer saw.
    """
    vectors = [key for key in weights if MAGNITUDE in key]
    if vectors:
        raise ValueError(
            f"the LoRA {name} was trained by PEFT with DoRA ({len(vectors)} keys such as {vectors[0]}), "
            "which ComfyUI cannot apply. Merge it into its base model with PEFT (merge_and_unload) and load "
            "that, or train it again with use_dora=False."
        )


def bias_patches(
    name: str, weights: Mapping[str, Tensor], places: Mapping[str, Any], present: Collection[str]
) -> tuple[dict[Any, Any], set[str]]:
    """Patches of the biases that PEFT's `lora_bias` trains, and the names they were made of.

    `present` are the MODEL's weights. PEFT scales this bias like the matrices, ComfyUI's own `diff_b` is not
    scaled and does not reach a part of a fused layer. ValueError where the MODEL's layer has no bias.
    """
    patches: dict[Any, Any] = {}
    used: set[str] = set()
    for key, bias in weights.items():
        module = key.removesuffix(BIAS)
        if module == key or module not in places or f"{module}.lora_A.weight" not in weights:
            continue
        place = places[module]
        weight, *part = (place,) if isinstance(place, str) else place
        target = f"{weight.removesuffix('.weight')}.bias"
        if target not in present:
            raise ValueError(
                f"the LoRA {name} has a bias for {module} (PEFT's lora_bias), but that layer has none in "
                "this MODEL. Train it again with lora_bias=False."
            )
        alpha = weights.get(f"{module}.alpha")
        scaling = 1.0 if alpha is None else alpha.item() / len(weights[f"{module}.lora_A.weight"])
        patches[(target, *part) if part else target] = ("diff", (bias * scaling,))
        used.add(key)
    return patches, used


def unmatched_names(names: Iterable[str], places: Mapping[str, Any]) -> list[str]:
    """Names of which no beginning, up to a dot, is a module of the model; without text encoders' names."""
    return [name for name in names if not (in_model(name, places) or name.startswith(TEXT_ENCODER_ROOTS))]


def text_encoder_names(names: Iterable[str]) -> set[str]:
    """Those of the names that are a text encoder's, which no MODEL has."""
    return {name for name in names if name.startswith(TEXT_ENCODER_ROOTS)}


def in_model(name: str, places: Mapping[str, Any]) -> bool:
    """Whether a LoRA weight's name begins with a module of the model."""
    parts = name.split(".")
    return any(".".join(parts[:end]) in places for end in range(len(parts) - 1, 0, -1))

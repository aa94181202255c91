"""Two prompts and an empty latent as a batch of pairs: source, target, source, target ...

ComfyUI repeats a conditioning to the batch it samples, so one pair of prompts serves any number of pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from comfy.conds import CONDConstant
from comfy.utils import repeat_to_batch_size

Conditioning = list[list[Any]]
PAIR = "dreamomni_pair"
"""Marks a conditioning whose rows are (source, target)."""
TEXT_LENGTHS = "dreamomni_text_lengths"
"""How the lengths of two different texts reach the network's call."""
POOLED = "pooled_output"


def pair_conditioning(source: Conditioning, target: Conditioning) -> Conditioning:
    """One conditioning of two rows, the source's prompt and the target's.

    Raises ValueError for several prompts in one input, other text encoders and other settings.
    """
    (source_text, source_more), (target_text, target_more) = (
        one_prompt(source, "source"),
        one_prompt(target, "target"),
    )
    check_settings(source_more, target_more)
    texts = (source_text, target_text)
    pooled = tuple(pooled_of(more, name) for more, name in ((source_more, "source"), (target_more, "target")))
    for one, other in (texts, pooled):
        if one.shape[-1] != other.shape[-1]:
            raise ValueError(
                f"the source's prompt has {one.shape[-1]} channels, the target's {other.shape[-1]}: they "
                "come from different text encoders. Encode both with the same CLIP."
            )
    lengths = (source_text.shape[1], target_text.shape[1])
    more = {**source_more, POOLED: torch.cat(pooled), PAIR: True}
    if lengths[0] != lengths[1]:
        more["model_conds"] = {**source_more.get("model_conds", {}), TEXT_LENGTHS: CONDConstant(lengths)}
    return [[pad_sequence([text[0] for text in texts], batch_first=True), more]]


def one_prompt(conditioning: Conditioning, name: str) -> tuple[Tensor, dict[str, Any]]:
    """The text (1 L C) and the settings of a conditioning; ValueError if there is not exactly one."""
    if len(conditioning) != 1:
        raise ValueError(
            f"{name} holds {len(conditioning)} conditionings, 1 is allowed; a node like 'Conditioning "
            "(Combine)' joined them. Connect one CLIP Text Encode, and combine after Feature Mixing."
        )
    text, more = conditioning[0]
    if len(text) != 1:
        raise ValueError(
            f"{name} is a batch of {len(text)} prompts, 1 is allowed. Connect one CLIP Text Encode; for "
            "several pairs of one prompt raise batch_size of the empty latent."
        )
    return text, more


def pooled_of(more: dict[str, Any], name: str) -> Tensor:
    """The pooled vector (1 C) of a conditioning; ValueError where there is none."""
    pooled = more.get(POOLED)
    if pooled is None:
        raise ValueError(
            f"{name} has no pooled text vector, which FLUX.1 needs. Encode it with CLIP Text Encode and the "
            "text encoders of FLUX.1 (DualCLIPLoader, type flux)."
        )
    return pooled


def check_settings(source: dict[str, Any], target: dict[str, Any]) -> None:
    """Raise ValueError where the two conditionings ask for different things beside their words."""
    for key in sorted(({*source} | {*target}) - {POOLED}):
        if key in source and key in target and agree(source[key], target[key]):
            continue
        raise ValueError(
            f"source and target differ in {key!r} (source: {shown(source, key)}, target: "
            f"{shown(target, key)}), but both pictures of a pair are sampled with the same settings. Set it "
            "on the conditioning that Feature Mixing gives."
        )


def shown(more: dict[str, Any], key: str) -> str:
    """A setting for an error message."""
    value = more.get(key, "not set")
    return str(value) if isinstance(value, str | int | float) else type(value).__name__


def agree(one: Any, other: Any) -> bool:
    """Whether two settings are the same, tensors by value."""
    if one is other:
        return True
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(agree, one, other))
    return bool(one == other)


def pair_latent(latent: dict[str, Any] | None) -> dict[str, Any]:
    """A latent of n pictures as one of 2n, each twice; ValueError for what is no picture."""
    samples = latent.get("samples") if latent else None
    if latent is None or not isinstance(samples, Tensor) or samples.ndim != 4:
        got = f"one of shape {tuple(samples.shape)}" if isinstance(samples, Tensor) else "none"
        raise ValueError(
            f"Feature Mixing needs a latent of pictures (n, 16, height, width), got {got}. Connect "
            "EmptySD3LatentImage."
        )
    paired = {**latent, "samples": samples.repeat_interleave(2, dim=0)}
    if (mask := latent.get("noise_mask")) is not None:
        paired["noise_mask"] = repeat_to_batch_size(mask, len(samples)).repeat_interleave(2, dim=0)
    if (numbers := latent.get("batch_index")) is not None:
        # The noise of pair n stays the same whether it is made alone or with others.
        paired["batch_index"] = [2 * number + branch for number in numbers for branch in (0, 1)]
    return paired

"""Hidden states of a vision language model as the condition of DreamOmni's transformer.

B requests, L tokens, D the VLM's width. Which layer, which template and how many tokens DreamOmni used is not
published: the values here are chosen, not published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .chat import TEMPLATES

# Chosen, not published: the last layer behind the final norm, and room for five pictures of one megapixel.
DEFAULT_LAYER = -1
DEFAULT_MAX_TOKENS = 8192
DEFAULT_TEMPLATE = TEMPLATES[0]


@dataclass(frozen=True, slots=True, eq=False)
class VLMFeatures:
    """What the VLM made of prompt and pictures.

    tokens (B, L, D); attention_mask (B, L) bool, True for real tokens; image_index (B, L) int64, 0 for text
    and n for the tokens of picture n.
    """

    tokens: Tensor
    attention_mask: Tensor
    image_index: Tensor


def encode(model: Any, inputs: dict[str, Tensor], layer: int = DEFAULT_LAYER) -> Tensor:
    """Hidden states (B, L, D) behind `layer` blocks: 0 the embeddings, -1 the last behind the final norm.

    The same entry as `hidden_states[layer]` of transformers, without keeping the others.
    """
    blocks = model.model.language_model.layers
    index = layer_index(layer, len(blocks))
    kept: list[Tensor] = []
    hook = None
    if index < len(blocks):
        hook = blocks[index].register_forward_pre_hook(keep_input(kept), with_kwargs=True)
    try:
        output = model.model(**inputs, use_cache=False)
    finally:
        if hook is not None:
            hook.remove()
    states = kept[0] if kept else output.last_hidden_state
    if not bool(torch.isfinite(states).all()):
        raise ValueError(
            "the VLM's hidden states are not finite: its numbers overflow in this precision. "
            "Choose bf16, fp32 or auto in the VLM loader."
        )
    return states


def layer_index(layer: int, num_blocks: int) -> int:
    """`layer` counted from the embeddings; raises ValueError for a layer the model does not have."""
    if not -num_blocks - 1 <= layer <= num_blocks:
        raise ValueError(
            f"layer {layer} does not exist; this VLM has {num_blocks} blocks, so layers from "
            f"{-num_blocks - 1} (the embeddings) to -1 (the last) or 0 to {num_blocks} can be used."
        )
    return layer % (num_blocks + 1)


def keep_input(kept: list[Tensor]) -> Any:
    """A forward pre-hook that stores the block's input states in `kept`."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])

    return hook


def check_length(num_tokens: int, num_images: int, max_tokens: int) -> None:
    """Raise ValueError when a request is longer than the limit; cutting it would tear a picture apart."""
    if num_tokens > max_tokens:
        raise ValueError(
            f"prompt and {num_images} pictures make {num_tokens} tokens, over the limit of {max_tokens}. "
            "Raise max_tokens, shorten the prompt, or use smaller pictures."
        )


def join_features(features: Sequence[VLMFeatures]) -> VLMFeatures:
    """Requests of different lengths as one batch, padded with zeros on the right."""
    return VLMFeatures(
        tokens=pad_sequence([row for item in features for row in item.tokens], batch_first=True),
        attention_mask=pad_sequence(
            [row for item in features for row in item.attention_mask], batch_first=True
        ),
        image_index=pad_sequence([row for item in features for row in item.image_index], batch_first=True),
    )

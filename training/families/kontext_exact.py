"""FLUX with the exact reference mask: references see only themselves and take one pass without gradient.

B batch, L tokens, D channels. First every reference goes alone through the base network, whose keys and
values are kept block by block; then target and text go through with those keys and values beside their own.
The result equals one masked pass over everything in which the LoRA acts on target and text only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from ...dit.reference_branch import REFERENCE_GUIDANCE, REFERENCE_POOLED, REFERENCE_SIGMA
from ..adapters import lora_off


@dataclass(slots=True)
class KeptReferences:
    """Per attention layer the keys and values (B, L, heads, D) of the references, one after another."""

    keys: dict[int, list[Tensor]] = field(default_factory=dict)
    values: dict[int, list[Tensor]] = field(default_factory=dict)
    offload: bool = False
    """Keep them in host memory and copy each layer's when it is needed."""

    def add(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep what one reference left in a layer."""
        if self.offload:
            key, value = key.cpu(), value.cpu()
        self.keys.setdefault(layer, []).append(key)
        self.values.setdefault(layer, []).append(value)


class ReferenceProcessor:
    """diffusers' FLUX attention that can write a reference's keys and values, or read all of them.

    It holds nothing itself: what is kept comes with the call, so a recomputed block finds the same.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        kept: KeptReferences | None = None,
        writes: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention output(s) of diffusers' FluxAttention."""
        query, key, value = projections(attn, hidden_states, encoder_hidden_states)
        if image_rotary_emb is not None:
            query, key = rotated(query, image_rotary_emb), rotated(key, image_rotary_emb)
        if kept is not None and writes:
            kept.add(id(attn), key[:, 1:], value[:, 1:])
            attended = alone(query, key, value)
        else:
            if kept is not None:
                key = torch.cat([key, *(part.to(key) for part in kept.keys[id(attn)])], dim=1)
                value = torch.cat([value, *(part.to(value) for part in kept.values[id(attn)])], dim=1)
            attended = dispatch_attention_fn(query, key, value)
        attended = attended.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return attended
        text = encoder_hidden_states.shape[1]
        image = attn.to_out[1](attn.to_out[0](attended[:, text:]))
        return image, attn.to_add_out(attended[:, :text])


def rotated(tensor: Tensor, rotary: Any) -> Tensor:
    """Queries or keys (B, L, heads, D) turned by their positions."""
    turned = apply_rotary_emb(tensor, rotary, sequence_dim=1)
    assert isinstance(turned, Tensor)
    return turned


def alone(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A reference's attention to itself; the one text token in front is only there because one must be."""
    picture = dispatch_attention_fn(query[:, 1:], key[:, 1:], value[:, 1:])
    return torch.cat([value[:, :1].to(picture), picture], dim=1)


def projections(attn: Any, hidden: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised queries, keys and values (B, L, heads, D), text first where it has its own projections."""

    def heads(tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (-1, attn.head_dim))

    query, key = attn.norm_q(heads(attn.to_q(hidden))), attn.norm_k(heads(attn.to_k(hidden)))
    value = heads(attn.to_v(hidden))
    if text is None:
        return query, key, value
    text_query = attn.norm_added_q(heads(attn.add_q_proj(text)))
    text_key = attn.norm_added_k(heads(attn.add_k_proj(text)))
    text_value = heads(attn.add_v_proj(text))
    return (
        torch.cat([text_query, query], dim=1),
        torch.cat([text_key, key], dim=1),
        torch.cat([text_value, value], dim=1),
    )


def install(network: Any) -> None:
    """Put the attention that can keep references into every block."""
    for block in (*network.transformer_blocks, *network.single_transformer_blocks):
        block.attn.processor = ReferenceProcessor()


def write_reference(
    network: Any, inputs: dict[str, Any], tokens: Tensor, ids: Tensor, kept: KeptReferences
) -> None:
    """Keep the keys and values of one reference, tokens (B, L, D) at ids (L, 3), of the base network."""
    sigma = torch.full_like(inputs["timestep"], REFERENCE_SIGMA)
    with torch.no_grad(), lora_off(network):
        network(
            hidden_states=tokens,
            encoder_hidden_states=torch.zeros_like(inputs["encoder_hidden_states"][:, :1]),
            pooled_projections=torch.full_like(inputs["pooled_projections"], REFERENCE_POOLED),
            timestep=sigma,
            img_ids=ids,
            txt_ids=inputs["txt_ids"][:1],
            guidance=torch.full_like(sigma, REFERENCE_GUIDANCE),
            joint_attention_kwargs={"kept": kept, "writes": True},
            return_dict=False,
        )


def exact_velocity(
    network: Any, inputs: dict[str, Any], tokens: Sequence[Tensor], ids: Sequence[Tensor], offload: bool
) -> Tensor:
    """The network's answer for the target's tokens, given references (B, L, D) at ids (L, 3)."""
    kept = KeptReferences(offload=offload)
    for reference, reference_ids in zip(tokens, ids, strict=True):
        write_reference(network, inputs, reference, reference_ids, kept)
    return network(**inputs, joint_attention_kwargs={"kept": kept}, return_dict=False)[0]

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
from .kontext_time import velocity_at

MOST_TOKENS = 4096
"""Tokens of the references that go through the network together: small ones waste a pass of their own."""
Turns = tuple[Tensor, Tensor]
"""Cosines and sines (L, D) of positions."""


@dataclass(slots=True)
class KeptReferences:
    """Per attention layer the keys and values (B, L, heads, D) of the references, one after another."""

    keys: dict[int, list[Tensor]] = field(default_factory=dict)
    values: dict[int, list[Tensor]] = field(default_factory=dict)
    offload: bool = False
    """Keep them in host memory and copy each layer's when it is needed."""

    def add(self, layer: int, key: Tensor, value: Tensor, places: Sequence[Turns]) -> None:
        """Keep what references left in a layer: keys before RoPE and values (R B, L, heads, D), R places."""
        pairs = zip(key.chunk(len(places)), value.chunk(len(places)), places, strict=True)
        for own_key, own_value, place in pairs:
            turned = rotated(own_key, place)
            if self.offload:
                turned, own_value = turned.cpu(), own_value.cpu()
            self.keys.setdefault(layer, []).append(turned)
            self.values.setdefault(layer, []).append(own_value)


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
        places: Sequence[Turns] = (),
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention output(s) of diffusers' FluxAttention; with `places` the references there are kept."""
        query, key, value = projections(attn, hidden_states, encoder_hidden_states)
        if kept is not None and places:
            kept.add(id(attn), key[:, 1:], value[:, 1:], places)
        if image_rotary_emb is not None:
            query, key = rotated(query, image_rotary_emb), rotated(key, image_rotary_emb)
        if places:
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
    """A reference's attention to itself, all (B, 1 + L, heads, D).

    The one text token in front is only there because one must be: it passes through as it is.
    """
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


def write_references(
    network: Any,
    inputs: dict[str, Any],
    tokens: Sequence[Tensor],
    ids: Sequence[Tensor],
    kept: KeptReferences,
) -> None:
    """Keep the keys and values that the base network makes of references, tokens (B, L, D) at ids (L, 3)."""
    for group in passes(tokens, ids):
        write_group(network, inputs, [(tokens[n], ids[n]) for n in group], kept)


def passes(tokens: Sequence[Tensor], ids: Sequence[Tensor]) -> list[list[int]]:
    """Numbers of the references that share a pass, from tokens (B, L, D) and ids (L, 3) of each, in order.

    Neighbours whose tokens lie alike go together, up to `MOST_TOKENS`: each sees only itself, so where it is
    turns its keys and nothing else.
    """
    found: list[list[int]] = []
    for number, reference in enumerate(tokens):
        group = found[-1] if found else []
        fits = (len(group) + 1) * reference.shape[1] <= MOST_TOKENS
        if group and fits and alike(ids[group[0]], ids[number]):
            group.append(number)
        else:
            found.append([number])
    return found


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two references' ids (L, 3) differ by one shift of all."""
    return one.shape == other.shape and bool((one - one[:1] == other - other[:1]).all())


def write_group(
    network: Any, inputs: dict[str, Any], group: Sequence[tuple[Tensor, Tensor]], kept: KeptReferences
) -> None:
    """One pass over references, (tokens, ids), whose tokens lie alike."""
    tokens, places = zip(*group, strict=True)
    words, pooled = inputs["encoder_hidden_states"], inputs["pooled_projections"]
    count = len(group) * len(words)

    def filled(like: Tensor, value: float, *shape: int) -> Tensor:
        return like.new_full((count, *shape), value)

    with torch.no_grad(), lora_off(network):
        network(
            hidden_states=torch.cat(tokens),
            encoder_hidden_states=filled(words, 0.0, 1, words.shape[-1]),
            pooled_projections=filled(pooled, REFERENCE_POOLED, pooled.shape[-1]),
            timestep=filled(inputs["timestep"], REFERENCE_SIGMA),
            img_ids=places[0],
            txt_ids=inputs["txt_ids"][:1],
            guidance=filled(inputs["timestep"], REFERENCE_GUIDANCE),
            joint_attention_kwargs={"kept": kept, "places": [network.pos_embed(ids) for ids in places]},
            return_dict=False,
        )


def exact_velocity(
    network: Any, inputs: dict[str, Any], tokens: Sequence[Tensor], ids: Sequence[Tensor], offload: bool
) -> Tensor:
    """The network's answer for the target's tokens, given references (B, L, D) at ids (L, 3)."""
    kept = KeptReferences(offload=offload)
    write_references(network, inputs, tokens, ids, kept)
    return velocity_at(network, inputs, joint_attention_kwargs={"kept": kept})

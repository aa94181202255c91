"""FLUX.1 with Feature Mixing, written out: two branches side by side, one formula, one pair at a time.

Against the modules of ComfyUI's Flux, but not with its forward or its attention: what a mixed run must equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from masked_flux import heads, modulated, modulation_vector
from torch import Tensor

Branch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Queries, keys, values of one picture and its rotations."""


def rotated(x: Tensor, pe: Tensor) -> Tensor:
    from comfy.ldm.flux.math import apply_rope1

    return apply_rope1(x, pe)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def mixed_attention(source: Branch, target: Branch, num_noise: int, is_mixing: bool) -> tuple[Tensor, Tensor]:
    """The two attentions of section 3.1; noise tokens are the last of each sequence."""
    (q_src, k_src, v_src, pe_src), (q_tar, k_tar, v_tar, pe_tar) = source, target
    q_src, k_src, q_tar, k_tar = (
        rotated(part, pe) for part, pe in ((q_src, pe_src), (k_src, pe_src), (q_tar, pe_tar), (k_tar, pe_tar))
    )
    from_source = softmax_attention(q_src, k_src, v_src)
    if is_mixing:
        k_tar = torch.cat((k_tar, k_src[:, :, -num_noise:]), 2)
        v_tar = torch.cat((v_tar, v_src[:, :, -num_noise:]), 2)
    return from_source, softmax_attention(q_tar, k_tar, v_tar)


def double_block(
    network: Any, block: Any, states: list, vecs: list[Tensor], pes: list[Tensor], is_mixing: bool
) -> list:
    branches, mods = [], []
    for (img, txt), vec, pe in zip(states, vecs, pes, strict=True):
        img1, img2 = block.img_mod(vec)
        txt1, txt2 = block.txt_mod(vec)
        mods.append((img1, img2, txt1, txt2))
        parts = []
        for attn, x in (
            (block.txt_attn, modulated(block.txt_norm1, txt, txt1)),
            (block.img_attn, modulated(block.img_norm1, img, img1)),
        ):
            q, k, v = heads(network, attn.qkv(x))
            parts.append((*attn.norm(q, k, v), v))
        branches.append((*(torch.cat(pair, 2) for pair in zip(*parts, strict=True)), pe))
    attended = mixed_attention(*branches, states[0][0].shape[1], is_mixing)
    new = []
    for (img, txt), (img1, img2, txt1, txt2), out in zip(states, mods, attended, strict=True):
        txt_out, img_out = out.split((txt.shape[1], img.shape[1]), dim=1)
        img = img + img1.gate * block.img_attn.proj(img_out)
        img = img + img2.gate * block.img_mlp(modulated(block.img_norm2, img, img2))
        txt = txt + txt1.gate * block.txt_attn.proj(txt_out)
        txt = txt + txt2.gate * block.txt_mlp(modulated(block.txt_norm2, txt, txt2))
        new.append((img, txt))
    return new


def single_block(
    network: Any,
    block: Any,
    states: list[Tensor],
    vecs: list[Tensor],
    pes: list[Tensor],
    num_noise: int,
    is_mixing: bool,
) -> list[Tensor]:
    branches, rest = [], []
    for x, vec, pe in zip(states, vecs, pes, strict=True):
        mod, _ = block.modulation(vec)
        qkv, mlp = block.linear1(modulated(block.pre_norm, x, mod)).split(
            (3 * network.hidden_size, block.mlp_hidden_dim), dim=-1
        )
        q, k, v = heads(network, qkv)
        branches.append((*block.norm(q, k, v), v, pe))
        rest.append((mod, mlp))
    attended = mixed_attention(*branches, num_noise, is_mixing)
    return [
        x + mod.gate * block.linear2(torch.cat((out, block.mlp_act(mlp)), 2))
        for x, (mod, mlp), out in zip(states, rest, attended, strict=True)
    ]


@torch.no_grad()
def mixed_velocity(
    network: Any, x: Tensor, sigma: float, prompts: Sequence[list], is_mixing: bool = True
) -> Tensor:
    """Velocities (2, C, H, W) of a source and its target x (2, C, H, W), whose prompts are CONDITIONINGs."""
    states, vecs, pes = [], [], []
    for picture, [(context, more)] in zip(x.split(1), prompts, strict=True):
        img, ids = network.process_img(picture)
        guidance = torch.tensor([more["guidance"]])
        vec = modulation_vector(network, torch.tensor([sigma]), guidance, more["pooled_output"])
        text_ids = ids.new_zeros(1, context.shape[1], 3)
        states.append((network.img_in(img), network.txt_in(context)))
        vecs.append(vec)
        pes.append(network.pe_embedder(torch.cat((text_ids, ids), dim=1)))
    num_noise = states[0][0].shape[1]
    # Modulation of the blocks takes (B, D); the rest of a block broadcasts over tokens.
    for block in network.double_blocks:
        states = double_block(network, block, states, vecs, pes, is_mixing)
    whole = [torch.cat((txt, img), 1) for img, txt in states]
    for block in network.single_blocks:
        whole = single_block(network, block, whole, vecs, pes, num_noise, is_mixing)
    out = torch.cat(
        [network.final_layer(one[:, -num_noise:], vec) for one, vec in zip(whole, vecs, strict=True)]
    )
    height, width = (-(-side // 2) for side in x.shape[-2:])
    out = out.unflatten(1, (height, width)).unflatten(-1, (-1, 2, 2))
    return out.permute(0, 3, 1, 4, 2, 5).flatten(2, 3).flatten(3, 4)[:, :, : x.shape[-2], : x.shape[-1]]

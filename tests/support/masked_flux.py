"""FLUX.1 with isolated references, computed in one masked pass over all tokens: slow, simple, nothing kept.

Every token has its own modulation vector and a full mask says who sees whom. Written against the modules of
ComfyUI's Flux, but not with its forward: what the reference cache must equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def attention_mask(num_text: int, num_image: int, lengths: Sequence[int]) -> Tensor:
    """Boolean (L, L): text and image see everything, each reference sees itself."""
    total = num_text + num_image + sum(lengths)
    mask = torch.zeros(total, total, dtype=torch.bool)
    mask[: num_text + num_image] = True
    start = num_text + num_image
    for length in lengths:
        mask[start : start + length, start : start + length] = True
        start += length
    return mask


def modulation_vector(network: Any, time: Tensor, guidance: Tensor, y: Tensor) -> Tensor:
    from comfy.ldm.flux.layers import timestep_embedding

    vector = network.time_in(timestep_embedding(time, 256).to(y.dtype))
    if network.params.guidance_embed:
        vector = vector + network.guidance_in(timestep_embedding(guidance, 256).to(y.dtype))
    return vector + network.vector_in(y)


def heads(network: Any, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.unflatten(-1, (3, network.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, mask: Tensor) -> Tensor:
    from comfy.ldm.flux.math import apply_rope

    q, k = apply_rope(q, k, pe)
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~mask, float("-inf")).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def modulated(norm: Any, x: Tensor, mod: Any) -> Tensor:
    return norm(x) * (1 + mod.scale) + mod.shift


def double_block(
    network: Any, block: Any, img: Tensor, txt: Tensor, vecs: tuple, pe: Tensor, mask: Tensor
) -> tuple:
    img1, img2 = block.img_mod(vecs[0])
    txt1, txt2 = block.txt_mod(vecs[1])
    qkv = []
    for attn, x in (
        (block.txt_attn, modulated(block.txt_norm1, txt, txt1)),
        (block.img_attn, modulated(block.img_norm1, img, img1)),
    ):
        q, k, v = heads(network, attn.qkv(x))
        qkv.append((*attn.norm(q, k, v), v))
    q, k, v = (torch.cat(parts, dim=2) for parts in zip(*qkv, strict=True))
    txt_out, img_out = attend(q, k, v, pe, mask).split((txt.shape[1], img.shape[1]), dim=1)
    img = img + img1.gate * block.img_attn.proj(img_out)
    img = img + img2.gate * block.img_mlp(modulated(block.img_norm2, img, img2))
    txt = txt + txt1.gate * block.txt_attn.proj(txt_out)
    txt = txt + txt2.gate * block.txt_mlp(modulated(block.txt_norm2, txt, txt2))
    return img, txt


def single_block(network: Any, block: Any, x: Tensor, vec: Tensor, pe: Tensor, mask: Tensor) -> Tensor:
    mod, _ = block.modulation(vec)
    qkv, mlp = block.linear1(modulated(block.pre_norm, x, mod)).split(
        (3 * network.hidden_size, block.mlp_hidden_dim), dim=-1
    )
    q, k, v = heads(network, qkv)
    attended = attend(*block.norm(q, k, v), v, pe, mask)
    return x + mod.gate * block.linear2(torch.cat((attended, block.mlp_act(mlp)), 2))


@torch.no_grad()
def masked_velocity(
    network: Any,
    x: Tensor,
    time: Tensor,
    context: Tensor,
    y: Tensor,
    guidance: Tensor,
    references: Sequence[Tensor],
    offsets: Sequence[tuple[float, float, float]],
) -> Tensor:
    """Velocity (B, C, H, W) for x, given reference latents (B, C, h, w) at (index, row, column)."""
    img, ids = network.process_img(x)
    num_image, batch = img.shape[1], x.shape[0]
    parts = [network.process_img(reference) for reference in references]
    moved = [part_ids + torch.tensor(offset) for (_, part_ids), offset in zip(parts, offsets, strict=True)]
    lengths = [part.shape[1] for part, _ in parts]
    img = network.img_in(torch.cat((img, *(part for part, _ in parts)), dim=1))
    txt = network.txt_in(context)
    own = modulation_vector(network, time, guidance, y)
    fixed = modulation_vector(network, 0 * time, torch.full_like(guidance, 2.5), 0 * y)
    txt_vec = own[:, None].expand(-1, txt.shape[1], -1)
    img_vec = torch.cat(
        (own[:, None].expand(-1, num_image, -1), fixed[:, None].expand(-1, sum(lengths), -1)), 1
    )
    text_ids = ids.new_zeros(batch, txt.shape[1], 3)
    pe = network.pe_embedder(torch.cat((text_ids, ids, *moved), dim=1))
    mask = attention_mask(txt.shape[1], num_image, lengths)
    for block in network.double_blocks:
        img, txt = double_block(network, block, img, txt, (img_vec, txt_vec), pe, mask)
    whole, vec = torch.cat((txt, img), 1), torch.cat((txt_vec, img_vec), 1)
    for block in network.single_blocks:
        whole = single_block(network, block, whole, vec, pe, mask)
    out = network.final_layer(whole[:, txt.shape[1] :][:, :num_image], own)
    height, width = (-(-side // 2) for side in x.shape[-2:])
    out = out.unflatten(1, (height, width)).unflatten(-1, (-1, 2, 2))
    return out.permute(0, 3, 1, 4, 2, 5).flatten(2, 3).flatten(3, 4)[:, :, : x.shape[-2], : x.shape[-1]]

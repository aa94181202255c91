"""DreamOmni's network once more, in plain tensor code that reads a state dict and follows the figure.

Written without the modules of the pack: no group, no block, no loop over groups, so that a wrong wiring
in one of the two shows as a difference.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    y = x @ w[name + ".weight"].T
    return y + w[name + ".bias"] if name + ".bias" in w else y


def conv(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = w[name + ".weight"]
    return torch.conv2d(x, weight, w[name + ".bias"], stride, weight.shape[-1] // 2)


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + 1e-6)


def group_norm(w: Weights, name: str, x: Tensor, groups: int) -> Tensor:
    grouped = x.reshape(len(x), groups, -1)
    mean = grouped.mean(-1, keepdim=True)
    var = ((grouped - mean) ** 2).mean(-1, keepdim=True)
    normed = ((grouped - mean) / torch.sqrt(var + 1e-6)).reshape(x.shape)
    return normed * w[name + ".weight"].view(1, -1, 1, 1) + w[name + ".bias"].view(1, -1, 1, 1)


def time_embedding(w: Weights, sigma: Tensor, frequencies: int) -> Tensor:
    half = frequencies // 2
    rates = torch.tensor([10000.0 ** (-i / half) for i in range(half)], dtype=sigma.dtype)
    angles = 1000.0 * sigma[:, None] * rates
    return linear(w, "time_in.linear", torch.cat([torch.cos(angles), torch.sin(angles)], 1))


def alpha_beta(w: Weights, name: str, time: Tensor) -> tuple[Tensor, Tensor]:
    both = silu(linear(w, name + ".linear", time))
    half = both.shape[1] // 2
    return both[:, :half], both[:, half:]


def conv_block(w: Weights, name: str, x: Tensor, time: Tensor, groups: int) -> Tensor:
    alpha, beta = alpha_beta(w, name + ".modulation", time)
    h = group_norm(w, name + ".norm", conv(w, name + ".conv_in", x), groups)
    h = silu(h * alpha[:, :, None, None] + beta[:, :, None, None])
    straight = conv(w, name + ".shortcut", x) if name + ".shortcut.weight" in w else x
    return straight + conv(w, name + ".conv_out", h)


def rotate(x: Tensor, ids: Tensor, axes: tuple[int, ...], theta: float) -> Tensor:
    """(L, head width) of one head; channel i turns with channel i + half."""
    half = x.shape[-1] // 2
    angles = []
    for axis, size in enumerate(axes):
        for i in range(0, size, 2):
            angles.append(ids[:, axis] * theta ** (-i / size))
    angle = torch.stack(angles, 1)
    a, b = x[:, :half], x[:, half:]
    return torch.cat(
        [a * torch.cos(angle) - b * torch.sin(angle), b * torch.cos(angle) + a * torch.sin(angle)], 1
    )


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * weight


def dit_block(w: Weights, name: str, x: Tensor, time: Tensor, ids: Tensor, keep: Tensor, config) -> Tensor:
    alpha, beta = alpha_beta(w, name + ".attention_modulation", time)
    h = layer_norm(x) * alpha[:, None] + beta[:, None]
    qkv = linear(w, name + ".qkv", h)
    size, out = config.width // config.heads, []
    for b in range(len(x)):
        heads = []
        for n in range(config.heads):
            q, k, v = (qkv[b, :, part * config.width + n * size :][:, :size] for part in range(3))
            q = rotate(rms(q, w[name + ".query_norm.weight"]), ids, config.rope_axes, config.rope_theta)
            k = rotate(rms(k, w[name + ".key_norm.weight"]), ids, config.rope_axes, config.rope_theta)
            score = (q @ k.T / math.sqrt(size)).masked_fill(~keep[b][None, :], float("-inf"))
            heads.append(torch.softmax(score, -1) @ v)
        out.append(torch.cat(heads, 1))
    x = x + linear(w, name + ".attention_out", torch.stack(out))
    alpha, beta = alpha_beta(w, name + ".feedforward_modulation", time)
    h = layer_norm(x) * alpha[:, None] + beta[:, None]
    return x + linear(w, name + ".feedforward_out", gelu_tanh(linear(w, name + ".feedforward_in", h)))


def grid_ids(index: int, rows: int, columns: int, shift: int) -> list[list[float]]:
    return [[index, y, x + shift] for y in range(rows) for x in range(columns)]


def tokens_of(w: Weights, x: Tensor, time: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    a = conv_block(w, "stem.block_a", x, time, groups)
    b = conv_block(w, "stem.block_b", a, time, groups)
    small = conv(w, "stem.down", b, stride=2)
    flat = small.flatten(2).transpose(1, 2)
    return linear(w, "stem.to_tokens", flat), a, b


def two_group_network(
    w: Weights, config, x: Tensor, sigma: Tensor, context: Tensor, keep_vlm: Tensor, pictures: list[Tensor]
) -> Tensor:
    """The output of a network with two encoder and two decoder groups, patch 1, wired as drawn."""
    groups = config.conv_norm_groups
    time = time_embedding(w, sigma, config.time_frequencies)
    clean = time_embedding(w, torch.zeros_like(sigma), config.time_frequencies)
    noise, skip_a, skip_b = tokens_of(w, x, time, groups)
    ids = grid_ids(0, x.shape[2] // 2, x.shape[3] // 2, 0)
    image, shift = [noise], 0
    for n, picture in enumerate(pictures, 1):
        image.append(tokens_of(w, picture, clean, groups)[0])
        ids += grid_ids(n, picture.shape[2] // 2, picture.shape[3] // 2, shift)
        shift += picture.shape[3] // 2
    vlm = linear(w, "vlm_in", torch.nn.functional.layer_norm(context, context.shape[-1:]))
    count = sum(part.shape[1] for part in image)
    ids_all = torch.tensor(ids + [[0, 0, 0]] * vlm.shape[1], dtype=x.dtype)
    keep = torch.cat([torch.ones(len(x), count, dtype=torch.bool), keep_vlm], 1)

    def block(name: str, tokens: Tensor) -> Tensor:
        return dit_block(w, name, tokens, time, ids_all, keep, config)

    def merged(name: str, tokens: Tensor, skip: Tensor) -> Tensor:
        noise_side = torch.cat([tokens[:, :count], skip[:, :count]], 2)
        vlm_side = torch.cat([tokens[:, count:], skip[:, count:]], 2)
        parts = [linear(w, name + ".merge_noise", noise_side), linear(w, name + ".merge_vlm", vlm_side)]
        return torch.cat(parts, 1)

    tokens = torch.cat([*image, vlm], 1)
    first = block("encoder.0.blocks.1", block("encoder.0.blocks.0", tokens))
    second = block("encoder.1.blocks.1", block("encoder.1.blocks.0", first))
    tokens = merged("decoder.0", second, second)
    tokens = block("decoder.0.blocks.1", block("decoder.0.blocks.0", tokens))
    tokens = merged("decoder.1", tokens, first)
    tokens = block("decoder.1.blocks.1", block("decoder.1.blocks.0", tokens))

    out = linear(w, "exit.from_tokens", layer_norm(tokens[:, : noise.shape[1]]))
    out = out.transpose(1, 2).reshape(len(x), -1, x.shape[2] // 2, x.shape[3] // 2)
    out = conv(w, "exit.up", out.repeat_interleave(2, 2).repeat_interleave(2, 3))
    out = conv_block(w, "exit.block_b", torch.cat([out, skip_b], 1), time, groups)
    out = conv_block(w, "exit.block_a", torch.cat([out, skip_a], 1), time, groups)
    return conv(w, "exit.out", silu(group_norm(w, "exit.out_norm", out, groups)))

"""Starting weights of a DreamOmni network; chosen, not published."""

from __future__ import annotations

import math

import torch
from torch import nn

from .blocks import DiTBlock, Group, ResidualConvBlock
from .layers import Modulation
from .network import DreamOmniNetwork

SILU_OF_ONE = 1.2784645
"""SiLU(1.2784645) = 1: with this bias a fresh `Linear -> SiLU` modulation leaves its input as it is."""

SKIP_SHARE = 0.3
"""Share of Xavier's weights with which a merge starts; its main path starts as the identity."""

QUIET_CONV = 0.5
"""Share of Xavier's weights with which the last layer of a residual convolution starts."""

CLOSED_MATTE = -2.0
"""A fresh network shows sigmoid(-2) = 12 % of what it paints, the rest is the source."""


def initialize(network: DreamOmniNetwork, generator: torch.Generator) -> None:
    """Fill a network in place: Xavier Linears, unit modulation, quiet residual branches, zero output."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.GroupNorm, nn.RMSNorm)) and module.weight is not None:
            nn.init.ones_(module.weight)
            if isinstance(module, nn.GroupNorm) and module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, Modulation):
            _start_neutral(module)
        elif isinstance(module, Group) and module.merges:
            _let_through(module.merge_noise)
            _let_through(module.merge_vlm)
    _quieten(network)
    nn.init.normal_(network.time_in.linear.weight, std=0.02, generator=generator)
    if network.roles is not None:
        nn.init.normal_(network.roles.weight, std=0.02, generator=generator)
    nn.init.zeros_(network.exit.out.weight)
    if network.config.source_matte:
        nn.init.constant_(network.exit.out.bias[network.config.latent.channels :], CLOSED_MATTE)


def _start_neutral(modulation: Modulation) -> None:
    """alpha 1, beta 0, gate 1 whatever the time."""
    nn.init.zeros_(modulation.linear.weight)
    width = modulation.linear.out_features // modulation.parts
    silu_last = modulation.order == "linear-silu"
    one = SILU_OF_ONE if silu_last else 1.0
    with torch.no_grad():
        bias = modulation.linear.bias
        if modulation.form == "alpha":
            bias[:width] = one
        bias[2 * width :] = one


def _let_through(merge: nn.Linear) -> None:
    """[identity | nothing] plus a little of Xavier: two random layers in a row would scramble the tokens."""
    with torch.no_grad():
        merge.weight.mul_(SKIP_SHARE)
        merge.weight[:, : merge.out_features].diagonal().add_(1.0)


def _quieten(network: DreamOmniNetwork) -> None:
    """Scale the last layer of every residual branch: one that starts small leaves its main path alone.

    In blocks by one over the root of the number of such branches, two a block; in convolutions by QUIET_CONV.
    """
    branches = [block for block in network.modules() if isinstance(block, DiTBlock)]
    factor = 1 / math.sqrt(2 * max(1, len(branches)))
    with torch.no_grad():
        for block in branches:
            block.attention_out.weight.mul_(factor)
            block.feedforward_out.weight.mul_(factor)
        for module in network.modules():
            if isinstance(module, ResidualConvBlock):
                module.conv_out.weight.mul_(QUIET_CONV)

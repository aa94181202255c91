"""A tiny network and the three prefixes of its guidance, made once for each file."""

from __future__ import annotations

import pytest
import torch
from omnigen_prefixes import ONE, TWO, prefix_of
from pack.dit.omnigen.prompt import image_only_prompt
from tiny_omnigen import diffusers_model, own_network, tiny_config


@pytest.fixture(scope="module")
def network():
    return own_network(diffusers_model(tiny_config()), tiny_config())


@pytest.fixture(scope="module")
def branches():
    torch.manual_seed(3)
    references = [torch.randn(1, 4, 6, 4), torch.randn(1, 4, 4, 8)]
    return {
        "negative": prefix_of("ugly", []),
        "image_only": prefix_of(image_only_prompt(2), references),
        "positive": prefix_of(f"{ONE} {TWO} on a beach, with a long description of what to do", references),
    }

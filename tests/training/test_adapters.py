"""A fresh LoRA: what it is drawn as, whatever its base is held in."""

from __future__ import annotations

import copy

import pytest
import torch
from pack.training.adapters import ADAPTER, inject_lora, lora_parameters
from pack.training.config import AdapterConfig, MemoryConfig
from pack.training.frozen import FrozenLinear, hold_frozen
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

CPU = torch.device("cpu")
RANK = 256


def base(precision: str) -> nn.Module:
    """Two layers held in `precision`."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 64))
    hold_frozen(network, MemoryConfig(precision=precision), CPU)
    return network


def lora(network: nn.Module) -> dict[str, nn.Parameter]:
    assert inject_lora(network, AdapterConfig(rank=RANK, alpha=RANK), ["0", "2"], seed=1) == 2
    return lora_parameters(network)


def test_a_lora_on_an_fp32_base_is_what_peft_draws() -> None:
    network, plain = base("fp32"), base("fp32")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        settings = LoraConfig(
            r=RANK, lora_alpha=RANK, target_modules=["0", "2"], init_lora_weights="gaussian"
        )
        inject_adapter_in_model(settings, plain, ADAPTER)
    theirs = lora_parameters(plain)
    for name, parameter in lora(network).items():
        assert torch.equal(parameter, theirs[name])


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_a_lora_is_drawn_the_same_on_a_smaller_base(precision: str) -> None:
    network, expected = base(precision), lora(base("fp32"))
    held = copy.deepcopy(network.state_dict())
    for name, parameter in lora(network).items():
        assert parameter.dtype == torch.float32 and parameter.requires_grad
        assert torch.equal(parameter, expected[name])
        assert bool(parameter.any()) == ("lora_A" in name), "B starts at zero"
    for number in (0, 2):
        layer = network[number].base_layer
        assert isinstance(layer, FrozenLinear) and not layer.weight.requires_grad
        weight = held[f"{number}.weight"]
        assert layer.weight.dtype == weight.dtype
        assert torch.equal(layer.weight.float(), weight.float()), "the base is what it was"

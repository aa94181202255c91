"""LoRA by peft on a plain module: injected in fp32, switched off for a pass, saved as ComfyUI reads it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .config import AdapterConfig

ADAPTER = "default"
LORA_PARTS = ("lora_A", "lora_B")


def inject_lora(network: nn.Module, config: AdapterConfig, targets: list[str], seed: int) -> int:
    """Add a trainable fp32 LoRA to every module whose name ends with a target; the number of modules.

    The base is frozen; A is drawn from `seed`, the same however the base is held, and B starts at zero, so
    nothing changes before the first step. Raises ValueError when no module is meant.
    """
    from peft import LoraConfig, inject_adapter_in_model  # loaded when a run begins

    wanted = list(config.targets) or targets
    found = matching_linears(network, wanted)
    if not found:
        raise ValueError(
            f"no linear layer's name ends with {', '.join(wanted)}; this network has endings like "
            f"{', '.join(sorted({name.rsplit('.', 1)[-1] for name in linear_names(network)})[:12])}"
        )
    network.requires_grad_(False)
    lora = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=found,
        init_lora_weights="gaussian",
    )  # fmt: skip
    layers = [network.get_submodule(name) for name in found]
    with torch.random.fork_rng(devices=[]), seen_as_fp32(layers):
        torch.manual_seed(seed)
        inject_adapter_in_model(lora, network, ADAPTER)
    for parameter in lora_parameters(network).values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return len(found)


@contextmanager
def seen_as_fp32(layers: Iterable[nn.Module]) -> Generator[None]:
    """Inside the block the layers' weights look like fp32, and hold nothing.

    peft casts a fresh LoRA to the dtype of the base; in fp8 that leaves A few values, most of them zero.
    """
    held = {layer: weight for layer in layers if is_rounding(weight := layer.get_parameter("weight"))}
    for layer, weight in held.items():
        look = torch.zeros(1, device=weight.device).expand_as(weight)
        layer.weight = nn.Parameter(look, requires_grad=False)
    try:
        yield
    finally:
        for layer, weight in held.items():
            layer.weight = weight


def is_rounding(weight: nn.Parameter) -> bool:
    """Whether peft would cast a LoRA to the dtype of this weight, which is no other package's own kind."""
    return type(weight) is nn.Parameter and weight.is_floating_point() and weight.dtype != torch.float32


def linear_names(network: nn.Module) -> list[str]:
    """Names of all linear layers."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]


def matching_linears(network: nn.Module, endings: list[str]) -> list[str]:
    """Names of the linear layers that end with one of `endings` at a dot."""
    return [
        name
        for name in linear_names(network)
        if any(name == ending or name.endswith("." + ending) for ending in endings)
    ]


def lora_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """`<module>.lora_A.weight` -> parameter, with peft's adapter name taken out of the key."""
    return {
        name.replace(f".{ADAPTER}.", "."): parameter
        for name, parameter in network.named_parameters()
        if any(f".{part}.{ADAPTER}." in name for part in LORA_PARTS)
    }


@contextmanager
def lora_off(network: nn.Module) -> Generator[None]:
    """The base network alone, bit for bit, inside the block."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def saved_lora(weights: Mapping[str, Tensor], prefix: str, config: AdapterConfig) -> dict[str, Tensor]:
    """File keys `<prefix><module>.lora_A.weight` and an `.alpha` per module, as ComfyUI reads them."""
    tensors = {prefix + name: tensor.detach().float().cpu() for name, tensor in weights.items()}
    for name in weights:
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            tensors[f"{prefix}{module}.alpha"] = torch.tensor(float(config.alpha))
    return tensors

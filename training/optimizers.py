"""Optimizers by name, the learning-rate factor of a step, and their state as tensors and numbers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from .config import OptimizerConfig, RunConfig
from .muon import MuonWithAdamW

PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}
NF4_NEEDS, NF4_INSTEAD = "holding the base in nf4", "precision int8 or fp8, which need no package"
NESTED = "__bnb_optimizer_quant_state__"
"""bitsandbytes since 0.49 puts its 8-bit moments one level deeper, for the sake of FSDP."""


def optional_package(name: str, wanted_for: str, instead: str = "the optimizer adamw") -> Any:
    """An installed optional package; ImportError says how to install it and what to choose without it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{wanted_for} needs the package {name}, which does not load here ({error}). "
            f"Install it into ComfyUI's Python with `{sys.executable} -m pip install {name}`, or choose "
            f"{instead}."
        ) from error


def require_packages(config: RunConfig) -> None:
    """Raise ImportError, before any heavy work, when a package the run's settings need is not installed."""
    if config.memory.precision == "nf4" and find_spec("bitsandbytes") is None:
        optional_package("bitsandbytes", NF4_NEEDS, NF4_INSTEAD)
    package = PACKAGES.get(config.optimizer.name)
    if package is not None and find_spec(package) is None:
        optional_package(package, f"the optimizer {config.optimizer.name}")


def make_optimizer(
    config: OptimizerConfig,
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    hidden: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """The configured optimizer over fp32 parameters; ImportError when its package is missing.

    `hidden` are those of the parameters that are matrices inside the blocks: `muon` treats them apart.
    """
    betas = (config.beta1, config.beta2)
    options: dict[str, Any] = {"lr": learning_rate, "betas": betas, "weight_decay": config.weight_decay}
    if config.name == "adamw8bit":
        bitsandbytes = optional_package(PACKAGES[config.name], "the 8-bit AdamW optimizer")
        return bitsandbytes.optim.AdamW8bit(parameters, eps=config.epsilon, **options)
    if config.name == "muon":
        return MuonWithAdamW(config, parameters, hidden, learning_rate)
    if config.name == "prodigy":
        prodigy = optional_package(PACKAGES[config.name], "the Prodigy optimizer")
        return prodigy.Prodigy(
            parameters, eps=config.epsilon, use_bias_correction=True, safeguard_warmup=True, **options
        )
    return torch.optim.AdamW(parameters, eps=config.epsilon, **options)


@lru_cache(maxsize=8)
def learning_rate_factor(config: OptimizerConfig, steps: int) -> Callable[[int], float]:
    """Step of the stage -> factor on its learning rate, by diffusers' schedules; depends on nothing else."""
    from diffusers.optimization import get_scheduler  # loaded when a run begins

    unused = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(
        config.schedule, unused, num_warmup_steps=config.warmup_steps, num_training_steps=steps
    )
    return schedule.lr_lambdas[0]


def in_host_memory(tensor: Tensor) -> Tensor:
    """A copy there: saving must not need memory of the card, which training fills."""
    return tensor.detach().to("cpu", copy=True)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, JSON values) that `restore_optimizer` takes."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in {**values, **values.get(NESTED, {})}.items():
            if name == NESTED:
                continue
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = in_host_memory(value)
            else:
                plain.setdefault(str(index), {})[name] = value
    return tensors, {"groups": state["param_groups"], "plain": plain}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], data: dict[str, Any]
) -> None:
    """Put back what `optimizer_state` gave; each group keeps the weight decay that it has now.

    A run may go on with another one. All else in the saved groups is either unchanged or set at every step.
    """
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in data["plain"].items()}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor
    groups = [
        {name: tuple(value) if name == "betas" else value for name, value in group.items()}
        for group in data["groups"]
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay

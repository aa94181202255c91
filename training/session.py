"""A run's live parts: network, trainable weights, optimizer, moving average; and their saved state."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .adapters import inject_lora, lora_parameters
from .checkpoint import RunState
from .config import RunConfig, StageConfig
from .config_json import to_json
from .families.base import Family
from .monitor import BestValue, LossMonitor
from .optimizers import (
    in_host_memory,
    learning_rate_factor,
    make_optimizer,
    optimizer_state,
    restore_optimizer,
)
from .recompute import recompute_blocks

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel


def moving_average(trainable: Mapping[str, nn.Parameter], decay: float) -> EMAModel | None:
    """The moving average of the weights; None where none is wanted."""
    if not decay:
        return None
    # Loaded when a run begins: the nodes are there without the libraries of training.
    from diffusers.training_utils import EMAModel

    return EMAModel(trainable.values(), decay=decay)


class Session:
    """Everything that changes while a run goes on; `step` counts finished optimizer steps."""

    def __init__(self, config: RunConfig, family: Family, device: torch.device) -> None:
        self.config, self.family, self.device = config, family, device
        self.network = family.load_network(config, device)
        self.trainable = make_trainable(self.network, config, family, device)
        if config.memory.gradient_checkpointing:
            offload = config.memory.offload_activations
            recompute_blocks(self.network, family.block_classes(self.network), offload)
        first = config.stages[0]
        hidden = [part for name, part in self.trainable.items() if family.is_hidden_matrix(name, part)]
        self.optimizer = make_optimizer(
            config.optimizer, self.trainable.values(), first.learning_rate, hidden
        )
        self.ema = moving_average(self.trainable, config.optimizer.ema_decay)
        self.monitor, self.best, self.best_stage = LossMonitor(), BestValue(), 0
        self.step = self.validated_step = 0
        self.is_consistent = True
        """Whether weights, moments and moving average are those of one and the same step."""

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 arithmetic unless the run is fp32 throughout."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.memory.precision != "fp32"
        )

    def set_learning_rate(self, stage: StageConfig, step_of_stage: int) -> float:
        """Put the rate of a step into the optimizer and return it."""
        factor = learning_rate_factor(self.config.optimizer, stage.steps)
        rate = stage.learning_rate * factor(step_of_stage)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    @contextmanager
    def changing(self) -> Generator[None]:
        """The block changes the state part by part; where it raises, `is_consistent` stays False."""
        self.is_consistent = False
        yield
        self.is_consistent = True

    @contextmanager
    def saved_weights(self) -> Generator[dict[str, Tensor]]:
        """Inside the block the network is as it is saved: the moving average if there is one, no dropout."""
        parameters = list(self.trainable.values())
        learning = [module for module in self.network.modules() if module.training]
        self.network.eval()
        if self.ema is not None:
            self.ema.store(parameters)
        try:
            if self.ema is not None:
                self.ema.copy_to(parameters)
            yield {name: parameter.detach() for name, parameter in self.trainable.items()}
        finally:
            for module in learning:
                module.training = True
            if self.ema is not None:
                with self.changing():
                    self.ema.restore(parameters)

    def state(self, dataset: str, base_hashes: Mapping[str, str]) -> RunState:
        """What a checkpoint holds; `dataset` is the fingerprint of the samples."""
        tensors = {f"weight.{name}": in_host_memory(parameter) for name, parameter in self.trainable.items()}
        moments, data = optimizer_state(self.optimizer)
        ema_step = 0
        if self.ema is not None:
            ema_step = self.ema.optimization_step
            tensors |= {f"ema.{i}": in_host_memory(shadow) for i, shadow in enumerate(self.ema.shadow_params)}
        facts = {
            "config": to_json(self.config),
            "dataset": dataset,
            "base_hashes": dict(base_hashes),
            "optimizer": data,
            "ema_step": ema_step,
            "monitor": self.monitor.state(),
            "best": [self.best.value, self.best.step, self.best.worse_in_a_row],
            "best_stage": self.best_stage,
            "validated_step": self.validated_step,
        }
        return RunState(step=self.step, tensors=tensors | moments, data=facts)

    def restore(self, state: RunState) -> None:
        """Continue from a saved state; ValueError when its weights are not this network's."""
        saved = {
            name.removeprefix("weight."): t for name, t in state.tensors.items() if name.startswith("weight.")
        }
        if saved.keys() != self.trainable.keys():
            odd = sorted(saved.keys() ^ self.trainable.keys())[:3]
            raise ValueError(f"the checkpoint belongs to another network, for example {', '.join(odd)}")
        with self.changing():
            with torch.no_grad():
                for name, parameter in self.trainable.items():
                    parameter.copy_(saved[name])
            restore_optimizer(self.optimizer, state.tensors, state.data["optimizer"])
            if self.ema is not None:
                self.ema.optimization_step = state.data["ema_step"]
                for index, shadow in enumerate(self.ema.shadow_params):
                    shadow.data.copy_(state.tensors[f"ema.{index}"])
            self.monitor = LossMonitor.restored(state.data["monitor"])
            self.best, self.best_stage = BestValue(*state.data["best"]), state.data["best_stage"]
            self.step, self.validated_step = state.step, state.data["validated_step"]


def make_trainable(
    network: nn.Module, config: RunConfig, family: Family, device: torch.device | None = None
) -> dict[str, nn.Parameter]:
    """Name -> parameter of what the run trains: a fresh LoRA, or the family's own choice of weights."""
    if config.adapter is not None:
        inject_lora(network, config.adapter, family.adapter_targets(config), config.seed)
        adapted = lora_parameters(network)
        for parameter in adapted.values():
            # peft puts it where the base's weight is, which for a streamed base is host memory.
            parameter.data = parameter.data.to(device)
        return adapted
    network.requires_grad_(False)
    chosen = dict(family.trainable_parameters(network, config))
    for parameter in chosen.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return chosen

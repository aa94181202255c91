"""Gradient checkpointing of whole blocks, with their inputs kept on the device or in host memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

log = logging.getLogger("dreamomni")


def pinned_like(tensor: Tensor) -> Tensor:
    """Page-locked memory for a tensor; RuntimeError when the system gives no more."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)


class HostMemory:
    """Where kept tensors wait for the backward pass, in memory from `allocate` as far as there is some."""

    def __init__(self, allocate: Callable[[Tensor], Tensor] | None) -> None:
        self.allocate, self.was_refused = allocate, False

    def keeping(self) -> saved_tensors_hooks:
        """A block in which all that is kept for the backward pass is kept here."""
        return saved_tensors_hooks(self.take, self.give_back)

    def take(self, tensor: Tensor) -> tuple[torch.device, Tensor]:
        """A tensor's device and the tensor in host memory."""
        room = self.room_for(tensor)
        return tensor.device, tensor.cpu() if room is None else room.copy_(tensor)

    def room_for(self, tensor: Tensor) -> Tensor | None:
        """Memory for a tensor; None where any will do, which is only slower."""
        if self.allocate is None:
            return None
        try:
            return self.allocate(tensor)
        except RuntimeError as error:
            if not self.was_refused:
                log.warning("kept activations are not all page-locked, steps are slower: %s", error)
            self.was_refused = True
            return None

    def give_back(self, kept: tuple[torch.device, Tensor]) -> Tensor:
        """The tensor on its device again."""
        device, tensor = kept
        return tensor.to(device, non_blocking=tensor.is_pinned())


def recomputed(forward: Callable[..., Any], host: HostMemory | None) -> Callable[..., Any]:
    """`forward` that keeps only its inputs for the backward pass: on their device, or in `host` memory."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        names, count = list(kwargs), len(args)

        def positional(*values: Any) -> Any:  # only positional tensors are seen by `keeping`
            return forward(*values[:count], **dict(zip(names, values[count:], strict=True)))

        with nullcontext() if host is None else host.keeping():
            return checkpoint(positional, *args, *kwargs.values(), use_reentrant=False)

    return run


def recompute_blocks(network: nn.Module, classes: tuple[type[nn.Module], ...], offload: bool) -> int:
    """Switch checkpointing on for every block of one of `classes`; the number of blocks."""
    blocks = [module for module in network.modules() if isinstance(module, classes)]
    host = HostMemory(pinned_like if torch.cuda.is_available() else None) if offload else None
    for block in blocks:
        block.forward = recomputed(block.forward, host)
    return len(blocks)

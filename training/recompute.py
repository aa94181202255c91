"""Gradient checkpointing of whole blocks, with their inputs kept on the device or in host memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint


def recomputed(forward: Callable[..., Any], offload: bool) -> Callable[..., Any]:
    """`forward` that keeps only its inputs for the backward pass, in host memory where `offload` is set."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        names, count = list(kwargs), len(args)

        def positional(*values: Any) -> Any:  # only positional tensors are seen by save_on_cpu
            return forward(*values[:count], **dict(zip(names, values[count:], strict=True)))

        with save_on_cpu(pin_memory=torch.cuda.is_available()) if offload else nullcontext():
            return checkpoint(positional, *args, *kwargs.values(), use_reentrant=False)

    return run


def recompute_blocks(network: nn.Module, classes: tuple[type[nn.Module], ...], offload: bool) -> int:
    """Switch checkpointing on for every block of one of `classes`; the number of blocks."""
    blocks = [module for module in network.modules() if isinstance(module, classes)]
    for block in blocks:
        block.forward = recomputed(block.forward, offload)
    return len(blocks)

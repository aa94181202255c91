"""What a run will need in memory, told before it starts, and what to give up when it was not enough."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from .config import RunConfig
from .session import Session

BYTES_PER_WEIGHT = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "nf4": 0.56}
ACTIVATION_BYTES = 2
LIVE_BLOCK_FACTOR = 36
"""Values per token and channel alive inside one block while its gradient is computed; an estimate."""
SMALLEST_RESOLUTION = 256
SHRINK = 0.75


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Size of a network: weights, trained weights, blocks and channels per token."""

    parameters: int
    trainable: int
    blocks: int
    width: int


def optimizer_bytes_per_weight(name: str) -> float:
    """fp32 weight, gradient and the optimizer's moments."""
    return {"adamw": 16.0, "adamw8bit": 10.0, "prodigy": 24.0, "muon": 16.0}[name]


def planned_bytes(config: RunConfig, size: Footprint, tokens: int) -> dict[str, float]:
    """What lies where, in bytes, for `tokens` tokens (text, target and references) per sample."""
    memory = config.memory
    batch = max(stage.batch_size for stage in config.stages)
    frozen = (size.parameters - size.trainable) if config.adapter is None else size.parameters
    kept = tokens * batch * size.width * ACTIVATION_BYTES * size.blocks
    live = tokens * batch * size.width * ACTIVATION_BYTES * LIVE_BLOCK_FACTOR
    held = kept if memory.gradient_checkpointing else live * size.blocks
    base = frozen * BYTES_PER_WEIGHT[memory.precision]
    trained = size.trainable * (optimizer_bytes_per_weight(config.optimizer.name))
    if config.optimizer.ema_decay:
        trained += 4.0 * size.trainable
    return {
        "base on the device": 0.0 if memory.stream_base else base,
        "base in host memory": base if memory.stream_base else 0.0,
        "trained weights and optimizer": trained,
        "kept activations on the device": 0.0 if memory.offload_activations else held,
        "kept activations in host memory": held if memory.offload_activations else 0.0,
        "working space": live,
    }


def plan_text(config: RunConfig, size: Footprint, tokens: int) -> str:
    """The plan as lines of text, an estimate and said to be one."""
    parts = planned_bytes(config, size, tokens)
    lines = [f"  {name}: {value / 2**30:.2f} GiB" for name, value in parts.items() if value]
    device = sum(value for name, value in parts.items() if "host memory" not in name)
    host = sum(value for name, value in parts.items() if "host memory" in name)
    return "\n".join(
        [
            f"memory plan (estimate) for {tokens} tokens, base in {config.memory.precision}:",
            *lines,
            f"  together: {device / 2**30:.2f} GiB on the device, {host / 2**30:.2f} GiB in host memory",
        ]
    )


def session_footprint(session: Session) -> Footprint:
    """Sizes of a loaded network."""
    network = session.network
    blocks = [m for m in network.modules() if isinstance(m, session.family.block_classes(network))]
    trainable = sum(parameter.numel() for parameter in session.trainable.values())
    # A 4-bit weight has fewer elements than the weights it stands for.
    full = {
        id(m.weight): m.in_features * m.out_features for m in network.modules() if isinstance(m, nn.Linear)
    }
    total = sum(full.get(id(parameter), parameter.numel()) for parameter in network.parameters())
    inputs = Counter(
        module.in_features
        for block in blocks
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    )
    is_adapter = session.config.adapter is not None
    return Footprint(
        parameters=total - trainable if is_adapter else total,
        trainable=trainable,
        blocks=len(blocks),
        width=inputs.most_common(1)[0][0] if inputs else 0,
    )


def measured_plan(session: Session, tokens: int) -> str:
    """The plan for a loaded network."""
    return plan_text(session.config, session_footprint(session), tokens)


def smaller(resolution: int) -> int:
    """The next smaller resolution, a multiple of 64 where it is large enough."""
    step = 64 if resolution >= 128 else 16
    return max(step, int(resolution * SHRINK) // step * step)


def next_rung(config: RunConfig, has_references: bool = True) -> tuple[RunConfig, str] | None:
    """The run with one more thing given up and what that is; None when nothing is left.

    Order: recompute, activations to host memory, base to host memory, smaller references, smaller targets.
    Without `has_references` no picture has a size of its own, and smaller references would free nothing.
    """
    memory = config.memory
    for name, words in (
        ("gradient_checkpointing", "activations are recomputed"),
        ("offload_activations", "kept activations move to host memory"),
        ("stream_base", "the base moves to host memory and is streamed"),
    ):
        if not getattr(memory, name) and not (name == "stream_base" and unstreamable(config)):
            return dataclasses.replace(config, memory=dataclasses.replace(memory, **{name: True})), words
    chosen = smaller(max(config.reference_side(stage.resolution) for stage in config.stages))
    if has_references and chosen >= SMALLEST_RESOLUTION:
        return dataclasses.replace(config, reference_resolution=chosen), f"references shrink to {chosen} px"
    sizes = [smaller(stage.resolution) for stage in config.stages]
    if min(sizes) < SMALLEST_RESOLUTION:
        return None
    stages = tuple(
        dataclasses.replace(stage, resolution=size) for stage, size in zip(config.stages, sizes, strict=True)
    )
    return dataclasses.replace(config, stages=stages), f"targets shrink to {', '.join(map(str, sizes))} px"


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device had no memory left: CUDA's libraries and calls say so in errors of other classes."""
    words = str(error)
    spoken = "out of memory" in words.lower() or "ALLOC_FAILED" in words
    return spoken or isinstance(error, torch.OutOfMemoryError)


def unstreamable(config: RunConfig) -> bool:
    """Whether the base cannot be streamed: it is trained itself, or held by bitsandbytes."""
    return config.adapter is None or config.memory.precision == "nf4"

"""A training step beside ComfyUI's own TrainLoraNode, both on one FLUX-shaped network.

The node trains Flux only with recomputing (without it the blocks' in-place additions stop the backward pass)
and stops at reference latents, so neither side has references and both recompute their blocks.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from comfy_extras.nodes_train import TrainLoraNode, TrainSampler
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

import comfy.model_management

from ..training.cache import TensorCache
from ..training.config import AdapterConfig, MemoryConfig, RunConfig, StageConfig, ValidationConfig
from ..training.encode import SampleEntry
from ..training.families.kontext import KontextFamily
from ..training.families.kontext_files import network_arguments
from ..training.samples import SampleStore
from ..training.session import Session
from ..training.step import StepRunner
from ..training.team import Team
from .harness import Table, seconds, work_clock
from .memory import PeakBytes
from .networks import POOLED_WIDTH, TEXT_WIDTH, random_flux

SIDE, WORDS, RANK, WIDTH = 36, 43, 16, 256
"""324 tokens at width 256 are what 4096 tokens are at width 3072."""
STEPS, ROUNDS = 6, 4
SIDES = ("ComfyUI's TrainLoraNode", "trainer, as wide", "trainer, its own targets")


def peak_bytes(run: Callable[[], object]) -> float:
    """Most bytes of new tensors alive at once while `run` runs."""
    with PeakBytes() as counted:
        run()
    return float(counted.peak)


def network_file(folder: Path, patcher: Any) -> Path:
    """The node's network as a file that the trainer reads."""
    path = folder / "base.safetensors"
    weights = patcher.model.diffusion_model.state_dict()
    save_file({name: part.clone().contiguous() for name, part in weights.items()}, path)
    return path


def every_layer(path: Path) -> tuple[str, ...]:
    """Names of all Linears of the trainer's network."""
    with torch.device("meta"):
        network = FluxTransformer2DModel(**network_arguments(path))
    return tuple(name for name, part in network.named_modules() if isinstance(part, nn.Linear))


def our_step(folder: Path, base: Path, targets: tuple[str, ...]) -> Callable[[], None]:
    """One whole optimizer step of the trainer."""
    cache, latent = TensorCache(folder / "cache"), torch.randn(16, SIDE, SIDE)
    cache.write("target", {"latent": latent})
    cache.write("prompt", {"context": torch.randn(WORDS, TEXT_WIDTH), "pooled": torch.randn(POOLED_WIDTH)})
    entry = SampleEntry(
        id="1",
        task="text",
        instruction="x",
        target="target",
        references=[],
        prompts={"full": "prompt"},
        shapes=[list(latent.shape)],
    )
    config = RunConfig(
        name="bench",
        family="kontext",
        base={"transformer": str(base)},
        stages=(StageConfig(resolution=SIDE * 8, steps=1000),),
        adapter=AdapterConfig(rank=RANK, alpha=RANK, targets=targets),
        memory=MemoryConfig(precision="fp32"),
        validation=ValidationConfig(fraction=0.0),
    )
    session = Session(config, KontextFamily(), comfy.model_management.get_torch_device())
    runner = StepRunner(session, SampleStore([entry], cache), [0], 0, Team())

    def step() -> None:
        runner.run(session.step, session.step)
        session.step += 1

    return step


def run_node(patcher: Any, steps: int) -> None:
    """ComfyUI's node for some steps, as a graph calls it."""
    extras = {"pooled_output": torch.randn(1, POOLED_WIDTH), "guidance": 1.0}
    # With a single latent the node of 0.3.75 stops at an unset variable, so there are two.
    latents = [{"samples": torch.randn(1, 16, SIDE, SIDE)} for _ in range(2)]
    TrainLoraNode.execute(
        model=[patcher],
        latents=latents,
        positive=[[[torch.randn(1, WORDS, TEXT_WIDTH), dict(extras)]] for _ in latents],
        batch_size=[1],
        grad_accumulation_steps=[1],
        steps=[steps],
        learning_rate=[1e-4],
        rank=[RANK],
        optimizer=["AdamW"],
        loss_function=["MSE"],
        seed=[0],
        training_dtype=["fp32"],
        lora_dtype=["fp32"],
        algorithm=["LoRA"],
        gradient_checkpointing=[True],
        existing_lora=["[None]"],
    )
    comfy.model_management.unload_all_models()


def node_seconds(patcher: Any, steps: int) -> list[float]:
    """Seconds of each step inside the node, from one forward pass to the next; its first one warms up."""
    clock, stamps, original = work_clock(), [], TrainSampler.fwd_bwd

    def stamped(self: Any, *arguments: Any, **options: Any) -> Tensor:
        stamps.append(clock())
        return original(self, *arguments, **options)

    TrainSampler.fwd_bwd = stamped
    try:
        run_node(patcher, steps + 2)
    finally:
        TrainSampler.fwd_bwd = original
    return [after - before for before, after in itertools.pairwise(stamps[1:])]


def stock_table(folder: Path) -> Table:
    """Time and memory of a step, the node first."""
    device = str(comfy.model_management.get_torch_device())
    patcher = random_flux(hidden=WIDTH, heads=2, double=1, single=2, device=device, dtype=torch.float32)
    base = network_file(folder, patcher)
    wide, own = our_step(folder, base, every_layer(base)), our_step(folder, base, ())
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(ROUNDS):
        times[SIDES[0]] += node_seconds(patcher, STEPS)
        for side, step in zip(SIDES[1:], (wide, own), strict=True):
            step()
            times[side] += [seconds(step, work_clock()) for _ in range(STEPS)]
    peaks = [peak_bytes(lambda: run_node(patcher, 2)), peak_bytes(wide), peak_bytes(own)]
    node, rows = times[SIDES[0]], []
    for (side, taken), peak in zip(times.items(), peaks, strict=True):
        ratios = (min(taken) / min(node), statistics.median(taken) / statistics.median(node))
        rows.append((side, min(taken), statistics.median(taken), *ratios, peak / 2**20, peak / peaks[0]))
    columns = ("side", "min s", "median s", "min ratio", "median ratio", "peak MiB", "peak ratio")
    note = (
        "324 + 43 tokens, no references, fp32, LoRA rank 16, blocks recomputed; as wide: every "
        "Linear, as the node, which trains biases too; peak = new tensors alive in a step (of the node: "
        "with LoRA and optimizer)"
    )
    return Table("Training step: ComfyUI's node", columns, tuple(rows), note, chart=("side", "median ratio"))

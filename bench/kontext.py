"""Kontext: what the position encoding costs per step, and what switching the task costs.

Both run ComfyUI's own Flux with random weights. On a CPU the network is small, with enough tokens that a step
takes a noticeable time; `DREAMOMNI_BENCH_KONTEXT=released` takes the released network's size instead (24 GB).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
from comfy.patcher_extension import WrappersMP

from ..dit.flux_shape import FluxShape
from ..dit.positions import PositionScheme
from ..model_loaders.kontext import load_kontext
from ..model_loaders.lora import apply_lora
from ..model_loaders.patches import KEY, attach_position_encoding
from .harness import Table, compare, measure

SMALL = FluxShape(
    hidden_size=512, num_heads=4, axes_dim=(16, 56, 56), text_dim=256, num_double=1, num_single=2
)
IS_RELEASED_SIZE = os.environ.get("DREAMOMNI_BENCH_KONTEXT") == "released"
SHAPE = FluxShape() if IS_RELEASED_SIZE else SMALL
DTYPE = torch.bfloat16 if IS_RELEASED_SIZE else torch.float32
RANK = 256 if IS_RELEASED_SIZE else 16
# Latent sizes: a target and three references of different shapes.
TARGET = (128, 128) if IS_RELEASED_SIZE else (32, 32)
REFERENCES = ((128, 128), (156, 104), (104, 156)) if IS_RELEASED_SIZE else ((32, 32), (40, 24), (24, 40))
ROUNDS = 9


def tables() -> list[Table]:
    """The overhead of the wrapper and the cost of a switch."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        write_files(Path(folder))
        model = load_kontext("bench.safetensors", "default")
        return [wrapper_table(model), alone_table(model), switch_table(model)]


def wrapper_table(model: Any) -> Table:
    """One evaluation with three references: ComfyUI's method `index` against ours."""
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    ours = attach_position_encoding(model, PositionScheme.INDEX_OFFSET)
    return compare(
        "Kontext position encoding per step",
        {"stock index": step_of(model), "index+offset": step_of(ours)},
        rounds=ROUNDS,
        expected={"index+offset": 1.01},
        note="Expected: at most 1.01.",
    )


def alone_table(model: Any) -> Table:
    """The wrapper's own time, around a network that does nothing: steadier than a difference of two steps."""
    ours = attach_position_encoding(model, PositionScheme.INDEX_OFFSET)
    (wrapper,) = ours.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY)
    grids = [TARGET, *REFERENCES]
    tokens = sum(height * width // 4 for height, width in grids)
    noise, *latents = [torch.zeros(1, 1, *grid, device=model.load_device) for grid in grids]
    ids = torch.zeros(1, tokens, 3, device=model.load_device)

    def network(*args: Any, **_: Any) -> Tensor:
        for patch in args[7]["patches"]["post_input"]:
            patch({"img": noise, "txt": noise, "img_ids": ids, "txt_ids": ids})
        return noise

    def hundred_calls() -> None:
        for _ in range(100):
            wrapper(network, noise, noise, noise, None, None, latents, None, {})

    taken = min(measure({"wrapper": hundred_calls}, ROUNDS)["wrapper"]) / 100
    step = min(measure({"step": step_of(model)}, 3)["step"])
    return Table(
        "Kontext position encoding alone",
        ("wrapper us", "stock step us", "share of a step"),
        ((taken * 1e6, step * 1e6, taken / step),),
        note="Expected: a share of at most 0.01.",
    )


def switch_table(model: Any) -> Table:
    """From one task's LoRA to the other's, ready to sample."""
    turn = iter(range(10**6))

    def name() -> str:
        return ("edit.safetensors", "generate.safetensors")[next(turn) % 2]

    def stock() -> None:
        weights = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("loras", name()))
        load(comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0)[0])

    def switch() -> None:
        load(apply_lora(model, name(), 1.0)[0])

    def reload() -> None:
        load(apply_lora(load_kontext("bench.safetensors", "default"), name(), 1.0)[0])

    return compare(
        "Kontext task switch",
        {"stock LoRA loader": stock, "Task LoRA": switch, "base loaded again": reload},
        note=f"LoRAs of rank {RANK} on every matrix of the blocks; all files are in the system's cache.",
    )


def load(model: Any) -> None:
    """Put a patched model where it is sampled."""
    comfy.model_management.load_models_gpu([model], force_full_load=True)


def step_of(model: Any) -> Callable[[], Tensor]:
    """One evaluation of the network as the sampler calls it."""
    device = model.load_device
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(1, SHAPE.latent_channels, *TARGET, generator=draw).to(device)
    latents = [torch.randn(1, SHAPE.latent_channels, *size, generator=draw).to(device) for size in REFERENCES]
    text = torch.randn(1, 512 if IS_RELEASED_SIZE else 32, SHAPE.text_dim, generator=draw).to(device)
    options = {**model.model_options["transformer_options"], "wrappers": model.wrappers}

    def step() -> Tensor:
        return model.model.apply_model(
            noise,
            torch.tensor([0.6], device=device),
            c_crossattn=text,
            y=torch.zeros(1, SHAPE.pooled_dim, device=device),
            guidance=torch.tensor([3.5], device=device),
            ref_latents=latents,
            ref_latents_method="index",
            transformer_options=options,
        )

    return step


def write_files(folder: Path) -> None:
    """A Kontext and two LoRAs with random weights, where ComfyUI finds them."""
    for kind in ("diffusion_models", "loras"):
        (folder / kind).mkdir()
        folder_paths.add_model_folder_path(kind, str(folder / kind), is_default=True)
    weights = random_weights()
    save_file(weights, str(folder / "diffusion_models" / "bench.safetensors"))
    for name in ("edit", "generate"):
        save_file(random_lora(weights), str(folder / "loras" / f"{name}.safetensors"))


def random_weights() -> dict[str, Tensor]:
    """Weights under BFL's names for SHAPE, small enough that signals stay finite."""
    hidden, head = SHAPE.hidden_size, SHAPE.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "img_in": (hidden, SHAPE.in_channels),
        "txt_in": (hidden, SHAPE.text_dim),
        "time_in.in_layer": (hidden, 256),
        "time_in.out_layer": (hidden, hidden),
        "guidance_in.in_layer": (hidden, 256),
        "guidance_in.out_layer": (hidden, hidden),
        "vector_in.in_layer": (hidden, SHAPE.pooled_dim),
        "vector_in.out_layer": (hidden, hidden),
        "final_layer.adaLN_modulation.1": (2 * hidden, hidden),
        "final_layer.linear": (SHAPE.in_channels, hidden),
    }
    scales = []
    for block in range(SHAPE.num_double):
        for side in ("img", "txt"):
            stem = f"double_blocks.{block}.{side}"
            shapes |= {f"{stem}_mod.lin": (6 * hidden, hidden), f"{stem}_attn.qkv": (3 * hidden, hidden)}
            shapes |= {f"{stem}_attn.proj": (hidden, hidden), f"{stem}_mlp.0": (4 * hidden, hidden)}
            shapes[f"{stem}_mlp.2"] = (hidden, 4 * hidden)
            scales += [f"{stem}_attn.norm.query_norm.scale", f"{stem}_attn.norm.key_norm.scale"]
    for block in range(SHAPE.num_single):
        stem = f"single_blocks.{block}"
        shapes |= {f"{stem}.linear1": (7 * hidden, hidden), f"{stem}.linear2": (hidden, 5 * hidden)}
        shapes[f"{stem}.modulation.lin"] = (3 * hidden, hidden)
        scales += [f"{stem}.norm.query_norm.scale", f"{stem}.norm.key_norm.scale"]
    draw = torch.Generator().manual_seed(0)
    out = {name: torch.ones(head, dtype=DTYPE) for name in scales}
    for name, shape in shapes.items():
        out[f"{name}.weight"] = torch.empty(shape, dtype=DTYPE).uniform_(-0.02, 0.02, generator=draw)
        out[f"{name}.bias"] = torch.zeros(shape[0], dtype=DTYPE)
    return out


def random_lora(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A LoRA on every matrix of the blocks, under ComfyUI's names."""
    out = {}
    for name, weight in weights.items():
        if "_blocks." in name and weight.ndim == 2:
            module = f"diffusion_model.{name.removesuffix('.weight')}"
            out[f"{module}.lora_down.weight"] = torch.randn(RANK, weight.shape[1]).to(DTYPE) * 0.01
            out[f"{module}.lora_up.weight"] = torch.randn(weight.shape[0], RANK).to(DTYPE) * 0.01
    return out

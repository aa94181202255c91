"""What a training step costs beside a bare loop, diffusers' Kontext script and ComfyUI's own node.

All sides train the same FLUX-shaped network with the same LoRA in one process. Sizes keep the real ratio of
attention to linear work (tokens / (6 width) as FLUX.1 at 1024 px), so ratios carry over; seconds do not.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import FluxKontextPipeline, FluxTransformer2DModel
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from peft import LoraConfig
from safetensors.torch import save_file

from ..training.cache import TensorCache
from ..training.config import AdapterConfig, MemoryConfig, RunConfig, StageConfig, ValidationConfig
from ..training.encode import SampleEntry
from ..training.families.base import CachedSample
from ..training.families.kontext import KontextFamily
from ..training.samples import SampleStore
from ..training.session import Session
from ..training.step import StepRunner
from ..training.team import Team
from .harness import Table, compare, measure, work_clock
from .stock_trainer import stock_table

WIDTH, HEADS, TEXT = 256, 2, 43
SIDE = 36
"""Latent side of a picture: 324 tokens at width 256 are what 4096 tokens are at width 3072."""
SHAPE = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": WIDTH // HEADS,
    "num_attention_heads": HEADS,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
}
CPU = torch.device("cpu")


def small_flux(folder: Path) -> Path:
    """A random network in a file."""
    torch.manual_seed(0)
    path = folder / "base.safetensors"
    save_file(FluxTransformer2DModel(**SHAPE).state_dict(), path)
    return path


def run_config(base: Path, attention: str = "full", recompute: bool = False) -> RunConfig:
    return RunConfig(
        name="bench",
        family="kontext",
        base={"transformer": str(base)},
        stages=(StageConfig(resolution=SIDE * 8, steps=1000),),
        adapter=AdapterConfig(rank=16, alpha=16),
        memory=MemoryConfig(
            precision="fp32", gradient_checkpointing=recompute, reference_attention=attention
        ),
        validation=ValidationConfig(fraction=0.0),
    )


def stored_sample(cache: TensorCache, references: int) -> SampleEntry:
    """One random sample in the cache."""
    torch.manual_seed(1)
    latent = torch.randn(16, SIDE, SIDE)
    for name in ("target", *(f"reference{n}" for n in range(references))):
        cache.write(name, {"latent": torch.randn_like(latent)})
    cache.write("prompt", {"context": torch.randn(TEXT, 64), "pooled": torch.randn(32)})
    shape = list(latent.shape)
    return SampleEntry(
        id="1",
        task="edit",
        instruction="x",
        target="target",
        references=[f"reference{n}" for n in range(references)],
        prompts={"full": "prompt"},
        shapes=[shape] * (references + 1),
        has_source=True,
    )


def our_step(
    folder: Path, references: int, attention: str = "full", recompute: bool = False
) -> tuple[Callable[[], None], StepRunner]:
    """One whole optimizer step of the trainer."""
    cache = TensorCache(folder / "cache")
    store = SampleStore([stored_sample(cache, references)], cache)
    session = Session(run_config(small_flux(folder), attention, recompute), KontextFamily(), CPU)
    runner = StepRunner(session, store, [0], 0, Team())

    def step() -> None:
        runner.run(session.step, session.step)
        session.step += 1

    return step, runner


def bare_step(runner: StepRunner) -> Callable[[], None]:
    """The same network and loss without anything around them."""
    session, config = runner.session, runner.session.config
    sample: CachedSample = runner.store.read(0)
    batch = session.family.collate([sample], config, CPU, torch.float32)
    parameters = list(session.trainable.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        noise, sigma = torch.randn_like(batch.target), torch.rand(1)
        session.family.loss(session.network, batch, noise, sigma, config).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def diffusers_step(folder: Path, sample: CachedSample) -> Callable[[], None]:
    """The inner step of diffusers' train_dreambooth_lora_flux_kontext.py with cached latents and prompts."""
    from ..training.families.kontext import ATTENTION_TARGETS

    network = FluxTransformer2DModel(**SHAPE)
    network.load_state_dict(dict(load(folder / "base.safetensors")))
    network.requires_grad_(False)
    network.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=list(ATTENTION_TARGETS)))
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    target, reference = sample.target[None], sample.references[0][None]
    prompt = {name: tensor[None] for name, tensor in sample.prompt.items()}
    pack = FluxKontextPipeline._pack_latents
    ids = FluxKontextPipeline._prepare_latent_image_ids(1, SIDE // 2, SIDE // 2, CPU, torch.float32)
    reference_ids = ids.clone()
    reference_ids[..., 0] = 1

    def step() -> None:
        noise = torch.randn_like(target)
        density = compute_density_for_timestep_sampling("none", batch_size=1, device=CPU)
        sigma = density.view(-1, 1, 1, 1)
        noisy = (1 - sigma) * target + sigma * noise
        packed = torch.cat([pack(noisy, 1, 16, SIDE, SIDE), pack(reference, 1, 16, SIDE, SIDE)], dim=1)
        predicted = network(
            hidden_states=packed,
            timestep=density,
            guidance=torch.full((1,), 1.0),
            pooled_projections=prompt["pooled"],
            encoder_hidden_states=prompt["context"],
            txt_ids=torch.zeros(TEXT, 3),
            img_ids=torch.cat([ids, reference_ids]),
            return_dict=False,
        )[0][:, : (SIDE // 2) ** 2]
        predicted = FluxKontextPipeline._unpack_latents(predicted, SIDE * 8, SIDE * 8, 8)
        weighting = compute_loss_weighting_for_sd3("none", sigma)
        loss = (weighting * (predicted - (noise - target)).square()).reshape(1, -1).mean(1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    return step


def load(path: Path) -> list[tuple[str, torch.Tensor]]:
    from safetensors.torch import load_file

    return list(load_file(path).items())


def kept_bytes(step: Callable[[], None]) -> float:
    """Bytes of all tensors the step keeps for its backward pass, weights left out, each once."""
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return float(sum(seen.values()))


def flops(references: int, exact: bool) -> float:
    """Work of a step in units of W^2: linear x3 and attention x4.5 of a pass, x1 without gradient.

    Weights of linear layers are frozen: forward, recomputed, and the gradient of the input.
    """
    pictures, text = (SIDE // 2) ** 2, TEXT
    linear = 12 * 2  # multiply-adds of one block per token and width^2
    live, still = pictures + text, references * pictures
    if not exact:
        tokens = live + still
        return 3 * tokens * linear + 4.5 * 4 * tokens * tokens / WIDTH
    one_pass = still * linear + 4 * references * pictures**2 / WIDTH
    return 3 * live * linear + 4.5 * 4 * live * (live + still) / WIDTH + one_pass


def overhead_table(folder: Path) -> Table:
    """The trainer beside the bare loop and diffusers' script, one reference."""
    ours, runner = our_step(folder, references=1)
    sides = {
        "bare loop": bare_step(runner),
        "trainer": ours,
        "diffusers script": diffusers_step(folder, runner.store.read(0)),
    }
    return compare(
        "Training step: overhead",
        sides,
        rounds=7,
        expected={"trainer": 1.05},
        note="one 324-token target and reference, LoRA rank 16 on all attention; goal: trainer at most 1.05",
    )


def masked_table(folder: Path) -> Table:
    """Steps with 0, 1 and 3 references, full attention against the exact mask; blocks are recomputed.

    What is kept for the backward pass is counted without recomputing, where it is all of it.
    """
    sides, kept = {}, {}
    for references, attention in ((0, "full"), (1, "full"), (1, "exact"), (3, "full"), (3, "exact")):
        place = folder / f"{references}{attention}"
        place.mkdir()
        name = f"{references} references, {attention}"
        kept[name] = kept_bytes(our_step(place, references, attention)[0]) / 2**20
        sides[name], _ = our_step(place, references, attention, recompute=True)
    times = measure(sides, rounds=5, clock=work_clock())
    rows = []
    for name, taken in times.items():
        count, attention = int(name[0]), name.rsplit(" ", 1)[1]
        full = min(times[f"{count} references, full"])
        work = flops(count, attention == "exact") / flops(count, False)
        memory = kept[name] / kept[f"{count} references, full"]
        rows.append((name, min(taken), sorted(taken)[2], min(taken) / full, work, kept[name], memory))
    columns = ("step", "min s", "median s", "ratio to full", "work ratio", "kept MiB", "kept ratio")
    note = "goals: 3 references at most 0.45 of full, 1 at most 0.70; kept = saved for the backward pass"
    return Table("Training step: references for less", columns, tuple(rows), note, chart=("step", "min s"))


def tables() -> list[Table]:
    """All tables on the CPU; the seconds mean nothing for a GPU, the ratios do."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("overhead", "masked", "stock"):
            (Path(folder) / name).mkdir()
        found = [overhead_table(Path(folder, "overhead")), masked_table(Path(folder, "masked"))]
        found.append(stock_table(Path(folder, "stock")))
    return [dataclasses.replace(table, details={}) for table in found]

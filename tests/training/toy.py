"""A family small enough to train in a test: a few linear layers over every place of an 8 x 8 latent."""

from __future__ import annotations

from pathlib import Path

import torch
from pack.training.cache import TensorCache
from pack.training.config import (
    AdapterConfig,
    MemoryConfig,
    OptimizerConfig,
    OutputConfig,
    RunConfig,
    StageConfig,
    ValidationConfig,
)
from pack.training.encode import SampleEntry, read_manifest
from pack.training.families.base import Batch, EncodePlan, Family
from pack.training.files import write_text
from pack.training.session import Session
from pack.training.team import Team
from pack.training.trainer import RunFolder, Trainer
from torch import Tensor, nn

CPU = torch.device("cpu")
SIZE = 4


class ToyBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.nn.functional.silu(self.first(x)))


class ToyNetwork(nn.Module):
    """Velocity by way of the denoised latent, from all there is: a network that can learn pairs by heart."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        pixels = 2 * SIZE * SIZE
        self.into = nn.Linear(pixels + 1 + 4 + 2, width)
        self.blocks = nn.ModuleList([ToyBlock(width), ToyBlock(width)])
        self.out = nn.Linear(width, pixels)

    def forward(self, noisy: Tensor, sigmas: Tensor, prompt: Tensor, reference: Tensor) -> Tensor:
        x = self.into(torch.cat([noisy.flatten(1), sigmas[:, None], prompt, reference], dim=1))
        for block in self.blocks:
            x = block(x)
        denoised = self.out(x).view_as(noisy)
        return (noisy - denoised) / sigmas.clamp(min=0.1).view(-1, 1, 1, 1)


class ToyFamily(Family):
    name = "toy"

    def encode_plan(self, config: RunConfig) -> EncodePlan:
        return EncodePlan(image_encoding="pixels", prompt_encoding="text", size_multiple=4)

    def load_network(self, config: RunConfig, device: torch.device) -> nn.Module:
        torch.manual_seed(0)
        network = ToyNetwork()
        if config.options.get("explodes"):
            network.out.weight.data *= float(config.options["explodes"])
        return network.to(device)

    def adapter_targets(self, config: RunConfig) -> list[str]:
        return ["first", "second", "into", "out"]

    def block_classes(self, network: nn.Module) -> tuple[type[nn.Module], ...]:
        return (ToyBlock,)

    def predict_velocity(self, network: nn.Module, batch: Batch, noisy: Tensor, sigmas: Tensor) -> Tensor:
        references = batch.conditions["references"]
        mean = references[0].mean(dim=(2, 3)) if references else noisy.new_zeros(len(noisy), 2)
        return network(noisy, sigmas.to(noisy), batch.conditions["prompt"]["code"], mean)


def toy_config(steps: int = 8, **changes: object) -> RunConfig:
    """A quick fp32 run over everything the trainer does."""
    settings = {
        "name": "toy",
        "family": "toy",
        "stages": (StageConfig(resolution=16, batch_size=2, steps=steps, learning_rate=1e-2),),
        "adapter": AdapterConfig(rank=4, alpha=4),
        "memory": MemoryConfig(precision="fp32"),
        "validation": ValidationConfig(fraction=0.25, every=4, smallest_split=2),
        "output": OutputConfig(checkpoint_every=3, sample_every=0),
        "optimizer": OptimizerConfig(weight_decay=0.0),
    }
    return RunConfig(**{**settings, **changes})


def toy_samples(place: RunFolder, count: int = 12, resolutions: tuple[int, ...] = (16,)) -> None:
    """`count` random pairs in the cache and a manifest for each resolution."""
    cache, entries = TensorCache(place.cache), []
    generator = torch.Generator().manual_seed(7)
    for number in range(count):
        keys = {kind: f"{kind}{number:03d}" for kind in ("target", "reference", "prompt")}
        cache.write(keys["target"], {"latent": torch.randn(2, SIZE, SIZE, generator=generator)})
        cache.write(keys["reference"], {"latent": torch.randn(2, SIZE, SIZE, generator=generator)})
        cache.write(keys["prompt"], {"code": torch.randn(4, generator=generator)})
        variants = ("full", "no_caption", "no_references", "no_condition")
        entries.append(
            SampleEntry(
                id=str(number),
                task="edit",
                instruction=f"instruction {number}",
                target=keys["target"],
                references=[keys["reference"]],
                prompts=dict.fromkeys(variants, keys["prompt"]),
                shapes=[[2, SIZE, SIZE], [2, SIZE, SIZE]],
                has_source=True,
            )
        )
    import dataclasses
    import json

    text = "".join(json.dumps(dataclasses.asdict(entry)) + "\n" for entry in entries)
    for resolution in resolutions:
        write_text(place.manifest(resolution), text)
        assert len(read_manifest(place.manifest(resolution))) == count


def toy_place(folder: Path, **samples: object) -> RunFolder:
    place = RunFolder(folder=folder / "run", cache=folder / "cache")
    toy_samples(place, **samples)
    return place


def toy_trainer(
    config: RunConfig, place: RunFolder, stop_at: int | None = None
) -> tuple[Trainer, list[dict]]:
    """A trainer over fresh weights and the events it will tell; cancels itself at step `stop_at`."""
    session = Session(config, ToyFamily(), CPU)
    events: list[dict] = []
    trainer = Trainer(session, place, Team(), events.append, lambda: session.step == stop_at)
    return trainer, events

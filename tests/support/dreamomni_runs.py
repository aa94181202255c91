"""Tiny DreamOmni runs in this process, and samples as the cache holds them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from pack.training.cache import TensorCache
from pack.training.config import (
    MemoryConfig,
    OptimizerConfig,
    OutputConfig,
    RunConfig,
    StageConfig,
    ValidationConfig,
)
from pack.training.encode import SampleEntry
from pack.training.families import load_family
from pack.training.families.base import CachedSample
from pack.training.files import write_text
from pack.training.session import Session
from pack.training.team import Team
from pack.training.trainer import RunFolder, Trainer

CPU = torch.device("cpu")
WIDTH = 64
TOY = {
    "network.width": 32,
    "network.heads": 2,
    "network.groups": 1,
    "network.vlm_width": WIDTH,
    "network.conv_width": 16,
    "network.time_width": 16,
    "network.rope_axes": "4,6,6",
}


def run_config(**changes) -> RunConfig:
    settings = {
        "name": "toy",
        "family": "dreamomni",
        "task": "all",
        "adapter": None,
        "options": {"preset": "tiny", **TOY},
        "stages": (StageConfig(resolution=16, batch_size=4, steps=30, learning_rate=3e-3),),
        "memory": MemoryConfig(precision="fp32", gradient_checkpointing=True),
        "validation": ValidationConfig(fraction=0.0),
        "output": OutputConfig(checkpoint_every=1000, sample_every=0),
        "optimizer": OptimizerConfig(weight_decay=0.0),
    }
    return RunConfig(**{**settings, **changes})


def sample(number: int, pictures: int = 1, words: int = 4, side: int = 16) -> CachedSample:
    generator = torch.Generator().manual_seed(number)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    index = torch.zeros(words, dtype=torch.long)
    index[:pictures] = torch.arange(1, pictures + 1)
    return CachedSample(
        id=str(number),
        task="edit",
        instruction=f"instruction {number}",
        target=draw(3, side, side).clamp(-1, 1),
        references=tuple(draw(3, side, side).clamp(-1, 1) for _ in range(pictures)),
        prompt={
            "tokens": draw(words, WIDTH),
            "attention_mask": torch.ones(words, dtype=torch.bool),
            "image_index": index,
        },
        has_source=pictures > 0,
    )


def collate(family, config, *samples):
    return family.collate(samples, config, CPU, torch.float32)


def small_network(family, config):
    network = family.load_network(config, CPU)
    generator = torch.Generator().manual_seed(5)
    torch.nn.init.normal_(network.exit.out.weight, std=0.1, generator=generator)
    return network


def stored_samples(place: RunFolder, samples: list[CachedSample]) -> None:
    cache, lines = TensorCache(place.cache), []
    for item in samples:
        pictures = [item.target, *item.references]
        keys = [f"picture-{item.id}-{n}" for n in range(len(pictures))]
        for key, picture in zip(keys, pictures, strict=True):
            cache.write(key, {"latent": picture})
        cache.write(f"prompt-{item.id}", dict(item.prompt))
        entry = SampleEntry(
            id=item.id,
            task=item.task,
            instruction=item.instruction,
            target=keys[0],
            references=keys[1:],
            prompts={"full": f"prompt-{item.id}"},
            shapes=[list(picture.shape) for picture in pictures],
            has_source=item.has_source,
        )
        lines.append(json.dumps(dataclasses.asdict(entry)) + "\n")
    write_text(place.manifest(16), "".join(lines))


def train(config: RunConfig, folder: Path, samples: list[CachedSample]):
    place = RunFolder(folder=folder / "run", cache=folder / "cache")
    stored_samples(place, samples)
    session, events = Session(config, load_family(config.family), CPU), []
    outcome = Trainer(session, place, Team(), events.append, lambda: False).run()
    assert outcome == "finished"
    assert not [event for event in events if event["event"].endswith("failed")]
    losses = [event["loss"] for event in events if event["event"] == "step"]
    return session, losses, place.folder / "exports"


def mixed_samples() -> list[CachedSample]:
    """Text-to-image and edits together, prompts of several lengths."""
    return [sample(n, pictures=n % 3, words=4 + n % 2) for n in range(6)]

"""A tiny Kontext run in a process of its own or in this one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from pack.training import process
from pack.training.cache import TensorCache
from pack.training.config import (
    AdapterConfig,
    MemoryConfig,
    OutputConfig,
    RunConfig,
    StageConfig,
    ValidationConfig,
)
from pack.training.encode import SampleEntry
from pack.training.files import write_text
from pack.training.run_file import RunFile
from pack.training.trainer import RunFolder

from tests.training.tiny_flux import saved_flux, tiny_flux


def kontext_run(folder: Path, steps: int, base: Path | None = None, **stage: object) -> RunFile:
    """A run folder with four encoded samples of a tiny Kontext."""
    place = RunFolder(folder=folder / "run", cache=folder / "cache")
    cache = TensorCache(place.cache)
    generator, lines = torch.Generator().manual_seed(1), []
    for number in range(4):
        for kind in ("target", "reference"):
            latent = torch.randn(16, 4, 4, generator=generator)
            cache.write(f"{kind}{number:03d}", {"latent": latent})
        prompt = {
            "context": torch.randn(5, 16, generator=generator),
            "pooled": torch.randn(8, generator=generator),
        }
        cache.write(f"prompt{number:03d}", prompt)
        entry = SampleEntry(
            id=str(number),
            task="edit",
            instruction="x",
            target=f"target{number:03d}",
            references=[f"reference{number:03d}"],
            prompts={"full": f"prompt{number:03d}"},
            shapes=[[16, 4, 4], [16, 4, 4]],
            has_source=True,
        )
        lines.append(json.dumps(dataclasses.asdict(entry)) + "\n")
    write_text(place.manifest(32), "".join(lines))
    config = RunConfig(
        name="run",
        family="kontext",
        base={"transformer": str(base or saved_flux(folder, tiny_flux()))},
        stages=(StageConfig(**{"resolution": 32, "batch_size": 2, "steps": steps, **stage}),),
        adapter=AdapterConfig(rank=2, alpha=2),
        memory=MemoryConfig(precision="fp32"),
        validation=ValidationConfig(fraction=0.0),
        output=OutputConfig(checkpoint_every=50, sample_every=0),
    )
    # Nobody beats for those that are started in this process.
    return RunFile(config=config, cache=str(place.cache), device="cpu", watch_parent=False)


def in_this_process(run: RunFile, folder: Path, heard, processes: int) -> int:
    """`run_once` without starting an interpreter."""
    run.write(folder)
    return process.main(folder)

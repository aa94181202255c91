"""An extraction LoRA: samples with a named attribute, a preset, a tiny Kontext, the file in ComfyUI."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pack.training.cache import TensorCache
from pack.training.config import OptimizerConfig, OutputConfig, RunConfig
from pack.training.dataset import open_dataset
from pack.training.encode import Encoding, encode_dataset, pixels_of, read_manifest
from pack.training.families.kontext import KontextFamily
from pack.training.presets import Overrides, lora_run
from pack.training.samples import SampleStore
from pack.training.session import Session
from pack.training.synthesis.config import recipe_for
from pack.training.synthesis.generate import Job, generate
from pack.training.team import Team
from pack.training.trainer import RunFolder, Trainer
from pack.training.validation import held_out_loss
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from tests.training.tiny_flux import saved_flux, tiny_flux

pytestmark = pytest.mark.host

SIDE, COUNT = 64, 4


class SmallPictures:
    """16 channels: averaged 8 x 8 blocks, brighter and darker."""

    identity = "small"

    def __call__(self, image: Image.Image) -> Tensor:
        small = F.avg_pool2d(pixels_of(image)[None], 8)[0]
        return torch.cat([small, *(small * 0.5**n for n in range(1, 5)), small[:1]])


class LetterPrompts:
    """Random numbers fixed by the words."""

    identity = "letters"

    def __call__(self, prompt: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(sum(prompt.encode()))
        return {"context": torch.randn(5, 16, generator=draw), "pooled": torch.randn(8, generator=draw)}


def encoded(folder: Path, config: RunConfig) -> RunFolder:
    """Samples of the sticker pipeline in the run's cache; most of them belong to another task."""
    drawn = recipe_for(SIDE, SIDE, seed=3, tasks=("extract_attribute", "recolour"))
    dataset = open_dataset(generate(Job(folder=folder / "data", count=8 * COUNT, part_size=64, config=drawn)))
    place = RunFolder(folder=folder / "run", cache=folder / "cache")
    work = Encoding(
        config=config,
        plan=KontextFamily().encode_plan(config),
        resolution=SIDE,
        cache=TensorCache(place.cache),
        encode_picture=SmallPictures(),
        encode_prompt=LetterPrompts(),
    )
    entries = encode_dataset(work, dataset, place.manifest(SIDE), lambda done, total: None)
    assert COUNT <= len(entries) < len(dataset)
    for entry in entries:
        assert entry.task == "extract_attribute"
        assert any(word in entry.instruction for word in ("colour", "pattern", "material"))
        assert "the given image" in entry.instruction
        assert len(entry.references) == 1 and not entry.has_source
    return place


def test_an_extraction_lora_learns_and_loads(tmp_path: Path) -> None:
    from pack.model_loaders.lora_check import bare_kontext, unmatched_keys

    base = saved_flux(tmp_path, tiny_flux())
    config = lora_run(
        name="extraction",
        family="kontext",
        task="extract",
        base={"transformer": str(base)},
        preset="hobby",
        chosen=Overrides(steps=40, learning_rate=3e-3, resolution=SIDE, precision="fp32"),
        seed=0,
    )
    config = dataclasses.replace(
        config,
        optimizer=OptimizerConfig(schedule="cosine"),
        output=OutputConfig(checkpoint_every=1000, sample_every=0),
    )
    place = encoded(tmp_path, config)
    session = Session(config, KontextFamily(), torch.device("cpu"))
    trainer = Trainer(session, place, Team(), lambda event: None, lambda: False)
    store = SampleStore(read_manifest(place.manifest(SIDE)), TensorCache(place.cache))
    samples = range(len(store.entries))
    before = held_out_loss(session, store, samples, trainer.team)
    assert trainer.run() == "finished"
    assert held_out_loss(session, store, samples, trainer.team) < 0.8 * before

    lora = place.folder / "exports" / "last.safetensors"
    assert unmatched_keys(lora, bare_kontext([base])) == []
    with safe_open(lora, "pt") as file:
        facts = file.metadata()
    assert (facts["dreamomni.task"], facts["dreamomni.positions"]) == ("extract", "index+offset")

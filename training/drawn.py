"""Samples drawn when they are needed, straight from a recipe of the sticker pipeline: no dataset, no cache.

For networks that read pixels and words as they are. B batch, C channels, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor

from .cache import content_key
from .encode import SampleEntry
from .families.base import CachedSample
from .files import write_json
from .samples import SampleStore
from .synthesis.config import SynthesisConfig
from .synthesis.generate import config_from_json
from .synthesis.render import Canvas
from .synthesis.samples import Sample, Synthesizer
from .synthesis.scene import to_json


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnSamples:
    """`count` samples of a recipe, seen in their order; an epoch is one pass over them.

    The first `easy_count` of them are drawn by an easier recipe: a new network learns there what words mean.
    """

    config: SynthesisConfig
    count: int
    easy: SynthesisConfig | None = None
    easy_count: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if not 0 <= self.easy_count <= self.count or (self.easy_count and self.easy is None):
            raise ValueError(
                f"easy_count must lie in 0..{self.count} and needs an easy recipe, got {self.easy_count}"
            )

    def write(self, path: Path) -> None:
        """Store the recipe where a run finds it."""
        easy = {"easy_count": self.easy_count, "easy": to_json(self.easy)} if self.easy is not None else {}
        write_json(path, {"count": self.count, "config": to_json(self.config), **easy})

    def fingerprint(self) -> str:
        """A hash of every setting."""
        easy = self.easy.fingerprint() if self.easy is not None else ""
        return content_key(self.config.fingerprint(), str(self.count), easy, str(self.easy_count))


def read_drawn(path: Path) -> DrawnSamples:
    """The recipe that `DrawnSamples.write` stored."""
    values = json.loads(path.read_text(encoding="utf-8"))
    easy = config_from_json(values["easy"]) if "easy" in values else None
    return DrawnSamples(
        config=config_from_json(values["config"]),
        count=values["count"],
        easy=easy,
        easy_count=values.get("easy_count", 0),
    )


class DrawnEntries(Sequence[SampleEntry]):
    """Entries by number; what a sample holds is known only once it is drawn."""

    def __init__(self, samples: DrawnSamples) -> None:
        self.samples, self.recipe = samples, samples.fingerprint()[:16]

    def __len__(self) -> int:
        return self.samples.count

    @overload
    def __getitem__(self, index: int) -> SampleEntry: ...
    @overload
    def __getitem__(self, index: slice) -> list[SampleEntry]: ...
    def __getitem__(self, index: int | slice) -> SampleEntry | list[SampleEntry]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} samples, got number {index}")
        number, config = index % len(self), self.samples.config
        return SampleEntry(
            id=f"{number:08d}",
            task="",
            instruction="",
            target=f"{self.recipe}-{number:08d}",
            references=[],
            prompts={},
            shapes=[[3, config.height, config.width]],
        )


class DrawnStore(SampleStore):
    """Draws the samples of a recipe; every sample is the same whenever it is drawn."""

    in_order = True

    def __init__(self, samples: DrawnSamples) -> None:
        super().__init__(DrawnEntries(samples), None)
        self.synthesizer = Synthesizer(samples.config)
        self.easy = Synthesizer(samples.easy) if samples.easy is not None else self.synthesizer
        self.easy_count = samples.easy_count

    def read(self, index: int, variant: str = "full") -> CachedSample:
        """Sample `index`; without its words or its pictures where `variant` says so."""
        bare = variant in ("no_references", "no_condition")
        drawn = (self.easy if index < self.easy_count else self.synthesizer).sample(index)
        pictures = () if bare else pictures_of(drawn)
        return CachedSample(
            id=drawn.id,
            task=drawn.plan.task,
            instruction=drawn.plan.instruction if variant in ("full", "no_references") else "",
            target=pixels(drawn.target),
            references=pictures,
            prompt={},
            mask=None if drawn.mask is None else torch.from_numpy(drawn.mask.astype(np.float32))[None],
            has_source=drawn.source is not None and not bare,
            reference_pixels=pictures,
        )

    def shapes(self) -> list[list[list[int]]]:
        """Shapes of a target with a source and of one reference, for an estimate of memory."""
        config = self.synthesizer.config
        canvas, square = [3, config.height, config.width], [3, config.reference_size, config.reference_size]
        return [[canvas, canvas, square]]


def pixels(picture: Canvas) -> Tensor:
    """RGB (3, H, W) in -1..1 of (H, W, 3) uint8."""
    return torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1).contiguous()


def pictures_of(sample: Sample) -> tuple[Tensor, ...]:
    """Source first, then the references, each (3, H, W) in -1..1."""
    shown = [*([sample.source] if sample.source is not None else []), *sample.references]
    return tuple(pixels(picture) for picture in shown)

"""A dataset that is drawn while it is read: nothing on disk, the same samples as the written one."""

from __future__ import annotations

import json
from collections.abc import Iterator

from PIL import Image

from ..dataset import EditSample
from .config import SynthesisConfig
from .samples import Synthesizer


class SyntheticDataset:
    """Samples 0 to `count` - 1 of a recipe, with the interface of `EditDataset`."""

    def __init__(self, config: SynthesisConfig, count: int) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.config = config
        self.count = count
        self._synthesizer = Synthesizer(config)
        self.fingerprint = f"{config.fingerprint()}-{self._synthesizer.library.fingerprint()[:16]}-{count}"

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[EditSample]:
        return (self[index] for index in range(self.count))

    def __getitem__(self, index: int) -> EditSample:
        if not -self.count <= index < self.count:
            raise IndexError(f"the recipe has the samples 0 to {self.count - 1}, got {index}")
        sample = self._synthesizer.sample(index % self.count)
        plan, picture = sample.plan, Image.fromarray
        return EditSample(
            source=None if sample.source is None else picture(sample.source),
            references=tuple(picture(canvas) for canvas in sample.references),
            instruction=plan.instruction,
            task=plan.task,
            target=picture(sample.target),
            mask=None if sample.mask is None else picture(sample.mask).convert("L"),
            id=sample.id,
            mode="generate" if sample.source is None else "edit",
            scene=json.loads(json.dumps(sample.scene)),
        )

"""Fills the cache: every picture and prompt of a dataset once, with encoders the caller hands in."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..dit.sizes import DEFAULT_SIZE, kontext_bucket, shown_size
from .answers import lesson
from .cache import TensorCache, content_key, encoded_picture_key, prompt_key
from .config import RunConfig
from .dataset import EditDataset, EditSample
from .families.base import PROMPT_VARIANTS, EncodePlan
from .files import write_text

log = logging.getLogger("dreamomni")

ASPECT_LIMIT = 4.0
MASK_REDUCTION = 8
RECORDS_BETWEEN = 256
"""Records parsed from one look for a cancel to the next."""


class PictureEncoder(Protocol):
    """Turns a picture into what the network sees, (C, H, W)."""

    identity: str

    def __call__(self, image: Image.Image) -> Tensor: ...


class PromptEncoder(Protocol):
    """Turns words (and pictures, where it sees them) into named tensors without a batch axis."""

    identity: str

    def __call__(self, prompt: str, images: Sequence[Image.Image]) -> dict[str, Tensor]: ...


@runtime_checkable
class ModalPromptEncoder(PromptEncoder, Protocol):
    """A prompt encoder that reads the words of edit and generate samples differently."""

    def for_mode(self, mode: str) -> PromptEncoder: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleEntry:
    """Where a sample's encoded parts lie in the cache; one JSON line of a manifest."""

    id: str
    task: str
    instruction: str
    target: str
    references: list[str]
    prompts: dict[str, str]
    """Variant (full, no_caption, ...) -> key."""
    shapes: list[list[int]]
    """Shape of the target, then of each reference."""
    origin: str = ""
    """Hash of the target as the dataset has it: the same at every resolution and with every encoder."""
    content: str = ""
    """Hash of all pictures and words as the dataset has them."""
    mask: str | None = None
    has_source: bool = False
    reference_pixels: list[str] = field(default_factory=list)


def bucket_size(width: int, height: int, resolution: int, multiple: int) -> tuple[int, int]:
    """(width, height) of area about resolution^2 nearest in aspect ratio, sides multiples of `multiple`.

    Widths go in steps of about resolution / 16, so that pictures of similar shape share a bucket.
    """
    step = max(multiple, round(resolution / 16 / multiple) * multiple)
    aspect = min(max(width / height, 1 / ASPECT_LIMIT), ASPECT_LIMIT)
    square = max(multiple, round(resolution / multiple) * multiple)
    sizes = [(square, square)]
    for side in range(step, int(resolution * math.sqrt(ASPECT_LIMIT)) + step, step):
        other = max(step, round(resolution**2 / side / step) * step)
        sizes += [(side, other), (other, side)]
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1] / aspect)), size))


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """RGB of exactly `size` (width, height), Lanczos, without crop."""
    plain = image if image.mode in ("RGB", "L") else image.convert("RGB")
    return plain if plain.size == size else plain.resize(size, Image.Resampling.LANCZOS)


def pixels_of(image: Image.Image) -> Tensor:
    """RGB (3, H, W) in -1..1."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1).permute(2, 0, 1).clone()


def mask_of(image: Image.Image) -> Tensor:
    """(1, H / 8, W / 8) in 0..1: the share of each place that the edit changes."""
    size = (max(1, image.width // MASK_REDUCTION), max(1, image.height // MASK_REDUCTION))
    small = image.convert("L").resize(size, Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, np.float32) / 255)[None].clone()


def belongs_to_task(sample_mode: str, sample_task: str, task: str) -> bool:
    """Whether a run for `task` uses a sample; `extract` samples are told by their own task name."""
    if task == "all":
        return True
    if task == "extract" or sample_task.startswith("extract"):
        return sample_task.startswith("extract") == (task == "extract")
    return sample_mode == task


def require_finite(tensors: Mapping[str, Tensor], sample: str, maker: str) -> None:
    """Raise ValueError when an encoder made a number that is none: a single one spoils a whole run."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ValueError(
            f"sample {sample}: {maker} made numbers that are infinite or no number (NaN). Half precision is "
            f"the usual cause: run {maker} in bf16 or fp32 (ComfyUI's --bf16-vae, --fp32-vae, "
            "--bf16-text-enc, --fp32-text-enc) and queue again."
        )


def used_variants(config: RunConfig) -> list[str]:
    """Prompt variants that the run's dropout rates can choose."""
    objective = config.objective
    rates = (1.0, objective.caption_dropout, objective.reference_dropout, objective.condition_dropout)
    return [variant for variant, rate in zip(PROMPT_VARIANTS, rates, strict=True) if rate > 0]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Everything needed to encode the samples of one stage."""

    config: RunConfig
    plan: EncodePlan
    resolution: int
    cache: TensorCache
    encode_picture: PictureEncoder
    encode_prompt: PromptEncoder

    def picture(self, image: Image.Image, sample: str) -> tuple[str, list[int]]:
        """(key, shape) of an encoded picture of final size; `sample` is named in errors."""
        key = encoded_picture_key(image, self.encode_picture.identity)
        if key in self.cache:
            try:
                return key, self.cache.shape(key)
            except ValueError as error:  # damaged, so it is made anew while the picture is at hand
                log.warning("%s; it is encoded anew", error)
        encoded = {"latent": self.encode_picture(image)}
        require_finite(encoded, sample, "the VAE")
        self.cache.write(key, encoded)
        return key, self.cache.shape(key)

    def stored(self, image: Image.Image, kind: str, make: Callable[[Image.Image], Tensor]) -> str:
        """Key of pixels or a mask kept as they are."""
        key = encoded_picture_key(image, kind)
        if key not in self.cache:
            self.cache.write(key, {"latent": make(image)})
        return key

    def prompt(self, text: str, images: Sequence[Image.Image], sample: EditSample) -> str:
        """Key of an encoded prompt; pictures count only where the encoder sees them."""
        seen = list(images) if self.plan.prompt_sees_images else []
        encode = self.encode_prompt
        if isinstance(encode, ModalPromptEncoder):
            encode = encode.for_mode(sample.mode)
        key = prompt_key(text, [encoded_picture_key(image, "seen") for image in seen], encode.identity)
        if key not in self.cache:
            encoded = encode(text, seen)
            require_finite(encoded, sample.id, "the text encoder")
            self.cache.write(key, encoded)
        return key

    def bucket(self, image: Image.Image, resolution: int) -> tuple[int, int]:
        """(width, height) that a picture is encoded at."""
        if self.plan.asked_sizes:
            return shown_size(*image.size, resolution)
        if self.plan.kontext_sizes and resolution == DEFAULT_SIZE[0]:
            return kontext_bucket(*image.size)
        return bucket_size(*image.size, resolution, self.plan.size_multiple)

    def sizes(self, sample: EditSample) -> tuple[tuple[int, int], list[tuple[int, int]]]:
        """(target size, size of the source and of each reference), each picture in its own bucket."""
        target = self.bucket(sample.target, self.resolution)
        side = self.config.reference_side(self.resolution)
        pictures = [*([sample.source] if sample.source else []), *sample.references]
        sizes = [self.bucket(picture, side) for picture in pictures]
        if sample.source is not None and self.plan.source_follows_target:
            sizes[0] = target
        return target, sizes

    def sample(self, sample: EditSample) -> SampleEntry:
        """Encode one sample; what the cache holds already is not encoded again."""
        target_size, sizes = self.sizes(sample)
        pictures = [*([sample.source] if sample.source else []), *sample.references]
        # A translator's are small copies of Kontext's in use: to the pixel the same while it is taught.
        large = [resized(p, kontext_bucket(*p.size)) for p in pictures] if self.plan.asked_sizes else pictures
        references = [resized(picture, size) for picture, size in zip(large, sizes, strict=True)]
        target, shape = self.picture(resized(sample.target, target_size), sample.id)
        encoded = [self.picture(picture, sample.id) for picture in references]
        seen = pictures if self.plan.prompt_sees_originals else references
        is_lesson = self.plan.prompt_encoding == "answers"
        tagged = sample.tagged_instruction if self.plan.prompt_encoding == "processor" else None
        words = lesson(sample) if is_lesson else tagged or sample.instruction
        texts = {
            "full": (words, seen),
            "no_caption": (self.plan.dropped_caption, seen),
            "no_references": (sample.instruction, []),
            "no_condition": (self.plan.dropped_caption, []),
        }
        mask = self.stored(resized(sample.mask, target_size), "mask", mask_of) if sample.mask else None
        keep = references if self.plan.keep_pixels else []
        origin, *others = [encoded_picture_key(picture, "origin") for picture in (sample.target, *pictures)]
        return SampleEntry(
            id=sample.id,
            task=sample.task,
            instruction=sample.instruction,
            target=target,
            references=[key for key, _ in encoded],
            prompts={variant: self.prompt(*texts[variant], sample) for variant in used_variants(self.config)},
            shapes=[shape, *(size for _, size in encoded)],
            origin=origin,
            content=content_key(sample.task, words, origin, *others),
            mask=mask,
            has_source=sample.source is not None,
            reference_pixels=[self.stored(picture, "pixels", pixels_of) for picture in keep],
        )


def chosen_indices(dataset: EditDataset, task: str, between: Callable[[], None] | None = None) -> list[int]:
    """Indices of the samples that a run for `task` uses; ValueError when there are none.

    Every record is parsed, which takes minutes for a million; `between`, called every so often, may raise.
    """
    chosen, modes = [], set()
    for index in range(len(dataset)):
        if between is not None and index % RECORDS_BETWEEN == 0:
            between()
        record = dataset.record(index)  # not kept: a million of them would not fit in memory
        modes.add(f"{record.mode}/{record.task}")
        if belongs_to_task(record.mode, record.task, task):
            chosen.append(index)
    if not chosen:
        raise ValueError(
            f"the dataset has no samples for task {task!r}; it has {', '.join(sorted(modes)) or 'none'}. "
            "Choose another task or another dataset."
        )
    return chosen


def encode_dataset(
    encoding: Encoding, dataset: EditDataset, manifest: Path, report: Callable[[int, int], None]
) -> list[SampleEntry]:
    """Encode the samples of the run's task and write the manifest; `report(done, total)` may raise."""
    chosen = chosen_indices(dataset, encoding.config.task, lambda: report(0, len(dataset)))
    entries = []
    for done, index in enumerate(chosen):
        report(done, len(chosen))
        entries.append(encoding.sample(dataset[index]))
    report(len(chosen), len(chosen))
    write_text(manifest, "".join(json.dumps(asdict(entry)) + "\n" for entry in entries))
    return entries


def read_manifest(path: Path) -> list[SampleEntry]:
    """The entries of a manifest, in order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [SampleEntry(**json.loads(line)) for line in lines if line]

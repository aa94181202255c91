"""Samples of a manifest: read from the cache when needed, in an order that depends on seed and step only."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import torch

from .cache import TensorCache
from .config import ObjectiveConfig, ValidationConfig
from .encode import SampleEntry
from .families.base import CachedSample
from .timesteps import slot_generator

KEPT_BYTES = 1 << 30


def split_held_out(entries: Sequence[SampleEntry], config: ValidationConfig) -> tuple[list[int], list[int]]:
    """(training, held-out) indices; held out by hash of the target: equal ones together, at every resolution.

    Nothing is held out when the share would be smaller than `smallest_split`.
    """
    wanted = min(round(len(entries) * config.fraction), config.largest_split)
    if wanted < config.smallest_split:
        return list(range(len(entries))), []
    groups: dict[str, list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        name = entry.origin or entry.target
        groups[hashlib.sha256(f"held out {name}".encode()).hexdigest()].append(index)
    held: list[int] = []
    for _, group in sorted(groups.items()):
        if len(held) + len(group) <= wanted:
            held += group
    kept = sorted(set(range(len(entries))) - set(held))
    if len(held) < config.smallest_split or not kept:
        return list(range(len(entries))), []
    return kept, sorted(held)


class StepOrder:
    """Which samples each optimizer step sees: every epoch a new shuffle, similar shapes side by side.

    Without `shuffled` every epoch is the given order, from sample `first` on.
    """

    def __init__(
        self,
        shapes: Sequence[object],
        seed: int,
        stage: int,
        batch_size: int,
        per_step: int,
        shuffled: bool = True,
        first: int = 0,
    ) -> None:
        self.shapes, self.seed, self.stage, self.shuffled = list(shapes), seed, stage, shuffled
        self.first = first
        self.batch_size, self.per_step = batch_size, per_step
        self._epoch = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> list[int]:
        if not self.shuffled:
            return list(range(len(self.shapes)))
        generator = slot_generator(self.seed, epoch, self.stage, "order")
        buckets: dict[object, list[int]] = defaultdict(list)
        for index in torch.randperm(len(self.shapes), generator=generator).tolist():
            buckets[self.shapes[index]].append(index)
        chunks = [
            bucket[start : start + self.batch_size]
            for bucket in buckets.values()
            for start in range(0, len(bucket), self.batch_size)
        ]
        mixed = torch.randperm(len(chunks), generator=generator).tolist()
        return [index for chunk in mixed for index in chunks[chunk]]

    def batch(self, step: int) -> list[int]:
        """Positions (into `shapes`) of the samples of step `step` of the stage, from 0."""
        first = self.first + step * self.per_step
        count = len(self.shapes)
        return [self._epoch(at // count)[at % count] for at in range(first, first + self.per_step)]


def drawn_variant(config: ObjectiveConfig, generator: torch.Generator) -> str:
    """Which of the prompt variants dropout chooses for a sample."""
    draw = torch.rand((), generator=generator).item()
    for variant, rate in (
        ("no_caption", config.caption_dropout),
        ("no_references", config.reference_dropout),
        ("no_condition", config.condition_dropout),
    ):
        if draw < rate:
            return variant
        draw -= rate
    return "full"


class SampleStore:
    """Reads samples of one manifest from the cache; the next ones are fetched while the network works.

    What has been read stays in memory until `KEPT_BYTES` are full.
    """

    in_order = False
    """Whether the samples are meant to be seen in their order; others are shuffled."""

    def __init__(self, entries: Sequence[SampleEntry], cache: TensorCache | None) -> None:
        self.entries, self.cache = entries, cache
        self._kept: dict[str, dict[str, torch.Tensor]] = {}
        self._room = KEPT_BYTES
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dreamomni-samples")
        self._pending: dict[tuple[int, str], Future[CachedSample]] = {}

    def tensors(self, key: str) -> dict[str, torch.Tensor]:
        """A cache entry, from memory or disk."""
        if key in self._kept:
            return self._kept[key]
        assert self.cache is not None
        tensors = self.cache.read(key)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if size <= self._room:
            self._kept[key] = tensors
            self._room -= size
        return tensors

    def read(self, index: int, variant: str = "full") -> CachedSample:
        """Sample `index` with its prompt and references as `variant` has them."""
        entry = self.entries[index]
        bare = variant in ("no_references", "no_condition")

        def latent(key: str) -> torch.Tensor:
            return self.tensors(key)["latent"]

        return CachedSample(
            id=entry.id,
            task=entry.task,
            instruction=entry.instruction if variant in ("full", "no_references") else "",
            target=latent(entry.target),
            references=() if bare else tuple(latent(key) for key in entry.references),
            prompt=self.tensors(entry.prompts[variant]),
            mask=latent(entry.mask) if entry.mask else None,
            has_source=entry.has_source and not bare,
            reference_pixels=() if bare else tuple(latent(key) for key in entry.reference_pixels),
        )

    def shapes(self) -> list[list[list[int]]]:
        """Shapes of target and references of every sample, for an estimate of memory."""
        return [entry.shapes for entry in self.entries]

    def prompt_lengths(self, part: str) -> list[int]:
        """First axis of a tensor of every sample's prompt; nothing where there is no tensor or no cache."""
        if not part or self.cache is None:
            return []
        return [self.cache.shape(entry.prompts["full"], part)[0] for entry in self.entries]

    def prefetch(self, wanted: Sequence[tuple[int, str]]) -> None:
        """Start reading (index, variant) pairs in the background."""
        for key in wanted:
            if key not in self._pending:
                self._pending[key] = self._pool.submit(self.read, *key)

    def take(self, index: int, variant: str) -> CachedSample:
        """A sample, prefetched or not."""
        pending = self._pending.pop((index, variant), None)
        return pending.result() if pending is not None else self.read(index, variant)

    def close(self) -> None:
        """Stop the background reader."""
        self._pool.shutdown(wait=True, cancel_futures=True)

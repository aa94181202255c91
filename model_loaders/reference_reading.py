"""Reading kept references in every call of the network: finding them, and taking their tokens out.

Shapes: B batch, L tokens, C channels, h w latent grid.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..dit.content import tensor_key
from ..dit.positions import latent_grid
from ..dit.reference_cache import (
    OVERRIDE,
    KeptReference,
    Offset,
    ReferenceReader,
    split_ids,
    stream_references,
)
from ..dit.reference_stream import BlockStream, Lane, lane_for
from .reference_writing import WritingPass
from .run_references import same_latents

log = logging.getLogger("dreamomni")


def without_references(tokens: dict[str, Any], count: int) -> dict[str, Any]:
    """What a `post_input` patch was given, cut to the `count` tokens of the target."""
    # Newer ComfyUI tells the blocks how many tokens are references. Other patches would cut that many again,
    # and compiled blocks would be compiled anew for every number of references.
    tokens.get("transformer_options", {}).pop("reference_image_num_tokens", None)
    return {**tokens, "img": tokens["img"][:, :count], "img_ids": tokens["img_ids"][:, :count]}


@dataclass
class RunReader:
    """The references of the present run, and the way to them from the calls of the network."""

    writing: WritingPass
    run: dict[str, KeptReference] = field(default_factory=dict)
    """Content of a latent -> what it left; only during a run."""
    seen: list[tuple[list[Tensor], list[list[KeptReference]]]] = field(default_factory=list)
    """Reference latents that calls of this run came with; comparing is much cheaper than hashing."""
    weights_are_patched: bool = False
    """Whether LoRAs that the references must not see are on the weights during the run."""
    lane: Lane | None = None
    stream: tuple[object, BlockStream] | None = None
    """What brings references from system memory during a run, and what it was made for."""

    def forget(self) -> None:
        """Drop what belongs to a run."""
        self.run.clear()
        self.seen.clear()
        self.lane = self.stream = None

    def reading(self, x: Tensor, latents: list[Tensor], options: dict[str, Any]) -> dict[str, Any]:
        """The transformer options of a call for x (B, C, h, w): its references are read and cut out."""
        first = latent_grid(*x.shape[-2:], self.writing.network.patch_size).num_tokens
        reader = ReferenceReader([], [], options.get(OVERRIDE))
        patches = options.get("patches", {})
        after = [*patches.get("post_input", []), self.cutter(reader, first, latents, options)]
        return {**options, OVERRIDE: reader, "patches": {**patches, "post_input": after}}

    def cutter(
        self, reader: ReferenceReader, first: int, latents: list[Tensor], options: dict[str, Any]
    ) -> Callable[[dict], dict]:
        """A patch that takes the references out of the tokens and tells the reader where they were."""
        patch = self.writing.network.patch_size
        lengths = [latent_grid(*latent.shape[-2:], patch).num_tokens for latent in latents]

        def cut(tokens: dict[str, Any]) -> dict[str, Any]:
            places = split_ids(tokens["img_ids"][0, first:].cpu(), lengths)
            reader.references = self.entries(latents, places, options)
            reader.offsets = [offset for _, offset in places]
            reader.stream = self.stream_for(reader.references, reader.offsets, tokens["img"].device)
            return without_references(tokens, first)

        return cut

    def stream_for(
        self, references: Sequence[Sequence[KeptReference]], offsets: list[Offset], device: torch.device
    ) -> BlockStream | None:
        """The stream of these references, the same from call to call so that a step ends with fetching."""
        if self.stream is not None and self.stream[0] == (references, offsets):
            return self.stream[1]
        self.lane = self.lane or lane_for(device)
        stream = stream_references(references, offsets, device, self.lane)
        self.stream = None if stream is None else ((references, offsets), stream)
        return stream

    def entries(
        self, latents: list[Tensor], places: Sequence[tuple[Tensor, Offset]], options: dict[str, Any]
    ) -> list[list[KeptReference]]:
        """One entry per reference and batch item, for the latents (each B, C, h, w) of one call."""
        for known, entries in self.seen:
            if same_latents(known, latents) and all(
                torch.equal(entry.geometry, geometry)
                for items, (geometry, _) in zip(entries, places, strict=True)
                for entry in items
            ):
                return entries
        fresh: dict[str, KeptReference] = {}
        entries = [
            [self.find(item[None], *place, options, fresh) for item in latent]
            for latent, place in zip(latents, places, strict=True)
        ]
        self.seen.append(([latent.clone() for latent in latents], entries))
        return entries

    def find(
        self, latent: Tensor, geometry: Tensor, offset: Offset, options: dict[str, Any], fresh: dict
    ) -> KeptReference:
        """The entry of one latent (1, C, h, w), written for this run alone if it was not announced."""
        content = tensor_key(latent[0])
        entry = self.run.get(content) or fresh.get(content)
        if entry is not None and torch.equal(entry.geometry, geometry):
            return entry
        if self.weights_are_patched:
            log.warning("a reference changed during the run: it is read with the LoRAs on it")
        fresh[content] = self.writing.write(latent, offset, geometry + torch.tensor(offset), options)
        return fresh[content]

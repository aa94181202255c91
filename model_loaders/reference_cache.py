"""References at almost no cost on any Flux MODEL: written once, read by every step of every run.

Three wrappers on a clone: before the model is loaded for a run the missing references are written (with the
base weights, as the exact training preset does), every call of the network reads them, and after the run the
cache forgets what belonged to it. What is kept lies in the model's ReferenceStore.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import comfy.model_management as management
from comfy.patcher_extension import WrappersMP

from ..dit.content import tensor_key
from ..dit.positions import PositionScheme, latent_grid, reference_placements
from ..dit.reference_branch import REFERENCE_GUIDANCE, REFERENCE_POOLED, REFERENCE_SIGMA
from ..dit.reference_cache import (
    OVERRIDE,
    KeptReference,
    Offset,
    ReferenceReader,
    ReferenceWriter,
    split_ids,
    stream_references,
)
from ..dit.reference_stream import BlockStream, Lane, lane_for
from .patches import flux_network
from .reference_store import ReferenceKey, ReferenceStore, Same, store_of, store_patcher

log = logging.getLogger("dreamomni")
KEY = "dreamomni_reference_cache"
WRAPPERS = (WrappersMP.OUTER_SAMPLE, WrappersMP.PREPARE_SAMPLING, WrappersMP.DIFFUSION_MODEL)
MOVED_NOTE = "not enough GPU memory for the references: kept in system memory, steps are slower"
NUM_TEXT = 1
"""Text tokens of the writing pass; the network needs one, the reference does not see it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSettings:
    """How references are kept."""

    precision: str = "bf16"
    """bf16 keeps the model's own number type, 8bit half of it."""
    lora_on_references: bool = False
    """Whether LoRAs act on the reference branch; the exact training preset leaves it to the base."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}; choose {' or '.join(PRECISIONS)}")

    @property
    def quantise(self) -> bool:
        """Whether 8 bit are kept."""
        return self.precision == "8bit"


PRECISIONS = ("bf16", "8bit")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One reference of a run: a latent (1, C, h, w) as the network gets it, and where it will probably be."""

    latent: Tensor
    offset: Offset


@dataclass
class ExactCache:
    """The references of the present run, found in the store or written into it."""

    network: Any
    settings: CacheSettings
    report: Callable[[str], None] = log.info
    run: dict[str, KeptReference] = field(default_factory=dict)
    """Content of a latent -> what it left; only during a run."""
    seen: list[tuple[list[Tensor], list[list[KeptReference]]]] = field(default_factory=list)
    """Reference latents that calls of this run came with; comparing is much cheaper than hashing."""
    weights_are_patched: bool = False
    lane: Lane | None = None
    stream: tuple[object, BlockStream] | None = None
    """What brings references from system memory during a run, and what it was made for."""

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Forget the run when it ends, also by an error or Cancel."""
        try:
            return executor(*args, **kwargs)
        finally:
            self.run.clear()
            self.seen.clear()
            self.lane = self.stream = None

    def prepare_sampling(
        self, executor: Any, model: Any, noise_shape: Any, conds: dict, *args: Any, **kwargs: Any
    ) -> Any:
        """Write what is missing before the model is loaded for the run."""
        options = kwargs.get("model_options") or (args[0] if args else None) or model.model_options
        self.run.clear()
        self.seen.clear()
        self.weights_are_patched = has_loras(model) and not self.settings.lora_on_references
        self.fill(model, wanted_references(model, conds), options.get("transformer_options", {}))
        return executor(model, noise_shape, conds, *args, **kwargs)

    def fill(self, model: Any, wanted: Sequence[Wanted], options: dict[str, Any]) -> None:
        """Put every wanted reference into the run, writing those the store does not have."""
        if not wanted:
            return
        store = store_of(model)
        missing: dict[ReferenceKey, Wanted] = {}
        keys = {tensor_key(item.latent[0]): item for item in wanted}
        by_content = {content: self.key(model, content, options) for content in keys}
        for content, key in by_content.items():
            if store.find(key) is None:
                missing[key] = keys[content]
        store.shrink(set(by_content.values()))
        moved = bool(missing) and self.write_missing(model, store, missing, options)
        self.run = {content: store.entries[key] for content, key in by_content.items()}
        size = sum(entry.num_bytes for entry in self.run.values()) / 2**20
        text = f"references: {len(missing)} written, {len(keys) - len(missing)} reused, {size:.0f} MB kept"
        # At once: a node shows its latest text only.
        self.report(f"{text}\n{MOVED_NOTE}" if moved else text)

    def key(self, model: Any, content: str, options: dict[str, Any]) -> ReferenceKey:
        """What must be the same for a kept reference to be read again."""
        added, beside = (model.patches, injections(model)) if self.settings.lora_on_references else ({}, {})
        injected = [(name, *map(Same, items)) for name, items in sorted(beside.items())]
        replaced = [
            (name, Same(value))
            for name, value in sorted(model.object_patches.items(), key=lambda item: item[0])
            if name != "model_sampling"  # changes sigmas, not the network
        ]
        weights = (model.patches_uuid if added else None, *injected, *replaced)
        return ReferenceKey(content, weights, Same(options.get(OVERRIDE)), self.settings.precision)

    def write_missing(
        self, model: Any, store: ReferenceStore, missing: dict[ReferenceKey, Wanted], options: dict[str, Any]
    ) -> bool:
        """Load the weights the reference branch uses and write. True if it was written to system memory."""
        writer = model if self.settings.lora_on_references else without_patches(model)
        shape = max((item.latent.shape for item in missing.values()), key=lambda size: size[-1] * size[-2])
        needed = sum(kept_bytes(self.network, item.latent, self.settings) for item in missing.values())
        working = model.memory_required(shape)
        management.load_models_gpu([writer, *model.get_additional_models()], memory_required=needed + working)
        full = management.get_free_memory(model.load_device) < needed + working
        target = model.offload_device if full else None
        for key, item in missing.items():
            management.throw_exception_if_processing_interrupted()
            latent = item.latent.to(model.load_device)
            entry = None
            try:
                entry = self.write(latent, item.offset, None, options, target)
            except management.OOM_EXCEPTION:
                target = model.offload_device
            if entry is None:
                # Not in the handler: the error holds on to what the pass had made.
                management.soft_empty_cache()
                entry = self.write(latent, item.offset, None, options, target)
            store.add(key, entry)
        return target is not None and target != model.load_device

    def write(
        self,
        latent: Tensor,
        offset: Offset,
        geometry: Tensor | None,
        options: dict[str, Any],
        device: torch.device | None = None,
    ) -> KeptReference:
        """One pass over a latent (1, C, h, w) alone, at its fixed time, guidance and pooled text."""
        network, params = self.network, self.network.params
        entry = KeptReference(torch.empty(0), offset, tuple(params.axes_dim), float(params.theta))
        place = placer(entry, geometry)
        attention = ReferenceWriter(entry, NUM_TEXT, self.settings.quantise, options.get(OVERRIDE), device)
        time = torch.full((1,), REFERENCE_SIGMA, device=latent.device)
        with torch.no_grad():
            network(
                latent,
                time,
                latent.new_zeros(1, NUM_TEXT, params.context_in_dim),
                latent.new_full((1, params.vec_in_dim), REFERENCE_POOLED),
                latent.new_full((1,), REFERENCE_GUIDANCE),
                transformer_options={OVERRIDE: attention, "patches": {"post_input": [place]}},
            )
        return entry

    def diffusion_model(
        self,
        executor: Callable[..., Tensor],
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        guidance: Tensor | None = None,
        ref_latents: Sequence[Tensor] | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **more: Any,
    ) -> Tensor:
        """One call of the network; the references are embedded for their positions only."""
        options = transformer_options or {}
        if ref_latents:
            first = latent_grid(*x.shape[-2:], self.network.patch_size).num_tokens
            reader = ReferenceReader([], [], options.get(OVERRIDE))
            cut = self.cutter(reader, first, list(ref_latents), options)
            patches = options.get("patches", {})
            after = [*patches.get("post_input", []), cut]
            options = {**options, OVERRIDE: reader, "patches": {**patches, "post_input": after}}
        return executor(x, timestep, context, y, guidance, ref_latents, control, options, **more)

    def cutter(
        self, reader: ReferenceReader, first: int, latents: list[Tensor], options: dict[str, Any]
    ) -> Callable[[dict], dict]:
        """A patch that takes the references out of the tokens and tells the reader where they were."""
        lengths = [latent_grid(*latent.shape[-2:], self.network.patch_size).num_tokens for latent in latents]

        def cut(tokens: dict[str, Any]) -> dict[str, Any]:
            places = split_ids(tokens["img_ids"][0, first:].cpu(), lengths)
            reader.references = self.entries(latents, places, options)
            reader.offsets = [offset for _, offset in places]
            reader.stream = self.stream_for(reader.references, reader.offsets, tokens["img"].device)
            return {**tokens, "img": tokens["img"][:, :first], "img_ids": tokens["img_ids"][:, :first]}

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
        fresh[content] = self.write(latent, offset, geometry + torch.tensor(offset), options)
        return fresh[content]


def placer(entry: KeptReference, ids: Tensor | None) -> Callable[[dict], dict]:
    """A patch that puts the written picture at the entry's offset, or at the given ids (L, 3)."""

    def place(tokens: dict[str, Any]) -> dict[str, Any]:
        own = tokens["img_ids"]
        placed = own + own.new_tensor(entry.offset) if ids is None else ids[None].to(own)
        entry.geometry = (placed[0] - placed[0, 0]).cpu()
        return {**tokens, "img_ids": placed}

    return place


def same_latents(known: Sequence[Tensor], latents: Sequence[Tensor]) -> bool:
    """Whether two lists of latents are equal in number, type and every value."""
    return len(known) == len(latents) and all(
        one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
        for one, other in zip(known, latents, strict=True)
    )


def kept_bytes(network: Any, latent: Tensor, settings: CacheSettings) -> int:
    """Memory the keys and values of a latent (1, C, h, w) will take."""
    return int(num_values(network, latent) * (1.04 if settings.quantise else latent.element_size()))


def num_values(network: Any, latent: Tensor) -> int:
    """Numbers in the keys and values of all layers for a latent (..., h, w)."""
    layers = len(network.double_blocks) + len(network.single_blocks)
    tokens = latent_grid(*latent.shape[-2:], network.patch_size).num_tokens
    return 2 * tokens * layers * network.hidden_size


def injections(model: Any) -> dict[str, list[Any]]:
    """What other nodes put beside the network's layers while it is loaded, by its name."""
    return {name: items for name, items in model.injections.items() if items}


def has_loras(model: Any) -> bool:
    """Whether LoRAs change the network: added to its weights, or beside them as newer hosts can."""
    return bool(model.patches or injections(model))


def without_patches(model: Any) -> Any:
    """A clone with the base weights: no LoRA, everything else as it is."""
    if not has_loras(model):
        return model
    base = model.clone()
    base.patches, base.injections, base.is_injected = {}, {}, False
    base.patches_uuid = type(model.patches_uuid)(int=model.patches_uuid.int ^ 1)  # other weights, other id
    return base


def wanted_references(model: Any, conds: dict[str, Any]) -> list[Wanted]:
    """Every reference of every conditioning, as ComfyUI will hand it to the network."""
    return [item for group in conds.values() for cond in group for item in cond_references(model, cond)]


def cond_references(model: Any, cond: dict[str, Any]) -> Iterator[Wanted]:
    """The references of one conditioning, batch items apart, at the places of DreamOmni2's encoding."""
    latents = [latent for latent in cond.get("reference_latents") or [] if latent.ndim == 4]
    patch = model.get_model_object("diffusion_model").patch_size
    grids = [latent_grid(*latent.shape[-2:], patch) for latent in latents]
    places = reference_placements(grids, PositionScheme.INDEX_OFFSET)
    dtype = inference_dtype(model)
    for latent, place in zip(latents, places, strict=True):
        for item in model.model.process_latent_in(latent).to(dtype):
            yield Wanted(item[None], (float(place.index), 0.0, float(place.column)))


def inference_dtype(model: Any) -> torch.dtype:
    """The number type a ModelPatcher's network computes in."""
    # From the ModelPatcher: another node's number type is in the network only while the model is loaded.
    return model.get_model_object("manual_cast_dtype") or model.model.get_dtype()


def attach_reference_cache(
    model: Any, settings: CacheSettings, report: Callable[[str], None] = log.info
) -> Any:
    """A clone of the ModelPatcher whose references attend to themselves only and are computed once.

    `report` hears what each run wrote, reused and keeps. Raises ValueError for anything but FLUX.1.
    """
    cache = ExactCache(flux_network(model, "the reference cache"), settings, report)
    patched = detach_reference_cache(model)
    patched.set_additional_models(KEY, [store_patcher(model)])
    for kind, wrapper in zip(
        WRAPPERS, (cache.outer_sample, cache.prepare_sampling, cache.diffusion_model), strict=True
    ):
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched


def detach_reference_cache(model: Any) -> Any:
    """A clone without any reference cache."""
    plain = model.clone()
    plain.remove_additional_models(KEY)
    for kind in WRAPPERS:
        plain.remove_wrappers_with_key(kind, KEY)
    return plain

"""References at almost no cost on any Flux MODEL: written once, read by every step of every run.

Before the model is loaded for a run the missing references are written (with the base weights, as the exact
training preset does), every call of the network reads them, and after the run the cache forgets what belonged
to it. What is kept lies in the model's ReferenceStore.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..dit.content import tensor_key
from ..dit.reference_cache import OVERRIDE
from .base_weights import has_loras, injections
from .patches import flux_network
from .reference_reading import RunReader
from .reference_store import ReferenceKey, Same, check_one_gpu, store_of, store_patcher
from .reference_writing import CacheSettings, WritingPass
from .run_references import Wanted, wanted_references

log = logging.getLogger("dreamomni")
KEY = "dreamomni_reference_cache"
PURPOSE = "the reference cache"
MOVED_NOTE = "not enough GPU memory for the references: kept in system memory, steps are slower"
NONE_NOTE = "no references in this run: nothing written, nothing read"


class ExactCache:
    """The references of the present run, found in the store or written into it."""

    def __init__(self, model: Any, settings: CacheSettings, report: Callable[[str], None] = log.info) -> None:
        self.settings, self.report = settings, report
        self.own = weakref.ref(model.model)
        self.writing = WritingPass(flux_network(model, PURPOSE), settings)
        self.reader = RunReader(self.writing)

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Forget the run when it ends, also by an error or Cancel."""
        try:
            return executor(*args, **kwargs)
        finally:
            self.reader.forget()
            self.reader.writing = self.writing

    def prepare_sampling(
        self, executor: Any, model: Any, noise_shape: Any, conds: dict, *args: Any, **kwargs: Any
    ) -> Any:
        """Write what is missing before the model is loaded for the run."""
        check_one_gpu(model)
        options = kwargs.get("model_options") or (args[0] if args else None) or model.model_options
        self.reader.forget()
        self.follow(model)
        self.reader.weights_are_patched = has_loras(model) and not self.settings.lora_on_references
        self.fill(model, wanted_references(model, conds), options.get("transformer_options", {}))
        return executor(model, noise_shape, conds, *args, **kwargs)

    def follow(self, model: Any) -> None:
        """Write and read with the network of this run, and have ComfyUI count its references.

        For hooks, newer hosts sample another one of the same file, whose MODEL carries this one's wrappers.
        """
        if model.model is self.own():
            # Not looked up again: by now another node may have put something else in the network's place.
            self.reader.writing = self.writing
            return
        self.reader.writing = WritingPass(flux_network(model, PURPOSE), self.settings)
        model.set_additional_models(KEY, [store_patcher(model)])

    def fill(self, model: Any, wanted: Sequence[Wanted], options: dict[str, Any]) -> None:
        """Put every wanted reference into the run, writing those the store does not have."""
        if not wanted:
            self.report(NONE_NOTE)
            return
        store = store_of(model)
        missing: dict[ReferenceKey, Wanted] = {}
        keys = {tensor_key(item.latent[0]): item for item in wanted}
        by_content = {content: self.key(model, content, options) for content in keys}
        for content, key in by_content.items():
            if store.find(key) is None:
                missing[key] = keys[content]
        store.shrink(set(by_content.values()))
        moved = bool(missing) and self.reader.writing.write_missing(model, store, missing, options)
        run = self.reader.run = {content: store.entries[key] for content, key in by_content.items()}
        size = sum(entry.num_bytes for entry in run.values()) / 2**20
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
            options = self.reader.reading(x, list(ref_latents), options)
        return executor(x, timestep, context, y, guidance, ref_latents, control, options, **more)

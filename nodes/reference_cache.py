"""References that are computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

from ..model_loaders.base_weights import has_loras
from ..model_loaders.reference_cache import (
    attach_reference_cache,
    attach_stock_cache,
    detach_reference_cache,
)
from ..model_loaders.reference_writing import PRECISIONS, CacheSettings
from ..model_loaders.stock_cache import StockSettings
from .notes import show_note
from .schema import node_input, node_schema
from .types import CATEGORY

MODES = ("exact", "stock", "off")
LORA_NOTE = "LoRA found: exact is for LoRAs trained with 'references for less'; others lose likeness."
EXACT_NOTE = "exact: references are computed once, when a run begins."
OFF_NOTE = "off: nothing is kept."
STOCK_NOTE = "stock mode is an approximation; compare with off before you rely on it."


class ReferenceCache(io.ComfyNode):
    """Chooses how references are computed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        defaults = StockSettings()
        return node_schema(
            node_id="DreamOmniReferenceCache",
            display_name="Reference Cache",
            category=f"{CATEGORY}/model",
            description="Computes reference images once instead of in every step, for any Kontext MODEL. "
            "Place it after the LoRAs. It changes the picture unless the LoRA was trained for it.",
            search_aliases=["kv cache", "FluxKVCache", "faster references", "klein kv"],
            inputs=[
                node_input(io.Model, "model", tooltip="A FLUX.1 Kontext MODEL; the input is not changed."),
                node_input(
                    io.Combo,
                    "mode",
                    options=list(MODES),
                    tooltip="exact: for LoRAs of Train LoRA's preset 'references for less'; computed once "
                    "for all steps, seeds and prompts. stock: an approximation for other weights; while it "
                    "samples it keeps 2.9 GB for each reference of 1024x1024, twice with a negative prompt. "
                    "off: no cache.",
                ),
                node_input(
                    io.Combo,
                    "precision",
                    options=list(PRECISIONS),
                    tooltip="Of what exact keeps. bf16: the model's own precision, 2.9 GB for each reference "
                    "of 1024x1024. 8bit: half of that.",
                ),
                node_input(
                    io.Boolean,
                    "lora_on_references",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="exact: let LoRAs act on the references too. Off as in the training preset; "
                    "turn it on for merged models, which would lose their merge there.",
                ),
                node_input(
                    io.Int,
                    "warm_up",
                    default=defaults.warm_up,
                    min=1,
                    max=100,
                    optional=True,
                    advanced=True,
                    tooltip="stock: steps in full at the start.",
                ),
                node_input(
                    io.Int,
                    "refresh_every",
                    default=defaults.refresh_every,
                    min=1,
                    max=100,
                    optional=True,
                    advanced=True,
                    tooltip="stock: after the warm-up every n-th step runs in full; 1 = all of them.",
                ),
            ],
            outputs=[io.Model.Output("model_out", display_name="model")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        mode: str,
        precision: str,
        lora_on_references: bool = False,
        warm_up: int = StockSettings().warm_up,
        refresh_every: int = StockSettings().refresh_every,
    ) -> io.NodeOutput:
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; choose one of {', '.join(MODES)}")
        if mode == "off":
            show_note(cls, OFF_NOTE)
            return io.NodeOutput(detach_reference_cache(model))
        if mode == "stock":
            show_note(cls, STOCK_NOTE)
            settings = StockSettings(warm_up=warm_up, refresh_every=refresh_every)
            return io.NodeOutput(attach_stock_cache(model, settings, reporter(cls, STOCK_NOTE)))
        return io.NodeOutput(attach_exact(cls, model, precision, lora_on_references))


def attach_exact(node: type[io.ComfyNode], model: Any, precision: str, lora_on_references: bool) -> Any:
    """The model with the exact cache, whose runs report on the node."""
    settings = CacheSettings(precision=precision, lora_on_references=lora_on_references)
    if not has_loras(model):
        show_note(node, EXACT_NOTE)
        return attach_reference_cache(model, settings, reporter(node))
    show_note(node, LORA_NOTE)
    return attach_reference_cache(model, settings, reporter(node, LORA_NOTE))


def reporter(node: type[io.ComfyNode], *always: str) -> Callable[[str], None]:
    """Shows what a run tells together with what holds for every run, as a node shows its latest text only."""
    return lambda text: show_note(node, "\n".join((text, *always)))


NODES = [ReferenceCache]

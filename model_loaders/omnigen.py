"""An OmniGen folder as a ComfyUI MODEL and its processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import comfy.patcher_extension
import comfy.utils

from ..dit.omnigen.config import OmniGenConfig
from ..dit.omnigen.folder import OmniGenFiles, find_files, network_weights, read_config
from ..dit.omnigen.prefix_cache import CacheSettings
from .omnigen_model import CACHE_KEY, CACHE_OPTION, OmniGenModelConfig
from .omnigen_processor import OmniGenProcessor, load_processor
from .patcher import make_patcher
from .prefix_patcher import count_prefixes
from .weight_dtypes import WEIGHT_DTYPES, storage_and_compute

NO_FP16 = (
    "OmniGen cannot run in fp16: its activations overflow and the picture turns black (the authors say so "
    "too). Use bf16, or fp32 on cards without bf16; fp8 weights are fine, they are computed in one of these."
)


def read_weights(files: OmniGenFiles, config: OmniGenConfig) -> dict[str, Tensor]:
    """The network's tensors, mapped from disk; raises on any other set of tensors."""
    weights: dict[str, Tensor] = {}
    for path in files.weights:
        weights.update(comfy.utils.load_torch_file(str(path), safe_load=True))
    return network_weights(weights, config)


def chosen_dtypes(weights: dict[str, Tensor], weight_dtype: str) -> tuple[torch.dtype, torch.dtype | None]:
    """(storage dtype, compute dtype or None for the same) by ComfyUI's rules; ValueError for fp16."""
    if weight_dtype not in WEIGHT_DTYPES:
        reason = NO_FP16 if weight_dtype == "fp16" else f"allowed are {', '.join(WEIGHT_DTYPES)}"
        raise ValueError(f"weight_dtype {weight_dtype!r}: {reason}")
    supported = OmniGenModelConfig.supported_inference_dtypes
    storage, compute = storage_and_compute(weights, WEIGHT_DTYPES[weight_dtype], supported)
    if torch.float16 in (storage, compute):
        raise ValueError(NO_FP16)
    return storage, compute


def follow_runs(patcher: Any) -> None:
    """Let the prefix cache know when a run starts, and free it whenever ComfyUI unloads the model.

    A detach that keeps the weights where they are only makes way for a clone of the same model. Each time the
    cache is asked of the patcher that calls: newer hosts make one with another network and these callbacks.
    """
    events = comfy.patcher_extension.CallbacksMP

    def started(patcher: Any) -> None:
        patcher.model.prefix_cache.start_run()

    def detached(patcher: Any, unpatch_all: bool = True) -> None:
        if unpatch_all:
            patcher.model.prefix_cache.clear()

    patcher.add_callback_with_key(events.ON_PRE_RUN, CACHE_KEY, started)
    patcher.add_callback_with_key(events.ON_DETACH, CACHE_KEY, detached)


def set_prefix_cache(patcher: Any, settings: CacheSettings) -> None:
    """Keep the prefix this way in runs of this MODEL and its clones."""
    patcher.model_options.setdefault("transformer_options", {})[CACHE_OPTION] = settings


def load_omnigen(
    folder: Path, weight_dtype: str, cache: CacheSettings | None = None
) -> tuple[Any, OmniGenProcessor]:
    """(ModelPatcher, processor) of an OmniGen folder; raises on missing files and on another model's."""
    files = find_files(folder)
    config = read_config(files.config)
    processor = load_processor(files.tokenizer, config)
    return load_patcher(folder, weight_dtype, cache or CacheSettings()), processor


def load_patcher(folder: Path, weight_dtype: str, cache: CacheSettings, disable_dynamic: bool = False) -> Any:
    """The ModelPatcher alone; newer hosts call it again to make one of another kind."""
    files = find_files(folder)
    config = read_config(files.config)
    weights = read_weights(files, config)
    model_config = OmniGenModelConfig({"config": config, "image_model": "omnigen"})
    model_config.set_inference_dtype(*chosen_dtypes(weights, weight_dtype))
    again = (load_patcher, (folder, weight_dtype, cache))
    patcher = make_patcher(model_config, weights, again, disable_dynamic)
    follow_runs(patcher)
    count_prefixes(patcher)
    set_prefix_cache(patcher, cache)
    patcher.model.cache_settings = cache
    return patcher

"""The two caches for references on a MODEL: wrappers around its runs and its network's calls, on a clone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import WrappersMP

from .exact_cache import KEY, PURPOSE, ExactCache
from .patches import flux_network
from .reference_store import store_patcher
from .reference_writing import CacheSettings
from .stock_cache import StockCache, StockSettings

log = logging.getLogger("dreamomni")
WRAPPERS = (WrappersMP.OUTER_SAMPLE, WrappersMP.PREPARE_SAMPLING, WrappersMP.DIFFUSION_MODEL)


def attach_reference_cache(
    model: Any, settings: CacheSettings, report: Callable[[str], None] = log.info
) -> Any:
    """A clone of the ModelPatcher whose references attend to themselves only and are computed once.

    `report` hears what each run wrote, reused and keeps. Raises ValueError for anything but FLUX.1.
    """
    patched = with_cache(model, ExactCache(model, settings, report))
    patched.set_additional_models(KEY, [store_patcher(model)])
    return patched


def attach_stock_cache(model: Any, settings: StockSettings, report: Callable[[str], None] = log.info) -> Any:
    """A clone of the ModelPatcher that reuses references between steps.

    `report` hears when their memory does not suffice. Raises ValueError for anything but FLUX.1.
    """
    return with_cache(model, StockCache(flux_network(model, PURPOSE), settings, report))


def with_cache(model: Any, cache: ExactCache | StockCache) -> Any:
    """A clone whose runs and calls go through one cache, in place of an earlier one."""
    patched = detach_reference_cache(model)
    wrappers = (cache.outer_sample, cache.prepare_sampling, cache.diffusion_model)
    for kind, wrapper in zip(WRAPPERS, wrappers, strict=True):
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched


def detach_reference_cache(model: Any) -> Any:
    """A clone without any reference cache."""
    plain = model.clone()
    plain.remove_additional_models(KEY)
    for kind in WRAPPERS:
        plain.remove_wrappers_with_key(kind, KEY)
    return plain

"""Reference Cache with ComfyUI's SkipLayerGuidance: a second pass of a step with blocks left out.

The picture does not move and the network does not see time here, so what references left in one step is what
they leave in the next. A cached run must then give the very run without a cache, unless one pass reads what
another noted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cached_runs import cached, close, reference, store
from tiny_flux import tiny_conditioning, tiny_flux
from torch import Tensor

pytestmark = pytest.mark.host
ONE, TWO = reference(6, 8, 5), reference(4, 10, 6)
SIGMAS = torch.linspace(1, 0.5, 7)
FULL, CUT = 24 + 12 + 10, 24
"""Tokens of the picture and of both references, and of the picture alone."""


@pytest.fixture
def model() -> Any:
    """A Flux of two and two blocks that does not see time."""
    patcher = tiny_flux()
    last = patcher.model.diffusion_model.time_in.out_layer
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    return patcher


def stock(model: Any, warm_up: int = 2, refresh_every: int = 100) -> Any:
    from pack.model_loaders.reference_cache import attach_stock_cache
    from pack.model_loaders.stock_cache import StockSettings

    return attach_stock_cache(model, StockSettings(warm_up=warm_up, refresh_every=refresh_every))


def skip_layers(model: Any, simple: bool = False, double: str = "1", single: str = "0") -> Any:
    """ComfyUI's node; it leaves out one double and one single block."""
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple

    layers = {"double_layers": double, "single_layers": single, "start_percent": 0.0, "end_percent": 1.0}
    if simple:
        return SkipLayerGuidanceDiTSimple.execute(model, **layers).args[0]
    return SkipLayerGuidanceDiT.execute(model, scale=3.0, **layers).args[0]


def velocities(model: Any, cfg: float) -> list[Tensor]:
    """The guided velocity of each step, by a sampler that leaves the picture where it is."""
    import comfy.sample
    import comfy.samplers

    found: list[Tensor] = []

    def still(guided: Any, x: Tensor, sigmas: Tensor, extra_args: dict, *_: Any, **__: Any) -> Tensor:
        for sigma in sigmas[:-1]:
            found.append((x - guided(x, sigma * x.new_ones(len(x)), **extra_args)) / sigma)
        return x

    conds = [tiny_conditioning(seed, reference_latents=[ONE, TWO]) for seed in (0, 1)]
    noise = torch.randn(1, 16, 8, 12, generator=torch.manual_seed(3))
    sampler = comfy.samplers.KSAMPLER(still)
    comfy.sample.sample_custom(model, noise, cfg, sampler, SIGMAS.clone(), *conds, 0 * noise, seed=3)
    return found


def token_counts(model: Any) -> list[int]:
    """Picture tokens of every pass through the first block, which nobody leaves out."""
    seen: list[int] = []
    model.model.diffusion_model.double_blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["img"].shape[1]), with_kwargs=True
    )
    return seen


def same(results: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(results, expected, strict=True):
        close(one, other, 1e-4)


@pytest.mark.parametrize(("simple", "cfg"), [(False, 1.0), (False, 2.5), (True, 2.5)])
def test_every_pass_of_stock_reads_what_it_noted_itself(model: Any, simple: bool, cfg: float) -> None:
    plain, without = velocities(skip_layers(model, simple), cfg), velocities(model, cfg)
    assert float((plain[0] - without[0]).norm() / without[0].norm()) > 0.1
    seen = token_counts(model)
    same(velocities(skip_layers(stock(model), simple), cfg), plain)
    # Two passes in each of six steps; the first two steps are full.
    assert seen == [FULL] * 4 + [CUT] * 8


@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_two_guidances_that_skip_other_layers(model: Any, cfg: float) -> None:
    target = skip_layers(skip_layers(model), double="0 1")
    plain = velocities(target, cfg)
    seen = token_counts(model)
    same(velocities(skip_layers(skip_layers(stock(model)), double="0 1"), cfg), plain)
    # The third pass of each step leaves out the block that counts.
    assert seen == [FULL] * 4 + [CUT] * 8


def replaced(model: Any, block: int, function: Callable[[dict, dict], dict]) -> Any:
    """A clone with another node's function in place of a double block, in every pass."""
    patched = model.clone()
    patched.set_model_patch_replace(function, "dit", "double_block", block)
    return patched


def doubled(args: dict, extra: dict) -> dict:
    """Another node's way with a block: compute it, and change what it gives."""
    out = extra["original_block"](args)
    return {**out, "img": 2 * out["img"]}


def test_a_block_replaced_in_both_passes(model: Any) -> None:
    """The block that the guidance leaves out is another node's too, so that both passes replace it."""
    layers = {"double": "1", "single": ""}
    plain = velocities(skip_layers(replaced(model, 1, doubled), **layers), 2.5)
    seen = token_counts(model)
    same(velocities(skip_layers(replaced(stock(model), 1, doubled), **layers), 2.5), plain)
    assert seen == [FULL] * 4 + [CUT] * 8


def test_a_function_that_is_made_anew_for_every_pass_keeps_its_notes(model: Any) -> None:
    from comfy.model_patcher import set_model_options_patch_replace
    from comfy.samplers import calc_cond_batch

    def guide(args: dict) -> Tensor:
        def skip(values: dict, _: dict) -> dict:
            return values

        options = set_model_options_patch_replace(
            args["model_options"].copy(), skip, "dit", "double_block", 1
        )
        (less,) = calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        return args["denoised"] + 3 * (args["cond_denoised"] - less)

    def guided(target: Any) -> Any:
        patched = target.clone()
        patched.set_model_sampler_post_cfg_function(guide)
        return patched

    plain = velocities(guided(model), 2.5)
    seen = token_counts(model)
    same(velocities(guided(stock(model)), 2.5), plain)
    assert seen == [FULL] * 4 + [CUT] * 8


def test_a_block_that_runs_where_it_was_left_out_before(model: Any) -> None:
    """Like a node that leaves a block out in some steps only: what was not noted is computed."""

    def sometimes() -> Callable[[dict, dict], dict]:
        steps = iter([True, True, False, False, False, False, False])
        return lambda args, extra: args if next(steps) else extra["original_block"](args)

    plain = velocities(replaced(model, 1, sometimes()), 1.0)
    seen = token_counts(model)
    result = velocities(replaced(stock(model), 1, sometimes()), 1.0)
    same(result, plain)
    # The third step finds nothing noted by the block and is made again, in full.
    assert seen == [FULL] * 2 + [CUT, FULL] + [CUT] * 3


def test_the_exact_cache_reads_past_skipped_layers(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From system memory too, where the block that does not come was sent for."""
    from direct_lane import DirectLane
    from pack.dit.stored_tensor import StoredTensor
    from pack.model_loaders import reference_reading

    seen = token_counts(model)
    target = skip_layers(cached(model))
    direct = velocities(target, 2.5)
    assert seen == [12, 10] + [CUT] * 12
    monkeypatch.setattr(StoredTensor, "is_away", lambda *_: True)
    monkeypatch.setattr(reference_reading, "lane_for", lambda _: DirectLane())
    same(velocities(target, 2.5), direct)
    assert store(model).written == 2

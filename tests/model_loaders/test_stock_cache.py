"""The memory of references that are kept from step to step: asked for beforehand, and done without."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cached_runs import reference, sampled
from full_device import full_error
from tiny_flux import tiny_conditioning, tiny_flux
from torch import Tensor

pytestmark = pytest.mark.host
ONE, TWO = reference(6, 8, 5), reference(4, 10, 6)
SIGMAS = torch.linspace(1, 0, 6)
LAYER_BYTES = 2 * 32 * 4
"""Keys and values of one token in one layer: 32 channels of 4 bytes."""


@pytest.fixture
def model() -> Any:
    return tiny_flux()


def stock(model: Any, heard: list[str] | None = None, warm_up: int = 2) -> Any:
    from pack.model_loaders.reference_cache import attach_stock_cache
    from pack.model_loaders.stock_cache import StockSettings

    report = print if heard is None else heard.append
    return attach_stock_cache(model, StockSettings(warm_up=warm_up, refresh_every=100), report)


def cache_of(target: Any) -> Any:
    """The cache behind the wrappers of a MODEL."""
    from pack.model_loaders.reference_cache import KEY

    from comfy.patcher_extension import WrappersMP

    return target.wrappers[WrappersMP.DIFFUSION_MODEL][KEY][0].__self__


def kept_bytes(cache: Any) -> int:
    layers = [layer for noted in cache.notes.kept.values() for layer in noted.layers.values()]
    return sum(part.nbytes for layer in layers for part in layer)


@pytest.mark.parametrize(("negative", "batch"), [(False, 1), (False, 3), (True, 2)])
def test_the_memory_of_the_notes_is_asked_for(
    model: Any, monkeypatch: pytest.MonkeyPatch, negative: bool, batch: int
) -> None:
    import comfy.model_management as management
    import comfy.sample

    asked: list[tuple[float, float]] = []
    kept: list[int] = []
    load = management.load_models_gpu

    def loaded(models: Any, memory_required: float = 0, **more: Any) -> None:
        asked.append((memory_required, more["minimum_memory_required"]))
        load(models, memory_required=memory_required, **more)

    def run(target: Any) -> None:
        conds = [tiny_conditioning(seed, reference_latents=[ONE, TWO]) for seed in (0, 1)]
        noise = torch.randn(batch, 16, 8, 12, generator=torch.manual_seed(0))
        comfy.sample.sample(
            target, noise, 4, 2.0 if negative else 1.0, "euler", "simple", *conds, 0 * noise, seed=0
        )

    target = stock(model)
    cache = cache_of(target)
    block = model.model.diffusion_model.final_layer
    block.register_forward_hook(lambda *_: kept.append(kept_bytes(cache)))
    monkeypatch.setattr(management, "load_models_gpu", loaded)
    monkeypatch.setattr(model.model, "memory_required", lambda input_shape, **_: math.prod(input_shape))
    run(model)
    run(target)
    (plain, plain_least), (more, least) = asked
    branches = 2
    needed = 4 * LAYER_BYTES * (12 + 10) * batch * branches
    row = batch * 16 * 12
    assert needed <= least - plain_least < needed + row
    assert more - plain >= needed
    # Without guidance ComfyUI leaves the negative branch out.
    assert max(kept) == (needed if negative else needed // branches)


def test_no_references_ask_for_nothing(model: Any) -> None:
    from pack.model_loaders.stock_cache import noted_bytes, shape_with_room

    conds = {"positive": [{"cross_attn": None}, {"reference_latents": []}]}
    assert noted_bytes(model, model.model.diffusion_model, conds, 1) == 0
    assert shape_with_room(model, (1, 16, 8, 12), 0) == [1, 16, 8, 12]


@pytest.mark.parametrize(("calls", "kind"), [(0, "class"), (2, "class"), (6, "class"), (6, "code")])
def test_out_of_memory_means_full_steps_and_is_told(
    model: Any, monkeypatch: pytest.MonkeyPatch, calls: int, kind: str
) -> None:
    """Four attentions note in each full step; the next one finds the memory full."""
    from pack.model_loaders import stock_cache

    real, done, heard = stock_cache.StepRecorder.__call__, [], []
    error = full_error(kind, monkeypatch)
    noted: list[int] = []

    def full(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        if len(done) >= calls:
            raise error
        done.append(1)
        return real(self, *args, **kwargs)

    plain = sampled(model, [ONE, TWO], sigmas=SIGMAS)
    target = stock(model, heard)
    cache = cache_of(target)
    model.model.diffusion_model.final_layer.register_forward_hook(
        lambda *_: noted.append(len(cache.notes.kept))
    )
    with monkeypatch.context() as limited:
        limited.setattr(stock_cache.StepRecorder, "__call__", full)
        assert torch.equal(sampled(target, [ONE, TWO], sigmas=SIGMAS), plain)
    assert heard == [stock_cache.FULL_NOTE]
    assert noted == [1] * (calls // 4) + [0] * (5 - calls // 4)
    # The next run tries again.
    assert not torch.equal(sampled(target, [ONE, TWO], sigmas=SIGMAS), plain)
    assert len(heard) == 1


def test_out_of_memory_without_notes_is_an_error(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management

    def full(*_: Any, **__: Any) -> Tensor:
        raise management.OOM_EXCEPTION("CUDA out of memory")

    monkeypatch.setattr(model.model.diffusion_model.final_layer, "forward", full)
    with pytest.raises(management.OOM_EXCEPTION):
        sampled(stock(model, []), [ONE], sigmas=SIGMAS)


def test_a_full_step_that_another_cache_skips_is_made_up_for(model: Any) -> None:
    """Like EasyCache behind ours: it answers with an earlier velocity, and the network notes nothing."""
    from comfy.patcher_extension import WrappersMP

    def skipping(full_steps: int) -> Any:
        answers: list[Tensor] = []

        def skip(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
            answers.append(answers[0] if len(answers) == 1 else executor(*args, **kwargs))
            return answers[-1]

        target = stock(model, warm_up=full_steps)
        target.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "behind", skip)
        return target

    block, tokens = model.model.diffusion_model.double_blocks[0], []
    hook = block.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append(kwargs["img"].shape[1]), with_kwargs=True
    )
    out = sampled(skipping(2), [ONE, TWO], sigmas=SIGMAS)
    hook.remove()
    # 24 of the picture, 12 and 10 of the references: the second step is skipped, so the third is full.
    assert tokens == [46, 46, 24, 24]
    assert torch.equal(out, sampled(skipping(3), [ONE, TWO], sigmas=SIGMAS))


def test_conditionings_that_are_computed_apart_leave_no_second_notes(model: Any) -> None:
    cache = cache_of(stock(model))
    x = torch.zeros(2, 16, 8, 12)
    for uuids in (["a", "b"], ["c"], ["a"], ["b"]):
        cache.with_references([ONE], x, {"uuids": uuids})
    assert [branch.conds for branch in cache.notes.kept] == [("c",), ("a",), ("b",)]


def test_other_passes_of_a_conditioning_keep_their_notes_but_not_without_end(model: Any) -> None:
    """As a node would leave them that replaces other blocks in every step."""
    cache, x = cache_of(stock(model)), torch.zeros(1, 16, 8, 12)
    for number in (0, 1, 0, 2, 3, 4):
        places = {("single_block", number): lambda args, _: args}
        cache.with_references([ONE], x, {"uuids": ["a"], "patches_replace": {"dit": places}})
        cache.with_references([ONE], x, {"uuids": ["b"]})
    kept = [(branch.conds, [number for (_, number), _ in branch.replaced]) for branch in cache.notes.kept]
    assert kept == [(("a",), [2]), (("a",), [3]), (("a",), [4]), (("b",), [])]

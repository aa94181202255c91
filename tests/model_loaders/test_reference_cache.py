"""The exact reference cache against the masked model without cache, in ComfyUI's real sampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cached_runs import cached, close, masked_sample, reference, sampled, store
from tiny_flux import tiny_conditioning, tiny_flux
from torch import Tensor

pytestmark = pytest.mark.host

ONE, TWO, THREE = reference(6, 8, 5), reference(4, 10, 6), reference(9, 7, 7)
FOUR = reference(6, 8, 8)


@pytest.fixture
def model() -> Any:
    return tiny_flux()


def lora(model: Any, seed: int = 0, strength: float = 1.0, part: str = "double_blocks.0.img_attn.qkv") -> Any:
    """A clone with a weight patch, as LoraLoader leaves it."""
    name = f"diffusion_model.{part}.weight"
    shape = model.model.state_dict()[name].shape
    change = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    patched = model.clone()
    assert patched.add_patches({name: ("diff", (change,))}, strength) == [name]
    return patched


@pytest.mark.parametrize(
    ("references", "offsets"),
    [
        ([ONE], [(1, 0, 0)]),
        ([ONE, TWO], [(1, 0, 0), (2, 0, 4)]),
        ([ONE, TWO, THREE], [(1, 0, 0), (2, 0, 4), (3, 0, 9)]),
        ([THREE, ONE, THREE], [(1, 0, 0), (2, 0, 4), (3, 0, 8)]),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_equal_to_the_masked_model(model: Any, references: list, offsets: list, batch: int) -> None:
    close(
        sampled(cached(model), references, batch=batch),
        masked_sample(model, references, offsets, batch=batch),
    )


@pytest.mark.parametrize("size", [(4, 4), (7, 5), (16, 8)])
def test_equal_at_other_sizes(model: Any, size: tuple[int, int]) -> None:
    out = sampled(cached(model), [ONE, TWO], size=size)
    close(out, masked_sample(model, [ONE, TWO], [(1, 0, 0), (2, 0, 4)], size=size))


@pytest.mark.parametrize(
    ("scheme", "offsets"),
    [
        ("index+offset", [(1, 0, 0), (2, 0, 4)]),
        ("index", [(1, 0, 0), (2, 0, 0)]),
        ("offset", [(1, 0, 0), (1, 0, 4)]),
        ("none", [(1, 0, 0), (1, 0, 0)]),
        (None, [(1, 0, 0), (1, 3, 0)]),
    ],
)
def test_equal_in_every_position_encoding(model: Any, scheme: str | None, offsets: list) -> None:
    """Without our encoding ComfyUI's own method places the second reference below the first."""
    close(sampled(cached(model, scheme), [ONE, TWO]), masked_sample(model, [ONE, TWO], offsets))


def test_the_cache_may_stand_before_or_after_the_encoding(model: Any) -> None:
    from pack.dit.positions import PositionScheme
    from pack.model_loaders.patches import attach_position_encoding
    from pack.model_loaders.reference_cache import attach_reference_cache
    from pack.model_loaders.reference_writing import CacheSettings

    placed = attach_position_encoding(model, PositionScheme.INDEX_OFFSET)
    close(
        sampled(attach_reference_cache(placed, CacheSettings()), [ONE, TWO]),
        sampled(cached(model), [ONE, TWO]),
    )


def test_it_differs_from_full_attention(model: Any) -> None:
    """Otherwise every comparison here would pass with the cache off."""
    plain, kept = sampled(model, [ONE]), sampled(cached(model, None), [ONE])
    assert float((plain - kept).abs().max() / plain.abs().max()) > 1e-2


def test_without_references_the_model_is_untouched(model: Any) -> None:
    assert torch.equal(sampled(cached(model), []), sampled(model, []))
    assert not store(model).entries


def test_batch_items_have_their_own_reference(model: Any) -> None:
    pair = reference(6, 8, 20, batch=2)
    out = sampled(cached(model), [pair, TWO], batch=2)
    close(out, masked_sample(model, [pair, TWO], [(1, 0, 0), (2, 0, 4)], batch=2))
    assert len(store(model).entries) == 3


@pytest.mark.parametrize(
    ("other", "words", "together", "written"),
    [(FOUR, 7, False, 2), (FOUR, 6, True, 2), (ONE, 7, False, 1), (ONE, 6, True, 1)],
)
def test_both_branches_of_ksampler(
    model: Any, other: Tensor, words: int, together: bool, written: int
) -> None:
    """References of one size, the same in both branches or not; ComfyUI computes 6 and 7 words apart."""
    import comfy.sample

    seen: list[tuple[int, int]] = []
    model.model.diffusion_model.double_blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["img"].shape[:2]), with_kwargs=True
    )
    conds = [
        tiny_conditioning(0, 6, reference_latents=[ONE]),
        tiny_conditioning(1, words, reference_latents=[other]),
    ]
    noise = torch.randn(1, 16, 8, 12, generator=torch.manual_seed(3))
    out = comfy.sample.sample(cached(model), noise, 1, 2.5, "euler", "simple", *conds, 0 * noise, seed=3)
    assert seen == [(1, 12)] * written + ([(2, 24)] if together else [(1, 24)] * 2)
    assert store(model).written == written
    step, place = torch.tensor([1.0, 0.0]), [(1, 0, 0)]
    positive = masked_sample(model, [ONE], place, seed=3, sigmas=step)
    negative = masked_sample(model, [other], place, seed=3, sigmas=step, prompt=1, tokens=words)
    close(out, negative + 2.5 * (positive - negative))


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "ipndm", "uni_pc"])
def test_the_samplers_of_comfyui_reuse_and_repeat(model: Any, sampler: str) -> None:
    target = cached(model)
    first = sampled(target, [ONE, TWO], sampler=sampler)
    assert store(model).written == 2
    assert torch.equal(sampled(target, [ONE, TWO], sampler=sampler), first)
    assert store(model).written == 2


def count_calls(model: Any) -> list[int]:
    """Token counts that went through the first block of the network, one for each pass."""
    seen: list[int] = []
    block = model.model.diffusion_model.double_blocks[0]
    block.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["img"].shape[1]), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize(
    "change", [{"seed": 9}, {"prompt": 4}, {"guidance": 1.0}, {"size": (6, 6)}, {"batch": 2}]
)
def test_references_are_paid_once(model: Any, change: dict) -> None:
    target, seen = cached(model), count_calls(model)
    sampled(target, [ONE, TWO])
    # 12 and 10 reference tokens once, then 24 tokens of the picture in each of three steps.
    assert seen == [12, 10, 24, 24, 24]
    seen.clear()
    sampled(target, [ONE, TWO], **change)
    tokens = 9 if "size" in change else 24
    assert seen == [tokens] * 3


def test_another_order_costs_a_rotation_only(model: Any) -> None:
    target, seen = cached(model), count_calls(model)
    sampled(target, [ONE, TWO])
    seen.clear()
    out = sampled(target, [TWO, ONE])
    assert seen == [24] * 3
    close(out, masked_sample(model, [TWO, ONE], [(1, 0, 0), (2, 0, 5)]))


def test_a_lora_on_everything_equals_the_masked_model_with_it(model: Any) -> None:
    import comfy.model_management

    plain = sampled(cached(model, lora_on_references=True), [ONE, TWO])
    target = cached(lora(model), lora_on_references=True)
    out = sampled(target, [ONE, TWO])
    # The weights still hold the LoRA: it is merged while the model is loaded.
    close(out, masked_sample(model, [ONE, TWO], [(1, 0, 0), (2, 0, 4)]))
    comfy.model_management.unload_all_models()
    close(plain, masked_sample(model, [ONE, TWO], [(1, 0, 0), (2, 0, 4)]))
    assert float((plain - out).abs().max()) > 1e-2


def test_a_lora_leaves_the_references_to_the_base(model: Any) -> None:
    """As in the exact training preset: the LoRA changes the picture's branch, the kept references stay."""
    sampled(cached(model), [ONE])
    primed = sampled(cached(lora(model)), [ONE])
    assert store(model).written == 1
    store(model).entries.clear()
    fresh = sampled(cached(lora(model)), [ONE])
    close(fresh, primed)
    everywhere = sampled(cached(lora(model), lora_on_references=True), [ONE])
    assert float((everywhere - fresh).abs().max()) > 1e-3
    assert torch.equal(sampled(cached(model), [ONE]), sampled(cached(model), [ONE]))


def test_cancel_in_the_middle_and_the_next_run(model: Any) -> None:
    import comfy.model_management as management

    target = cached(model)
    before = sampled(target, [ONE, TWO])
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        sampled(target, [ONE, THREE])
    management.interrupt_current_processing(False)
    assert torch.equal(sampled(target, [ONE, TWO]), before)
    close(sampled(target, [ONE, THREE]), masked_sample(model, [ONE, THREE], [(1, 0, 0), (2, 0, 4)]))


def test_a_reference_that_changes_during_the_run_is_never_stale(model: Any) -> None:
    """Another node's wrapper swaps the latents: written for this run, not taken from the store."""
    from comfy.patcher_extension import WrappersMP

    def swap(
        executor: Any, x: Any, t: Any, context: Any, y: Any, guidance: Any, refs: Any, *rest: Any, **kw: Any
    ) -> Any:
        return executor(x, t, context, y, guidance, [refs[0].flip(-1)], *rest, **kw)

    target = cached(model)
    expected = masked_sample(model, [ONE.flip(-1)], [(1, 0, 0)])
    swapped = target.clone()
    swapped.wrappers = {kind: dict(keys) for kind, keys in target.wrappers.items()}
    first = {"swap": [swap], **swapped.wrappers[WrappersMP.DIFFUSION_MODEL]}
    swapped.wrappers[WrappersMP.DIFFUSION_MODEL] = first
    close(sampled(swapped, [ONE]), expected)


def test_other_models_are_refused() -> None:
    from pack.model_loaders.reference_cache import attach_reference_cache
    from pack.model_loaders.reference_writing import CacheSettings

    from comfy.model_patcher import ModelPatcher

    class Other(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.diffusion_model = torch.nn.Linear(2, 2)

    other = ModelPatcher(Other(), torch.device("cpu"), torch.device("cpu"))
    with pytest.raises(
        ValueError, match=r"the reference cache is for FLUX.1 Kontext; this MODEL is Other \(Linear\)"
    ):
        attach_reference_cache(other, CacheSettings())


def test_unknown_precision_is_named() -> None:
    from pack.model_loaders.reference_cache import CacheSettings

    with pytest.raises(ValueError, match="unknown precision '4bit'; choose bf16 or 8bit"):
        CacheSettings(precision="4bit")

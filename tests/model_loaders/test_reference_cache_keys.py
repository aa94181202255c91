"""Nothing kept is ever read where it should not be: each case changes one thing after a first run.

The same run is then made with the store as the first run left it and with an empty one; both must agree.
`writes` says how many references the change costs, so that a cache that keeps nothing fails too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from cached_runs import reference, sampled
from tiny_flux import tiny_flux
from torch import Tensor, nn

pytestmark = pytest.mark.host

ONE, TWO = reference(6, 8, 5), reference(4, 10, 6)
TWO_STEPS = torch.tensor([1.0, 0.5, 0.0])
QKV, SINGLE = "double_blocks.0.img_attn.qkv", "single_blocks.1.linear1"


def attach(model: Any, **settings: Any) -> Any:
    from pack.model_loaders.reference_cache import attach_reference_cache
    from pack.model_loaders.reference_writing import CacheSettings

    return attach_reference_cache(model, CacheSettings(**settings))


def everywhere(model: Any, **settings: Any) -> Any:
    return attach(model, lora_on_references=True, **settings)


def placed(model: Any, scheme: str) -> Any:
    from pack.dit.positions import PositionScheme
    from pack.model_loaders.patches import attach_position_encoding

    return attach_position_encoding(attach(model), PositionScheme(scheme))


def lora(model: Any, seed: int = 0, strength: float = 1.0, part: str = QKV) -> Any:
    name = f"diffusion_model.{part}.weight"
    shape = model.model.state_dict()[name].shape
    patched = model.clone()
    change = 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    patched.add_patches({name: ("diff", (change,))}, strength)
    return patched


def replaced(model: Any, scale: float) -> Any:
    """Another node swaps a module of the network."""
    name = "diffusion_model.double_blocks.0.img_mlp"
    patched, present = model.clone(), model.get_model_object(name)
    old = getattr(present, "old", present)  # while loaded, the network holds the replacement

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.old = old

        def forward(self, x: Tensor) -> Tensor:
            return scale * self.old(x)

    patched.add_object_patch(name, Scaled())
    return patched


def injected(model: Any, scale: float) -> Any:
    """A LoRA beside a layer, as newer hosts' bypass loader applies it: no weight changes."""
    from comfy.patcher_extension import PatcherInjection

    layer = model.model.diffusion_model.double_blocks[0].img_attn.qkv

    def inject(patcher: Any) -> None:
        layer.forward = lambda x: scale * type(layer).forward(layer, x)

    def eject(patcher: Any) -> None:
        del layer.forward

    patched = model.clone()
    patched.set_injections("bypass_lora", [PatcherInjection(inject=inject, eject=eject)])
    return patched


def attention(model: Any, sharpness: float) -> Any:
    """Another node overrides attention."""
    patched = model.clone()

    def override(inner: Any, q: Tensor, *args: Any, **more: Any) -> Tensor:
        return inner(q * sharpness, *args, **more)

    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    return patched


def shifted(model: Any) -> Any:
    """ModelSamplingFlux with another shift, as an object patch."""
    import comfy.model_sampling

    class Sampling(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):
        pass

    sampling = Sampling(model.model.model_config)
    sampling.set_parameters(shift=0.5)
    patched = model.clone()
    patched.add_object_patch("model_sampling", sampling)
    return patched


def with_options(model: Any, **options: Any) -> Any:
    patched = attach(model)
    patched.model_options["transformer_options"].update(options)
    return patched


@dataclass(frozen=True)
class Case:
    name: str
    writes: int
    model: Callable[[Any], Any] = attach
    references: tuple[Tensor, ...] = (ONE, TWO)
    options: dict[str, Any] = field(default_factory=dict)
    first: Callable[[Any], Any] = attach


def changed(latent: Tensor, amount: float = 1e-3) -> Tensor:
    latent = latent.clone()
    latent[0, 0, 0, 0] += amount
    return latent


def with_lora(model: Any) -> Any:
    return attach(lora(model))


def with_lora_everywhere(model: Any) -> Any:
    return everywhere(lora(model))


def with_injected(model: Any) -> Any:
    return attach(injected(model, 1.5))


def with_injected_everywhere(model: Any) -> Any:
    return everywhere(injected(model, 1.5))


def sharp(model: Any) -> Any:
    return attach(attention(model, 2.0))


def halved(model: Any) -> Any:
    return attach(replaced(model, 0.5))


CASES = [
    Case("same again", 0),
    Case("seed", 0, options={"seed": 8}),
    Case("prompt", 0, options={"prompt": 3}),
    Case("guidance", 0, options={"guidance": 1.5}),
    Case("size of the result", 0, options={"size": (6, 6)}),
    Case("batch of results", 0, options={"batch": 3}),
    Case("sampler", 0, options={"sampler": "heun"}),
    Case("order", 0, references=(TWO, ONE)),
    Case("one left out", 0, references=(TWO,)),
    Case("one twice", 0, references=(ONE, ONE)),
    Case("one pixel of the latent", 1, references=(changed(ONE), TWO)),
    Case("the smallest change of a float", 1, references=(changed(ONE, 1e-6), TWO)),
    Case("crop", 1, references=(ONE[..., :4, :], TWO)),
    Case("mirrored", 1, references=(ONE.flip(-1), TWO)),
    Case("the same bytes in another shape", 1, references=(ONE.reshape(1, 16, 8, 6), TWO)),
    Case("resized", 2, references=tuple(nn.functional.interpolate(x, scale_factor=0.5) for x in (ONE, TWO))),
    Case("one more", 1, references=(ONE, TWO, ONE + 1)),
    Case("a batch of references", 1, references=(torch.cat((ONE, ONE + 1)), TWO), options={"batch": 2}),
    Case("LoRA added, kept off the references", 0, with_lora),
    Case("LoRA strength, kept off the references", 0, lambda m: attach(lora(m, 0, 0.3)), first=with_lora),
    Case("LoRA added", 2, with_lora_everywhere),
    Case("LoRA removed", 2, everywhere, first=with_lora_everywhere),
    Case("LoRA strength", 2, lambda m: everywhere(lora(m, strength=0.5)), first=with_lora_everywhere),
    Case("another LoRA", 2, lambda m: everywhere(lora(m, seed=1)), first=with_lora_everywhere),
    Case("a second LoRA", 2, lambda m: everywhere(lora(lora(m), 0, 1.0, SINGLE)), first=with_lora_everywhere),
    Case("LoRA moved onto the references", 2, with_lora_everywhere, first=with_lora),
    Case("injected LoRA, kept off the references", 0, with_injected),
    Case("injected LoRA removed, kept off the references", 0, first=with_injected),
    Case("injected LoRA", 2, with_injected_everywhere, first=everywhere),
    Case("injected LoRA removed", 2, everywhere, first=with_injected_everywhere),
    Case("another injected LoRA", 2, lambda m: everywhere(injected(m, 0.5)), first=with_injected_everywhere),
    Case("8 bit", 2, lambda m: attach(m, precision="8bit")),
    Case("back from 8 bit", 2, attach, first=lambda m: attach(m, precision="8bit")),
    Case("number type", 2, lambda m: bfloat16(attach(m))),
    Case("attention override", 2, sharp),
    Case("another attention override", 2, lambda m: attach(attention(m, 0.5)), first=sharp),
    Case("a replaced module", 2, halved),
    Case("another replaced module", 2, lambda m: attach(replaced(m, 0.1)), first=halved),
    Case("sampling shift", 0, lambda m: attach(shifted(m))),
    Case("position encoding", 0, lambda m: placed(m, "index+offset")),
    Case("another position encoding", 0, lambda m: placed(m, "none"), first=lambda m: placed(m, "index")),
    Case("stretched positions of the picture", 0, lambda m: with_options(m, rope_options={"scale_x": 0.5})),
]  # fmt: skip


def bfloat16(model: Any) -> Any:
    """What a compute-dtype node does."""
    model.set_model_compute_dtype(torch.bfloat16)
    return model


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_never_stale(case: Case) -> None:
    from pack.model_loaders.reference_store import store_of

    import comfy.model_management

    model = tiny_flux()
    store = store_of(model)
    before = sampled(case.first(model), [ONE, TWO], sigmas=TWO_STEPS)
    written = store.written
    primed = sampled(case.model(model), case.references, sigmas=TWO_STEPS, **case.options)
    assert store.written - written == case.writes
    store.entries.clear()
    comfy.model_management.unload_all_models()
    fresh = sampled(case.model(model), case.references, sigmas=TWO_STEPS, **case.options)
    assert float((primed - fresh).abs().max() / fresh.abs().max()) < (
        1e-2 if case.name == "number type" else 1e-5
    )
    if case.name not in {"same again", "the smallest change of a float", "sampling shift"}:
        assert primed.shape != before.shape or not torch.allclose(primed, before, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_number_type_with_a_lora_is_known_before_the_model_is_loaded(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise the first run writes entries that nothing reads, and others with the LoRA on them."""
    from pack.model_loaders.reference_store import store_of

    model = tiny_flux()
    target = attach(lora(model))
    target.set_model_compute_dtype(dtype)
    first = sampled(target, [ONE, TWO], sigmas=TWO_STEPS)
    again = sampled(target, [ONE, TWO], sigmas=TWO_STEPS)
    assert torch.equal(first, again)
    assert store_of(model).written == 2
    assert "a reference changed during the run" not in caplog.text


def test_two_models_never_share() -> None:
    """The same references and settings on other weights."""
    from pack.model_loaders.reference_store import store_of

    one, other = tiny_flux(seed=0), tiny_flux(seed=1)
    sampled(attach(one), [ONE])
    assert store_of(other) is not store_of(one)
    sampled(attach(other), [ONE])
    assert (store_of(one).written, store_of(other).written) == (1, 1)


def with_network_of(model: Any, other: Any) -> Any:
    """A clone as newer hosts make one for hooks: another network, the wrappers and models of the first."""
    exchanged = model.clone()
    exchanged.model = other.model
    return exchanged


def test_a_clone_with_another_network_writes_and_reads_with_that_one() -> None:
    from pack.model_loaders.reference_store import store_of

    import comfy.model_management

    one, other = tiny_flux(seed=0), tiny_flux(seed=1)
    target = attach(one)
    first = sampled(target, [ONE, TWO], sigmas=TWO_STEPS)
    exchanged = with_network_of(target, other)
    got = sampled(exchanged, [ONE, TWO], sigmas=TWO_STEPS)
    assert (store_of(one).written, store_of(other).written) == (2, 2)
    assert [patcher.model for patcher in exchanged.get_additional_models()] == [store_of(other)]
    comfy.model_management.unload_all_models()
    expected = sampled(attach(tiny_flux(seed=1)), [ONE, TWO], sigmas=TWO_STEPS)
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5
    assert torch.equal(sampled(target, [ONE, TWO], sigmas=TWO_STEPS), first)
    assert (store_of(one).written, store_of(other).written) == (2, 2)


def test_there_are_at_least_30_cases() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 30

"""The prefix cache inside ComfyUI: every sampler, never a stale picture, freed with the model."""

from __future__ import annotations

import pytest
import torch
from omnigen_sampling import (
    ONE,
    cache_of,
    conditionings,
    load,
    noise_of,
    run,
    without_cache,
)

pytestmark = pytest.mark.host


SAMPLERS = ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2s_ancestral", "uni_pc"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_stock_sampler(sampler, loaded_omnigen):
    model, processor = loaded_omnigen
    conds = conditionings(processor)
    cached = run(model, conds, noise_of(batch=2), sampler)
    plain = run(without_cache(model), conds, noise_of(batch=2), sampler)
    assert cache_of(model).entries
    torch.testing.assert_close(cached, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("solver", ["ab2", "adams-2", "adams-3", "euler", "heun"])
def test_every_own_solver(solver, loaded_omnigen):
    from comfy_extras.nodes_custom_sampler import DualCFGGuider
    from pack.nodes.sampling import NODES

    node = next(node for node in NODES if node.define_schema().node_id == "DreamOmniSolver")
    sampler = node.execute(solver).args[0]
    model, processor = loaded_omnigen
    conds = conditionings(processor)
    results = []
    for patcher in (model, without_cache(model)):
        guider = DualCFGGuider.execute(patcher, conds[0], conds[2], conds[1], 2.5, 1.6, "regular").args[0]
        with torch.inference_mode():
            results.append(
                guider.sample(
                    noise_of(), torch.zeros(1, 4, 6, 8), sampler, torch.linspace(1, 0, 4), disable_pbar=True
                )
            )
    # Latents leave at 1 / 0.13025 of the scale they are sampled at: 1e-4 here is 1.3e-5 there.
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-5)


def with_lora(model, strength, seed=1):
    import comfy.sd

    generator = torch.Generator().manual_seed(seed)
    name = "diffusion_model.llm.layers.0.self_attn.qkv_proj"
    lora = {
        f"{name}.lora_A.weight": torch.randn(2, 32, generator=generator),
        f"{name}.lora_B.weight": torch.randn(96, 2, generator=generator),
    }
    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]


CHANGES = {
    "same": lambda model, processor: (model, {}),
    "lora": lambda model, processor: (with_lora(model, 0.5), {}),
    "lora strength": lambda model, processor: (with_lora(model, 0.7), {}),
    "another lora": lambda model, processor: (with_lora(model, 0.5, seed=2), {}),
    "lora twice": lambda model, processor: (with_lora(with_lora(model, 0.5), 0.5), {}),
    "negative lora": lambda model, processor: (with_lora(model, -0.5), {}),
    "off again": lambda model, processor: (model.clone(), {}),
    "picture": lambda model, processor: (model, {"seed": 1}),
    "picture size": lambda model, processor: (model, {"size": (48, 48)}),
    "crop": lambda model, processor: (model, {"max_size": 32}),
    "prompt": lambda model, processor: (model, {"prompt": f"{ONE} with a cap"}),
    "tag place": lambda model, processor: (model, {"prompt": f"with a hat {ONE}"}),
    "tag twice": lambda model, processor: (model, {"prompt": f"{ONE} with a hat {ONE}"}),
    "negative prompt": lambda model, processor: (model, {"negative": "dull"}),
    "8 bit": lambda model, processor: (with_settings(model, eight_bit=True), {}),
    "result size": lambda model, processor: (model, {"noise": noise_of(size=(4, 4))}),
    "batch": lambda model, processor: (model, {"noise": noise_of(batch=3)}),
    "schedule": lambda model, processor: (model, {"sigmas": torch.tensor([1.0, 0.63, 0.21, 0.0])}),
    "steps": lambda model, processor: (model, {"sigmas": torch.linspace(1, 0, 6)}),
    "scales": lambda model, processor: (model, {"scales": (3.0, 1.0)}),
    "seed": lambda model, processor: (model, {"noise": noise_of(4)}),
    "sampler": lambda model, processor: (model, {"sampler": "heun"}),
    "shift by 1000": lambda model, processor: (shifted(model), {}),
    "attention": lambda model, processor: (with_override(model, 1.0), {}),
    "other attention": lambda model, processor: (with_override(model, 0.5), {}),
    "weight patch": lambda model, processor: (patched(model), {}),
    "hook lora": lambda model, processor: (model, {"hook": 0.5}),
    "hook strength": lambda model, processor: (model, {"hook": 0.9}),
    "replaced module": lambda model, processor: (replaced(model), {}),
    "latent edited": lambda model, processor: (model, {"edit": True}),
}


def with_settings(model, **settings):
    from pack.dit.omnigen.prefix_cache import CacheSettings
    from pack.model_loaders.omnigen import set_prefix_cache

    clone = model.clone()
    set_prefix_cache(clone, CacheSettings(**settings))
    return clone


def shifted(model):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, 2.0)[0]


def with_override(model, factor):
    clone = model.clone()

    def override(attention, *args, **kwargs):
        return attention(*args, **kwargs) * factor

    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


def patched(model):
    clone = model.clone()
    name = "diffusion_model.llm.norm.weight"
    clone.add_patches({name: ("diff", (torch.ones(32),))}, 0.3)
    return clone


def replaced(model):
    clone = model.clone()
    clone.add_object_patch("diffusion_model.llm.layers.1", Identity())
    return clone


class Identity(torch.nn.Module):
    def forward(self, hidden, *_):
        return hidden


def hooked(conds, strength):
    import comfy.hooks

    lora = {}
    name = "diffusion_model.llm.layers.0.self_attn.qkv_proj"
    generator = torch.Generator().manual_seed(8)
    lora[f"{name}.lora_A.weight"] = torch.randn(2, 32, generator=generator)
    lora[f"{name}.lora_B.weight"] = torch.randn(96, 2, generator=generator)
    group = comfy.hooks.create_hook_lora(lora, strength, 0.0)
    return [comfy.hooks.set_hooks_for_conditioning(cond, group) for cond in conds[:3]]


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_stale_after(change, loaded_omnigen):
    """A warm cache, one change, and the picture equals the one made without any cache."""
    model, processor = loaded_omnigen
    run(model, conditionings(processor), noise_of())
    run(with_lora(model, 0.5), conditionings(processor), noise_of())
    other, options = CHANGES[change](model, processor)
    hook, edit = options.pop("hook", None), options.pop("edit", False)
    call = {name: options.pop(name) for name in ("sampler", "sigmas", "scales") if name in options}
    noise = options.pop("noise", noise_of())
    conds = conditionings(processor, **options)
    if hook is not None:
        run(other, hooked(conds, 0.2), noise)
        conds = hooked(conds, hook)
    if edit:
        for cond in (conds[0], conds[2]):
            cond[0][1]["reference_latents"] = [latent * 1.1 for latent in cond[0][1]["reference_latents"]]
    cached = run(other, conds, noise, **call)
    plain = run(without_cache(other), conds, noise, **call)
    if change == "8 bit":  # not exact; the velocity's 45 dB are held in the cache's own tests
        assert (cached - plain).square().mean() < 1e-3 * plain.square().mean()
    else:
        torch.testing.assert_close(cached, plain, atol=1e-4, rtol=1e-4)


def with_references(conds, batch, channels=4):
    latent = torch.randn(batch, channels, 4, 6, generator=torch.Generator().manual_seed(11))
    edited = [[[cond[0][0], dict(cond[0][1])]] for cond in conds[:3]]
    for cond in (edited[0], edited[2]):
        cond[0][1]["reference_latents"] = [latent]
    return edited


def test_references_of_another_batch_or_vae_are_refused(loaded_omnigen):
    model, processor = loaded_omnigen
    conds = conditionings(processor)
    assert conds[0][0][1]["reference_latents"][0].shape == (1, 4, 4, 6)
    with pytest.raises(ValueError, match=r"reference 1 is a batch of 3 but 1 picture\(s\) are sampled"):
        run(model, with_references(conds, 3), noise_of())
    with pytest.raises(ValueError, match=r"takes 4 channels: .* For OmniGen use the SDXL VAE"):
        run(model, with_references(conds, 1, channels=16), noise_of())
    assert len(run(model, with_references(conds, 3), noise_of(batch=3))) == 3


def test_batches_of_two_sizes_meet_in_every_pair(loaded_omnigen):
    model, processor = loaded_omnigen
    ids = processor.tokenize(f"{ONE} beside <img><|image_2|></img>", [(32, 32)] * 2).as_tensor()
    conds = model.model.extra_conds(
        cross_attn=ids,
        reference_latents=[torch.randn(count, 4, 4, 4) for count in (2, 3)],
        noise=torch.zeros(6, 4, 8, 8),
        device=torch.device("cpu"),
    )
    assert len({prefix.elements for prefix in conds["prefixes"].cond}) == 6


def test_changes_do_change_the_picture(loaded_omnigen):
    """The test above could not fail if LoRAs and pictures had no effect."""
    model, processor = loaded_omnigen
    base = run(model, conditionings(processor), noise_of())
    for other, conds in (
        (with_lora(model, 0.5), conditionings(processor)),
        (model, conditionings(processor, seed=1)),
        (model, hooked(conditionings(processor), 0.5)),
        (replaced(model), conditionings(processor)),
    ):
        assert (run(other, conds, noise_of()) - base).abs().max() > 0.01


def test_a_new_seed_pays_for_no_prefix_and_unloading_frees_it(omnigen_folder):
    import comfy.model_management

    model, processor = load(omnigen_folder)
    run(model, conditionings(processor), noise_of())
    assert cache_of(model).prefills == 3
    run(model, conditionings(processor), noise_of(1), "heun")
    assert cache_of(model).prefills == 3
    assert cache_of(model).num_bytes > 0
    comfy.model_management.unload_all_models()
    assert cache_of(model).num_bytes == 0


def test_cancel_in_the_middle_leaves_nothing_half_written(omnigen_folder, monkeypatch):
    from pack.dit.omnigen.blocks import DecoderLayer

    import comfy.model_management

    model, processor = load(omnigen_folder)
    conds = conditionings(processor)
    expected = run(without_cache(model), conds, noise_of())
    forward = DecoderLayer.forward
    calls = []

    def interrupted(self, *args):
        calls.append(self.index)
        if len(calls) == 6:
            raise comfy.model_management.InterruptProcessingException
        return forward(self, *args)

    monkeypatch.setattr(DecoderLayer, "forward", interrupted)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(model, conds, noise_of())
    monkeypatch.setattr(DecoderLayer, "forward", forward)
    torch.testing.assert_close(run(model, conds, noise_of()), expected, atol=1e-4, rtol=1e-4)

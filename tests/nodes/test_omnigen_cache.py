"""The prefix cache inside ComfyUI: every sampler, never a stale picture, freed with the model."""

from __future__ import annotations

import pytest
import torch
from full_device import KINDS, full_error
from tiny_omnigen import tiny_config, write_official

pytestmark = pytest.mark.host

SAMPLERS = ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2s_ancestral", "uni_pc"]
ONE = "<img><|image_1|></img>"


class RandomVAE:
    """Latents that depend on every pixel."""

    def encode(self, image):
        blocks = image.mean(-1).unflatten(2, (-1, 8)).unflatten(1, (-1, 8))
        rows = torch.stack([blocks[:, :, k, :, k] for k in range(4)], dim=1)
        return (rows - 0.5) * 8


def load(folder, **settings):
    from pack.dit.omnigen.prefix_cache import CacheSettings
    from pack.model_loaders.omnigen import load_omnigen

    return load_omnigen(folder, "fp32", CacheSettings(**settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_official(tmp_path_factory.mktemp("omnigen"), tiny_config())


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder)


def conditionings(processor, prompt=f"{ONE} with a hat", seed=0, size=(32, 48), negative="ugly", max_size=64):
    from pack.dit.references import ReferenceSet, Task
    from pack.nodes.omnigen import OmniGenEncode

    image = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(seed))
    refs = ReferenceSet(Task.GENERATE, (image,))
    return OmniGenEncode.execute(
        processor, RandomVAE(), prompt, negative, max_size, refs, width=64, height=48
    ).args


def run(model, conds, noise, sampler="euler", sigmas=None, scales=(2.5, 1.6)):
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    import comfy.samplers

    guider = DualCFGGuider.execute(model, conds[0], conds[2], conds[1], *scales, "regular").args[0]
    sigmas = torch.linspace(1, 0, 4) if sigmas is None else sigmas
    with torch.inference_mode():
        return guider.sample(
            noise,
            torch.zeros_like(noise),
            comfy.samplers.sampler_object(sampler),
            sigmas,
            disable_pbar=True,
            seed=5,
        )


def without_cache(model):
    from pack.dit.omnigen.prefix_cache import CacheSettings
    from pack.model_loaders.omnigen import set_prefix_cache

    clone = model.clone()
    set_prefix_cache(clone, CacheSettings(enabled=False))
    return clone


def cache_of(model):
    return model.model.diffusion_model.prefix_cache


def noise_of(seed=0, batch=1, size=(6, 8)):
    return torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_stock_sampler(sampler, loaded):
    model, processor = loaded
    conds = conditionings(processor)
    cached = run(model, conds, noise_of(batch=2), sampler)
    plain = run(without_cache(model), conds, noise_of(batch=2), sampler)
    assert cache_of(model).entries
    torch.testing.assert_close(cached, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("solver", ["ab2", "adams-2", "adams-3", "euler", "heun"])
def test_every_own_solver(solver, loaded):
    from comfy_extras.nodes_custom_sampler import DualCFGGuider
    from pack.nodes.sampling import NODES

    node = next(node for node in NODES if node.define_schema().node_id == "DreamOmniSolver")
    sampler = node.execute(solver).args[0]
    model, processor = loaded
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
def test_nothing_stale_after(change, loaded):
    """A warm cache, one change, and the picture equals the one made without any cache."""
    model, processor = loaded
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


def test_references_of_another_batch_or_vae_are_refused(loaded):
    model, processor = loaded
    conds = conditionings(processor)
    assert conds[0][0][1]["reference_latents"][0].shape == (1, 4, 4, 6)
    with pytest.raises(ValueError, match=r"reference 1 is a batch of 3 but 1 picture\(s\) are sampled"):
        run(model, with_references(conds, 3), noise_of())
    with pytest.raises(ValueError, match=r"takes 4 channels: .* For OmniGen use the SDXL VAE"):
        run(model, with_references(conds, 1, channels=16), noise_of())
    assert len(run(model, with_references(conds, 3), noise_of(batch=3))) == 3


def test_batches_of_two_sizes_meet_in_every_pair(loaded):
    model, processor = loaded
    ids = processor.tokenize(f"{ONE} beside <img><|image_2|></img>", [(32, 32)] * 2).as_tensor()
    conds = model.model.extra_conds(
        cross_attn=ids,
        reference_latents=[torch.randn(count, 4, 4, 4) for count in (2, 3)],
        noise=torch.zeros(6, 4, 8, 8),
        device=torch.device("cpu"),
    )
    assert len({prefix.elements for prefix in conds["prefixes"].cond}) == 6


def test_changes_do_change_the_picture(loaded):
    """The test above could not fail if LoRAs and pictures had no effect."""
    model, processor = loaded
    base = run(model, conditionings(processor), noise_of())
    for other, conds in (
        (with_lora(model, 0.5), conditionings(processor)),
        (model, conditionings(processor, seed=1)),
        (model, hooked(conditionings(processor), 0.5)),
        (replaced(model), conditionings(processor)),
    ):
        assert (run(other, conds, noise_of()) - base).abs().max() > 0.01


def test_a_new_seed_pays_for_no_prefix_and_unloading_frees_it(folder):
    import comfy.model_management

    model, processor = load(folder)
    run(model, conditionings(processor), noise_of())
    assert cache_of(model).prefills == 3
    run(model, conditionings(processor), noise_of(1), "heun")
    assert cache_of(model).prefills == 3
    assert cache_of(model).num_bytes > 0
    comfy.model_management.unload_all_models()
    assert cache_of(model).num_bytes == 0


@pytest.mark.parametrize("kind", KINDS)
def test_out_of_memory_while_writing_falls_back(folder, monkeypatch, caplog, kind):
    from pack.dit.omnigen import cached

    error = full_error(kind, monkeypatch)
    model, processor = load(folder)
    conds = conditionings(processor)
    plain = run(without_cache(model), conds, noise_of())

    def full(*_):
        raise error

    monkeypatch.setattr(cached, "write_entry", full)
    with caplog.at_level("WARNING", logger="dreamomni"):
        result = run(model, conds, noise_of())
    assert torch.equal(result, plain)
    assert "runs without it" in caplog.text


def test_a_limit_that_is_too_low_warns_once_in_a_run(folder, caplog):
    model, processor = load(folder, max_bytes=1000)
    conds = conditionings(processor)
    with caplog.at_level("WARNING", logger="dreamomni"):
        run(model, conds, noise_of())
        assert not cache_of(model).entries
        assert len(caplog.records) == 1
        run(model, conds, noise_of())
        assert len(caplog.records) == 2
    length = conds[1][0][0].numel()
    text = caplog.messages[0]
    assert f"the prefix of {length} tokens needs" in text
    assert "limit 9.31e-07 GB: these steps run without the cache" in text
    for remedy in ("raise cache_limit_gb (Load", "'8 bit' (Load", "lower max_image_size (OmniGen Encode)"):
        assert remedy in text


def test_the_default_limit_is_silent_and_so_is_none_at_all(folder, caplog):
    for settings in ({}, {"max_bytes": 0}):
        model, processor = load(folder, **settings)
        with caplog.at_level("WARNING", logger="dreamomni"):
            run(model, conditionings(processor), noise_of())
        assert not caplog.records


def test_the_remedies_named_are_inputs_of_the_nodes():
    """At OmniGen's size and the default limit; a card without memory is helped by fewer of them."""
    from pack.dit.omnigen.config import OmniGenConfig
    from pack.dit.omnigen.prefix_cache import GIGABYTE, CacheSettings, bytes_per_token, no_room_text
    from pack.nodes.omnigen import CACHE_MODES, LoadOmniGen, OmniGenEncode

    three = 3 * 4096 * bytes_per_token(OmniGenConfig(), 2, False)
    default = CacheSettings()
    assert three < default.max_bytes < 2 * three
    text = no_room_text(3 * 4096, three, three, default, over_limit=True)
    assert "needs 4.5 GB beside the 4.5 GB kept, limit 8 GB: these steps" in text
    assert "8 bit" in CACHE_MODES
    assert "cache_limit_gb" in {item.id for item in LoadOmniGen.define_schema().inputs}
    assert "max_image_size" in {item.id for item in OmniGenEncode.define_schema().inputs}
    full = no_room_text(10, GIGABYTE, 0, CacheSettings(eight_bit=True), over_limit=False)
    assert "no free memory for it" in full
    assert "8 bit" not in full and "cache_limit_gb" not in full


def test_cancel_in_the_middle_leaves_nothing_half_written(folder, monkeypatch):
    from pack.dit.omnigen.blocks import DecoderLayer

    import comfy.model_management

    model, processor = load(folder)
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


def test_memory_estimate_counts_references_and_cache(loaded):
    model, processor = loaded
    shape = [1, 4, 128, 128]
    positive = conditionings(processor)[0][0]
    few = model.model.extra_conds_shapes(cross_attn=positive[0])
    assert few == {"prefixes": [1, 1, positive[0].shape[1]]}
    none = model.model.memory_required(shape, cond_shapes={})
    some = model.model.memory_required(shape, cond_shapes={"prefixes": [[1, 1, 4096]]})
    both = model.model.memory_required(shape, cond_shapes={"prefixes": [[1, 1, 4096], [1, 1, 4096]]})
    assert none < some < both
    assert both - some == 4096 * 2 * 2 * 32 * 4


def test_memory_estimate_follows_the_cache_settings(folder):
    shape, lengths = [1, 4, 128, 128], {"prefixes": [[1, 1, 4096], [1, 1, 4096]]}
    tokens = 4096 * 2

    def estimate(**settings):
        return load(folder, **settings)[0].model.memory_required(shape, cond_shapes=lengths)

    without = estimate(enabled=False)
    assert estimate(max_bytes=0) == without
    # 2 layers, 4 heads, keys and values: 8 fp32 channels, or 8 bytes and a scale.
    assert estimate() - without == tokens * 2 * 2 * 4 * 32
    assert estimate(eight_bit=True) - without == tokens * 2 * 2 * 4 * (8 + 4)
    assert estimate(max_bytes=1000) - without == 1000


def test_another_patcher_of_the_folder_keeps_the_settings(folder):
    """Newer hosts make one of another kind by calling the loader again."""
    from pack.dit.omnigen.prefix_cache import CacheSettings
    from pack.model_loaders.omnigen_model import CACHE_OPTION

    model = load(folder, eight_bit=True)[0]
    function, arguments = model.cached_patcher_init
    other = function(*arguments, disable_dynamic=True)
    settings = CacheSettings(eight_bit=True)
    assert other.model.cache_settings == model.model.cache_settings == settings
    assert other.model_options["transformer_options"][CACHE_OPTION] == settings


def test_cache_placed_in_ram_when_the_device_is_full(monkeypatch):
    from pack.model_loaders.omnigen_model import placement

    import comfy.model_management

    free = {"cuda": 100, "cpu": 1000}
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: free[device.type])
    cuda = torch.device("cuda", 0)
    assert placement(50, cuda) == cuda
    assert placement(200, cuda) == torch.device("cpu")
    assert placement(500, cuda) is None


def test_loader_node_passes_the_cache_settings(models_dir):
    from pack.dit.omnigen.prefix_cache import CacheSettings
    from pack.model_loaders.omnigen_model import CACHE_OPTION
    from pack.nodes.omnigen import LoadOmniGen

    write_official(models_dir / "omnigen" / "v1", tiny_config())
    for mode, expected in {
        "on": CacheSettings(max_bytes=2**31),
        "8 bit": CacheSettings(eight_bit=True, max_bytes=2**31),
        "off": CacheSettings(enabled=False, max_bytes=2**31),
    }.items():
        model = LoadOmniGen.execute("v1", "fp32", mode, 2.0).args[0]
        assert model.model_options["transformer_options"][CACHE_OPTION] == expected
    with pytest.raises(ValueError, match="prefix_cache 'maybe': allowed are on, 8 bit, off"):
        LoadOmniGen.execute("v1", "fp32", "maybe")

"""fp8 weights, partly loaded weights, previews and the memory estimate of the OmniGen MODEL."""

from __future__ import annotations

import pytest
import torch
from tiny_omnigen import tiny_config, write_official

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_official(tmp_path_factory.mktemp("omnigen"), tiny_config())


def load(folder, weight_dtype="fp32", **settings):
    from pack.dit.omnigen.prefix_cache import CacheSettings
    from pack.model_loaders.omnigen import load_omnigen

    return load_omnigen(folder, weight_dtype, CacheSettings(**settings))


def velocity(model, processor, sigma=0.6):
    from pack.dit.omnigen.prefix import make_prefix

    latent = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    reference = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    tokens = processor.tokenize("<img><|image_1|></img> with a hat", [(32, 32)])
    network = model.model.diffusion_model
    dtype = model.model.manual_cast_dtype or network.dtype
    with torch.inference_mode():
        prefix = make_prefix(tokens, [reference])
        return network.velocity(latent.to(dtype), torch.tensor([sigma]), prefix).float()


@pytest.mark.parametrize(("weight_dtype", "error"), [("bf16", 0.03), ("fp8_e4m3fn", 0.15), ("fp8_e5m2", 0.3)])
def test_small_weights_stay_close(weight_dtype, error, folder):
    exact = velocity(*load(folder))
    model, processor = load(folder, weight_dtype)
    rounded = velocity(model, processor)
    assert model.model_size() < 0.6 * load(folder)[0].model_size()
    assert (rounded - exact).square().mean().sqrt() < error * exact.square().mean().sqrt()


def test_partly_loaded_weights_give_the_same(folder):
    model, processor = load(folder)
    whole = velocity(model, processor)
    name = "diffusion_model.llm.layers.0.mlp.down_proj.weight"
    model.add_patches({name: ("diff", (torch.full((32, 48), 0.1),))}, 0.5)
    model.load(torch.device("cpu"), lowvram_model_memory=4096)
    modules = list(model.model.diffusion_model.modules())
    assert any(getattr(module, "comfy_cast_weights", False) for module in modules)
    partly = velocity(model, processor)
    model.unpatch_model(torch.device("cpu"))
    assert (partly - whole).abs().max() > 1e-3
    model.load(torch.device("cpu"), full_load=True)
    torch.testing.assert_close(velocity(model, processor), partly, atol=1e-5, rtol=1e-5)


def test_previews_come_from_the_latent_format(folder):
    latent_format = load(folder)[0].model.latent_format
    assert len(latent_format.latent_rgb_factors) == 4
    assert latent_format.scale_factor == 0.13025
    assert latent_format.taesd_decoder_name == "taesdxl_decoder"


def conditioning(processor, batch):
    """Words alone for a batch of 0, else an edit of that many pictures of 64 x 64 px."""
    tag = "<img><|image_1|></img> with a hat" if batch else "ugly"
    ids = processor.tokenize(tag, [(64, 64)] * (batch > 0)).as_tensor()
    return {"cross_attn": ids, "reference_latents": [torch.zeros(batch, 4, 8, 8)] if batch else []}


def test_pictures_edited_one_by_one_are_estimated_as_one(folder):
    from comfy.sampler_helpers import estimate_memory

    model, processor = load(folder, max_bytes=0)

    def estimates(batch, *counts):
        conds = [conditioning(processor, count) for count in counts]
        shape = [batch, 4, 16, 16]
        for condition in conds:
            given = model.model.extra_conds(**condition, noise=torch.zeros(shape), device=torch.device("cpu"))
            (told,) = model.model.extra_conds_shapes(**condition).values()
            assert given["prefixes"].size() == told
        return estimate_memory(model, shape, {"positive": conds})

    edit, words = estimates(1, 1)[1], [estimates(batch, 0)[1] for batch in (1, 8, 16)]
    assert words[1] == 8 * words[0] > edit
    assert estimates(8, 8) == (edit, edit)
    assert estimates(8, 4, 8) == (edit, edit)
    # The words of the negative serve the whole batch at once, and one picture all its variations.
    assert estimates(8, 8, 0) == (words[2], words[1])
    assert estimates(8, 1)[1] == 8 * edit


def test_every_edited_picture_is_kept(folder):
    model = load(folder)[0]
    without = load(folder, max_bytes=0)[0]
    shapes = {"prefixes": [[8, 1, 100]], "prefixes_one_by_one": [[4, 1, 10]]}
    kept, none = (each.model.memory_required([8, 4, 16, 16], cond_shapes=shapes) for each in (model, without))
    # 2 layers, 4 heads, keys and values of 8 fp32 channels.
    assert kept - none == pytest.approx(840 * 2 * 2 * 4 * 32)


@pytest.mark.parametrize("batch", [0, 1, 4])
def test_room_is_not_asked_for_what_is_kept_already(folder, batch):
    """A mere new seed must not push weights off a card."""
    from comfy.sampler_helpers import estimate_memory

    model, processor = load(folder)
    condition, shape = conditioning(processor, batch), [batch or 1, 4, 16, 16]
    # Every picture another one, so that each has an entry of its own.
    condition["reference_latents"] = [torch.rand_like(each) for each in condition["reference_latents"]]
    network = model.model
    given = network.extra_conds(**condition, noise=torch.zeros(shape), device=torch.device("cpu"))
    prefixes = given["prefixes"].cond
    before = estimate_memory(model, shape, {"positive": [condition]})
    for prefix in prefixes:
        assert estimate_memory(model, shape, {"positive": [condition]}) == before
        network.prefix_cache.entries[prefix.elements, "context"] = None
    room = network.kept_bytes(sum(prefix.length for prefix in prefixes), torch.float32)
    after = estimate_memory(model, shape, {"positive": [condition]})
    assert [old - new for old, new in zip(before, after, strict=True)] == pytest.approx([room, room])
    other = {**condition, "cross_attn": condition["cross_attn"][:, :-1]}
    assert not network.is_kept(other["cross_attn"], other["reference_latents"])
    network.prefix_cache.clear()


@pytest.mark.parametrize(("asked", "expected"), [(None, "cpu"), (1000, "meta")])
def test_weights_that_make_way_when_asked_count_as_free(folder, monkeypatch, asked, expected):
    """Newer hosts leave weights on a card until something else needs the room; the patcher counts it."""
    import comfy.model_management

    card, free = torch.device("meta"), {"meta": 0, "cpu": 1000}
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: free[device.type])
    model = load(folder)[0]
    told = free.get if asked is None else lambda _: asked
    monkeypatch.setattr(model, "get_free_memory", lambda device: told(device.type), raising=False)
    model.model.current_patcher = model
    use = model.model.diffusion_model.cache_use({}, card)
    assert use.placement(300) == torch.device(expected)
    assert use.placement(2000) is None


def test_callbacks_follow_a_clone_with_another_network(folder):
    """Newer hosts make one for hooks, and it carries the first model's callbacks."""
    (model, _), (other, _) = load(folder), load(folder)
    exchanged = model.clone()
    exchanged.model = other.model
    mine, theirs = (each.model.diffusion_model.prefix_cache for each in (model, other))
    mine.entries["kept"], theirs.entries["kept"] = "mine", "theirs"
    exchanged.pre_run()
    assert (mine.run, theirs.run) == (0, 1)
    exchanged.detach(unpatch_all=False)
    assert theirs.entries
    exchanged.detach()
    assert mine.entries and not theirs.entries
    mine.clear()


def with_prefixes(folder, monkeypatch, *names):
    """A MODEL that ComfyUI leaves loaded beside others, as newer hosts do; 512 bytes for each name."""
    from pack.dit.omnigen.prefix_entry import Entry, Stored
    from pack.model_loaders.prefix_patcher import count_prefixes

    model = load(folder)[0]
    assert not model.get_additional_models()  # on the CPU, and on the pinned host, it is unloaded
    with monkeypatch.context() as newer:
        newer.setattr(model, "is_dynamic", lambda: True, raising=False)
        count_prefixes(model)
    for name in names:
        rows = Stored(torch.zeros(1, 1, 8, 8))
        entry = Entry((name,), (), "", None, 0, torch.device("cpu"), [(rows, rows)])
        model.model.prefix_cache.entries[(name,), ""] = entry
    return model


def test_prefixes_make_way_for_a_model_that_does_not_unload_omnigen(folder, monkeypatch):
    import comfy.model_management as management

    model = with_prefixes(folder, monkeypatch, "oldest", "older", "latest")
    management.unload_all_models()
    clone = model.clone()
    management.load_models_gpu([clone, *clone.get_additional_models()])
    weights = [loaded for loaded in management.current_loaded_models if loaded.model is clone]
    assert len(weights) == 1 and len(management.current_loaded_models) == 2
    (counted,) = clone.get_additional_models()
    assert counted.model_size() == counted.loaded_size() == 3 * 512
    cache = model.model.prefix_cache

    def full(device=None, torch_free_too=False):
        return (0, 0) if torch_free_too else 0

    monkeypatch.setattr(management, "get_free_memory", full)
    management.free_memory(600, torch.device("cpu"), keep_loaded=weights)
    assert [name for (name,), _ in cache.entries] == ["latest"]
    management.free_memory(10**6, torch.device("cpu"), keep_loaded=weights)
    assert not cache.entries
    assert management.current_loaded_models == weights


def test_prefixes_stay_when_a_clone_takes_the_place(folder, monkeypatch):
    import comfy.model_management as management

    model = with_prefixes(folder, monkeypatch, "kept")
    for clone in (model, model.clone(), model.clone().clone()):
        management.load_models_gpu([clone, *clone.get_additional_models()])
    (counted,) = model.get_additional_models()
    assert counted.deepclone_multigpu(new_load_device=torch.device("cpu")).model is counted.model
    assert model.model.prefix_cache.entries
    management.unload_all_models()
    assert not model.model.prefix_cache.entries

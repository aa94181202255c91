"""The VLM under ComfyUI's memory management, by the patcher's own accounting."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import comfy.model_management as mm

pytestmark = pytest.mark.host

CPU = torch.device("cpu")
# Not equal to the plain CPU device, so ComfyUI makes room on it as on a card.
CARD = torch.device("cpu", 0)
PICTURE = torch.rand(1, 84, 112, 3, generator=torch.Generator().manual_seed(0))


def unload_everything() -> None:
    for device in (CPU, CARD):
        mm.free_memory(1e30, device)


@pytest.fixture
def unloaded():
    unload_everything()
    yield
    unload_everything()


def loaded() -> int:
    """Bytes of weights ComfyUI counts as loaded."""
    return sum(model.model_loaded_memory() for model in mm.current_loaded_models)


def set_capacity(monkeypatch, capacity: int) -> None:
    """A card of `capacity` bytes, as ComfyUI sees it."""

    def free(device=None, torch_free_too: bool = False):
        left = capacity - loaded()
        return (left, left) if torch_free_too else left

    monkeypatch.setattr(mm, "get_free_memory", free)


def load(vlm_folder, device: torch.device = CPU):
    from pack.model_loaders.vlm import LoadedVLM
    from pack.model_loaders.vlm_files import open_vlm_folder

    return LoadedVLM(open_vlm_folder(vlm_folder("qwen2_5_vl")), "fp32", device, CPU)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_partly_offloaded_runs_give_the_same_numbers(vlm_folder, unloaded, share: float) -> None:
    vlm = load(vlm_folder)
    whole = vlm.hidden_states("a red bag", [PICTURE])
    patcher, size = vlm.model_patcher, vlm.model_patcher.model_size()
    assert patcher.loaded_size() == size
    patcher.detach()
    assert patcher.loaded_size() == 0
    patcher.patch_model(device_to=CPU, lowvram_model_memory=max(1, int(size * share)))
    assert patcher.loaded_size() <= size * share
    assert patcher.model.model_lowvram
    request = vlm.processor(text=["<|im_start|>user\na red bag"], return_tensors="pt")
    with torch.no_grad():
        partly = vlm.network(**request).logits
        patcher.detach()
        patcher.patch_model(device_to=CPU)
        wholly = vlm.network(**request).logits
    torch.testing.assert_close(partly, wholly, atol=0, rtol=0)
    torch.testing.assert_close(vlm.hidden_states("a red bag", [PICTURE]).tokens, whole.tokens, atol=0, rtol=0)


def test_every_layer_with_weights_can_stay_behind(vlm_folder) -> None:
    vlm = load(vlm_folder)
    left = [
        type(layer).__name__
        for layer in vlm.network.modules()
        if any(True for _ in layer.parameters(recurse=False)) and not hasattr(layer, "comfy_cast_weights")
    ]
    assert left == []


def test_vlm_then_another_model_needs_the_larger_not_the_sum(vlm_folder, unloaded, monkeypatch) -> None:
    from comfy.model_patcher import ModelPatcher

    vlm = load(vlm_folder, CARD)
    size = vlm.model_patcher.model_size()
    other = ModelPatcher(torch.nn.Linear(2048, size // 4 // 2048, bias=False), CARD, CPU)
    capacity = mm.minimum_inference_memory() + int(1.5 * size)
    peak = 0

    set_capacity(monkeypatch, capacity)
    vlm.generate_text("hello", [PICTURE], 2)
    peak = max(peak, loaded())
    assert vlm.model_patcher.loaded_size() == size
    mm.load_models_gpu([other])
    peak = max(peak, loaded())
    assert vlm.model_patcher.loaded_size() == 0
    assert peak == max(size, other.model_size()) < size + other.model_size()


def test_a_card_too_small_for_it_keeps_a_part(vlm_folder, unloaded, monkeypatch) -> None:
    """The whole path through ComfyUI's management, on a card that holds half of the model."""
    vlm = load(vlm_folder, CARD)
    expected = vlm.generate_text("hello", [PICTURE], 4)
    unload_everything()
    size = vlm.model_patcher.model_size()
    budget = mm.minimum_inference_memory() + size // 2
    set_capacity(monkeypatch, budget)
    monkeypatch.setattr(mm, "vram_state", mm.VRAMState.NORMAL_VRAM)
    monkeypatch.setattr(mm, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(mm, "lowvram_available", True)
    found = vlm.generate_text("hello", [PICTURE], 4)
    assert 0 < vlm.model_patcher.loaded_size() <= size // 2
    assert vlm.model_patcher.model.model_lowvram
    assert found == expected


def test_unloading_frees_it_and_it_comes_back(vlm_folder, unloaded) -> None:
    vlm = load(vlm_folder)
    first = vlm.generate_text("hello", [PICTURE], 3)
    mm.unload_all_models()
    assert vlm.model_patcher.loaded_size() == 0
    assert vlm.generate_text("hello", [PICTURE], 3) == first


def test_what_comfyui_asks_of_a_wire_does_not_read_the_weights(vlm_folder, unloaded, monkeypatch) -> None:
    """Newer hosts look for a `patcher` on all that travels, to keep models of the running graph."""
    from pack.model_loaders import vlm as vlm_module

    from comfy.model_patcher import ModelPatcher

    vlm = load(vlm_folder)
    with monkeypatch.context() as watched:
        watched.delattr(vlm_module, "read_network")
        assert getattr(vlm, "patcher", None) is None
    vlm.generate_text("hello", [], 1)
    assert isinstance(vlm.patcher, ModelPatcher)


def test_a_dropped_vlm_leaves_memory(vlm_folder, unloaded) -> None:
    vlm = load(vlm_folder)
    vlm.generate_text("hello", [], 1)
    network = weakref.ref(vlm.network)
    del vlm
    mm.unload_all_models()
    mm.cleanup_models()
    gc.collect()
    assert network() is None


def test_the_request_s_memory_is_asked_for(vlm_folder, unloaded, monkeypatch) -> None:
    from pack.vlm.images import pictures_of
    from pack.vlm.inputs import build_inputs

    asked: list[int] = []
    load_models = mm.load_models_gpu

    def record(models, memory_required=0, **options):
        asked.append(memory_required)
        load_models(models, memory_required, **options)

    monkeypatch.setattr(mm, "load_models_gpu", record)
    vlm = load(vlm_folder)
    for images, new_tokens in (([], 2), ([PICTURE], 2), ([PICTURE], 2000)):
        vlm.make_ready(build_inputs(vlm.processor, "hello", pictures_of(images)[0]), new_tokens)
    assert asked == sorted(asked)
    # Keys and values of 1998 more tokens: 2 of them, 3 layers, 2 heads of 16, 4 bytes.
    assert asked[2] - asked[1] == 1998 * 2 * 3 * 2 * 16 * 4

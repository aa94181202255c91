"""What the exact cache keeps: counted, moved, streamed, made room for; and written when memory is full."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from cached_runs import cached, close, reference, sampled, store
from full_device import KINDS, full_error
from tiny_flux import tiny_flux

pytestmark = pytest.mark.host

ONE, TWO = reference(6, 8, 5), reference(4, 10, 6)


@pytest.fixture
def model() -> Any:
    return tiny_flux()


def test_memory_is_counted_moved_and_released(model: Any) -> None:
    target = cached(model)
    sampled(target, [ONE, TWO])
    (patcher,) = target.get_additional_models()
    # Two tensors for each of 4 layers, 22 tokens, 32 channels, 4 bytes.
    assert patcher.model_size() == patcher.loaded_size() == 2 * 4 * 22 * 32 * 4
    assert patcher.clone().model_size() == patcher.model_size()
    meta = torch.device("meta")
    assert patcher.shift(meta, 5000, grow=True) <= 5000
    assert 0 < patcher.loaded_size() < patcher.model_size()
    kept = weakref.ref(store(model))
    entry = weakref.ref(next(iter(store(model).entries.values())))
    del target, patcher
    model.model = None
    gc.collect()
    assert kept() is None and entry() is None


@pytest.mark.parametrize("precision", ["bf16", "8bit"])
@pytest.mark.parametrize("heads", [1, 2])
def test_what_is_asked_for_is_what_is_kept(
    precision: str, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads of 32 and of 16 channels: the scales of 8 bit are more for the smaller ones."""
    import comfy.model_management as management

    asked: list[float] = []
    load = management.load_models_gpu

    def loaded(models: Any, memory_required: float = 0, **more: Any) -> None:
        asked.append(memory_required)
        load(models, memory_required=memory_required, **more)

    model = tiny_flux(heads=heads)
    monkeypatch.setattr(management, "load_models_gpu", loaded)
    monkeypatch.setattr(model.model, "memory_required", lambda *_, **__: 0)
    sampled(cached(model, precision=precision), [ONE, TWO])
    assert asked[0] == store(model).num_bytes()


def test_a_second_node_on_the_same_model_is_no_memory_leak(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        for _ in range(3):
            target = cached(model)
            sampled(target, [ONE, TWO])
            del target
            gc.collect()
    assert "leak" not in caplog.text
    assert store(model).written == 2


@pytest.mark.parametrize("settings", [{}, {"precision": "8bit"}])
def test_references_in_system_memory_are_streamed(
    model: Any, settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a card: every block's references are sent for during the block before, in two slots."""
    from direct_lane import DirectLane
    from pack.dit.stored_tensor import StoredTensor
    from pack.model_loaders import reference_reading

    target = cached(model, **settings)
    direct = sampled(target, [ONE, TWO])
    slots: list[int] = []

    class Lane(DirectLane):
        def start(self, slot: int, copies: Any) -> None:
            slots.append(slot)
            super().start(slot, copies)

    monkeypatch.setattr(StoredTensor, "is_away", lambda *_: True)
    monkeypatch.setattr(reference_reading, "lane_for", lambda _: Lane())
    assert torch.equal(sampled(target, [ONE, TWO]), direct)
    # 3 steps of 4 blocks, and the first block of the step that does not come; the slots take turns.
    assert slots == [1, 0] * 6 + [1]
    assert store(model).written == 2


def test_what_was_unloaded_is_read_from_where_it_is(model: Any) -> None:
    import comfy.model_management

    target = cached(model)
    before = sampled(target, [ONE])
    comfy.model_management.unload_all_models()
    assert torch.equal(sampled(target, [ONE]), before)
    assert store(model).written == 1


def test_unused_references_make_room(model: Any) -> None:
    from pack.model_loaders.reference_store import MAX_IDLE

    target = cached(model)

    def paid(seed: int) -> int:
        before = store(model).written
        sampled(target, [reference(4, 4, seed)], sigmas=torch.tensor([1.0, 0.0]))
        return store(model).written - before

    count = MAX_IDLE + 4
    assert [paid(30 + number) for number in range(count)] == [1] * count
    assert len(store(model).entries) == MAX_IDLE + 1
    assert paid(30 + count - 2) == 0  # the one before is kept
    assert paid(30) == 1  # the oldest is gone


def after_one_and_two(model: Any, load: str, offload: str) -> tuple[Any, int, int]:
    """The store, ONE unused and TWO used, between two devices; and the bytes of both."""
    from pack.model_loaders.reference_store import StorePatcher

    target = cached(model)
    sampled(target, [ONE])
    sampled(target, [TWO])
    sizes = (entry.num_bytes for entry in store(model).entries.values())
    devices = {"load_device": torch.device(load), "offload_device": torch.device(offload)}
    return StorePatcher(store(model), **devices), *sizes


def test_unused_references_do_not_ask_for_the_card(model: Any) -> None:
    patcher, _, two = after_one_and_two(model, "meta", "cpu")
    assert (patcher.model_size(), patcher.loaded_size()) == (two, 0)
    assert patcher.partially_load(torch.device("meta"), 1e12) == two
    assert patcher.model_size() == patcher.loaded_size() == two
    assert len(store(model).entries) == 2


def test_a_store_that_has_to_shrink_drops_what_is_unused_first(model: Any) -> None:
    """ComfyUI asks so for weights too: by loading less than nothing."""
    patcher, one, two = after_one_and_two(model, "cpu", "meta")
    assert patcher.model_size() == one + two
    assert patcher.partially_load(torch.device("cpu"), -1) == -one
    assert patcher.model_size() == patcher.loaded_size() == two
    assert -two < patcher.partially_load(torch.device("cpu"), -1) < 0
    assert patcher.loaded_size() < patcher.model_size() == two


def test_what_is_taken_off_the_card_takes_no_unused_references_along(model: Any) -> None:
    patcher, one, two = after_one_and_two(model, "cpu", "meta")
    assert patcher.partially_unload(torch.device("meta"), one) == one
    patcher.detach()
    assert (patcher.model_size(), patcher.loaded_size()) == (two, 0)


def test_unused_references_make_way_for_what_is_written(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pack.model_loaders.reference_cache import attach_reference_cache
    from pack.model_loaders.reference_writing import CacheSettings

    heard: list[str] = []
    patched = attach_reference_cache(model, CacheSettings(), heard.append)
    patched.load_device = torch.device("cpu", 0)  # not the offload device, as on a GPU
    entries = store(model).entries
    monkeypatch.setattr(patched, "get_free_memory", lambda _: 0 if entries else 1e12, raising=False)
    for latent in (ONE, TWO):
        sampled(patched, [latent])
    assert heard == ["references: 1 written, 0 reused, 0 MB kept"] * 2
    assert len(entries) == 1


def test_system_memory_drops_what_is_unused_and_says_when_it_is_full(
    model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pack.model_loaders import reference_store

    import comfy.model_management as management

    _, one, two = after_one_and_two(model, "cpu", "meta")
    ram, room = torch.device("cpu"), [one]
    monkeypatch.setattr(management, "get_free_memory", lambda _: room[0])
    assert reference_store.fits_in_ram(store(model), ram, one)
    assert store(model).num_bytes() == one + two
    assert reference_store.fits_in_ram(store(model), ram, 2 * one)
    assert store(model).num_bytes() == two
    assert not reference_store.fits_in_ram(store(model), ram, 2 * one)
    devices = {"load_device": torch.device("meta"), "offload_device": torch.device("cpu")}
    patcher = reference_store.StorePatcher(store(model), **devices)
    patcher.partially_load(torch.device("meta"), 1e12)
    room[0] = two - 1
    unread = lambda part, device: torch.empty_like(part, device=device)
    monkeypatch.setattr("pack.dit.stored_tensor.moved_to", unread)
    with caplog.at_level("WARNING", logger="dreamomni"):
        patcher.detach()
    assert "references go to system memory, which has less free. Choose its precision '8bit'" in caplog.text
    assert patcher.loaded_size() == 0 and store(model).num_bytes(ram) == two


@pytest.mark.parametrize(
    ("precision", "choose"), [("bf16", "its precision '8bit', fewer"), ("8bit", "fewer")]
)
def test_references_that_fit_nowhere_are_an_error(
    model: Any, monkeypatch: pytest.MonkeyPatch, precision: str, choose: str
) -> None:
    from pack.model_loaders import reference_writing

    target = cached(model, precision=precision)
    monkeypatch.setattr(target, "get_free_memory", lambda _: 0, raising=False)
    monkeypatch.setattr(reference_writing, "fits_in_ram", lambda *_: False)
    with pytest.raises(ValueError, match=f"the GPU is full and system memory has less free. Choose {choose}"):
        sampled(target, [ONE])


def test_several_gpus_are_refused(model: Any) -> None:
    """ComfyUI's MultiGPU CFG Split behind the node, and before it."""
    words = "Reference Cache in its mode 'exact' works on one GPU, MultiGPU CFG Split uses several"
    target = cached(model)
    (patcher,) = target.get_additional_models()
    with pytest.raises(ValueError, match=words):
        patcher.deepclone_multigpu(new_load_device=torch.device("meta"))
    target.set_additional_models("multigpu", [model.clone()])
    with pytest.raises(ValueError, match=words):
        sampled(target, [ONE])


def test_8bit_is_smaller_and_near(model: Any) -> None:
    exact = sampled(cached(model), [ONE, TWO])
    full = store(model).num_bytes()
    store(model).entries.clear()
    near = sampled(cached(model, precision="8bit"), [ONE, TWO])
    assert store(model).num_bytes() < 0.35 * full
    error = 10 * torch.log10(exact.square().mean() / (near - exact).square().mean())
    assert float(error) >= 45


@pytest.mark.parametrize("kind", KINDS)
def test_out_of_memory_while_writing_falls_back_with_a_message(
    model: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from pack.model_loaders.reference_cache import attach_reference_cache
    from pack.model_loaders.reference_writing import CacheSettings, WritingPass

    heard: list[str] = []
    error = full_error(kind, monkeypatch)
    expected = sampled(cached(model), [ONE])
    store(model).entries.clear()
    real = WritingPass.write

    def full(self: Any, latent: Any, offset: Any, geometry: Any, options: Any, device: Any = None) -> Any:
        if device is None:
            raise error
        return real(self, latent, offset, geometry, options, device)

    monkeypatch.setattr(WritingPass, "write", full)
    patched = attach_reference_cache(model, CacheSettings(), heard.append)
    patched.load_device = torch.device("cpu", 0)  # not the offload device, as on a GPU
    out = sampled(patched, [ONE])
    close(out, expected)
    assert heard == [
        "references: 1 written, 0 reused, 0 MB kept\n"
        "not enough GPU memory for the references: kept in system memory, steps are slower"
    ]


@pytest.mark.parametrize("room", [0, 1e12])
def test_weights_that_make_way_when_asked_count_as_free(
    model: Any, room: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer hosts leave weights on a card until something else needs the room; the patcher counts it."""
    from pack.model_loaders.reference_cache import attach_reference_cache
    from pack.model_loaders.reference_writing import CacheSettings, WritingPass

    import comfy.model_management as management

    targets: list[Any] = []
    real = WritingPass.write

    def write(self: Any, latent: Any, offset: Any, geometry: Any, options: Any, device: Any = None) -> Any:
        targets.append(device)
        return real(self, latent, offset, geometry, options, device)

    free, card = management.get_free_memory, torch.device("cpu", 0)  # not the offload device, as on a GPU

    def full(device: Any = None, torch_free_too: bool = False) -> Any:
        # Attention asks for both.
        return free(device, True) if torch_free_too else 0 if device == card else free(device)

    monkeypatch.setattr(WritingPass, "write", write)
    monkeypatch.setattr(management, "get_free_memory", full)
    patched = attach_reference_cache(model, CacheSettings())
    patched.load_device = card
    monkeypatch.setattr(patched, "get_free_memory", lambda device: room, raising=False)
    sampled(patched, [ONE])
    assert targets == [None if room else patched.offload_device]


def test_the_second_attempt_has_the_memory_of_the_first(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pack.model_loaders.reference_writing import WritingPass

    import comfy.model_management as management

    made: list[weakref.ref] = []
    alive: list[bool] = []
    real = WritingPass.write

    def full_once(*args: Any, **kwargs: Any) -> Any:
        if not made:
            layers = torch.zeros(8)
            made.append(weakref.ref(layers))
            raise management.OOM_EXCEPTION("CUDA out of memory")
        alive.append(made[0]() is not None)
        return real(*args, **kwargs)

    monkeypatch.setattr(WritingPass, "write", full_once)
    sampled(cached(model), [ONE])
    assert alive == [False]


def test_a_run_tells_what_it_reused(model: Any) -> None:
    from pack.model_loaders.reference_cache import attach_reference_cache
    from pack.model_loaders.reference_writing import CacheSettings

    heard: list[str] = []
    target = attach_reference_cache(model, CacheSettings(), heard.append)
    sampled(target, [ONE])
    sampled(target, [ONE, TWO])
    assert heard == [
        "references: 1 written, 0 reused, 0 MB kept",
        "references: 1 written, 1 reused, 0 MB kept",
    ]

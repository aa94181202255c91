"""What OmniGen's prefix cache takes, and what happens where there is no room."""

from __future__ import annotations

import pytest
import torch
from full_device import KINDS, full_error
from omnigen_sampling import (
    cache_of,
    conditionings,
    load,
    noise_of,
    run,
    without_cache,
)
from tiny_omnigen import tiny_config, write_official

pytestmark = pytest.mark.host


@pytest.mark.parametrize("kind", KINDS)
def test_out_of_memory_while_writing_falls_back(omnigen_folder, monkeypatch, caplog, kind):
    from pack.dit.omnigen import cached

    error = full_error(kind, monkeypatch)
    model, processor = load(omnigen_folder)
    conds = conditionings(processor)
    plain = run(without_cache(model), conds, noise_of())

    def full(*_):
        raise error

    monkeypatch.setattr(cached, "write_entry", full)
    with caplog.at_level("WARNING", logger="dreamomni"):
        result = run(model, conds, noise_of())
    assert torch.equal(result, plain)
    assert "runs without it" in caplog.text


def test_a_limit_that_is_too_low_warns_once_in_a_run(omnigen_folder, caplog):
    model, processor = load(omnigen_folder, max_bytes=1000)
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


def test_the_default_limit_is_silent_and_so_is_none_at_all(omnigen_folder, caplog):
    for settings in ({}, {"max_bytes": 0}):
        model, processor = load(omnigen_folder, **settings)
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


def test_memory_estimate_counts_references_and_cache(loaded_omnigen):
    model, processor = loaded_omnigen
    shape = [1, 4, 128, 128]
    positive = conditionings(processor)[0][0]
    few = model.model.extra_conds_shapes(cross_attn=positive[0])
    assert few == {"prefixes": [1, 1, positive[0].shape[1]]}
    none = model.model.memory_required(shape, cond_shapes={})
    some = model.model.memory_required(shape, cond_shapes={"prefixes": [[1, 1, 4096]]})
    both = model.model.memory_required(shape, cond_shapes={"prefixes": [[1, 1, 4096], [1, 1, 4096]]})
    assert none < some < both
    assert both - some == 4096 * 2 * 2 * 32 * 4


def test_memory_estimate_follows_the_cache_settings(omnigen_folder):
    shape, lengths = [1, 4, 128, 128], {"prefixes": [[1, 1, 4096], [1, 1, 4096]]}
    tokens = 4096 * 2

    def estimate(**settings):
        return load(omnigen_folder, **settings)[0].model.memory_required(shape, cond_shapes=lengths)

    without = estimate(enabled=False)
    assert estimate(max_bytes=0) == without
    # 2 layers, 4 heads, keys and values: 8 fp32 channels, or 8 bytes and a scale.
    assert estimate() - without == tokens * 2 * 2 * 4 * 32
    assert estimate(eight_bit=True) - without == tokens * 2 * 2 * 4 * (8 + 4)
    assert estimate(max_bytes=1000) - without == 1000


def test_another_patcher_of_the_folder_keeps_the_settings(omnigen_folder):
    """Newer hosts make one of another kind by calling the loader again."""
    from pack.dit.omnigen.prefix_cache import CacheSettings
    from pack.model_loaders.omnigen_model import CACHE_OPTION

    model = load(omnigen_folder, eight_bit=True)[0]
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

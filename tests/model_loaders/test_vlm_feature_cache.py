"""Hidden states are evaluated once, and again as soon as anything they depend on changes."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.host

ONE, TWO = (torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
SAME = {"prompt": "a red bag", "pictures": (ONE, TWO), "layer": -1, "template": "chat"}


@pytest.fixture(autouse=True)
def features(monkeypatch: pytest.MonkeyPatch) -> Any:
    from pack.model_loaders.encode_cache import FeatureCache
    from pack.nodes import vlm as nodes

    monkeypatch.setattr(nodes, "FEATURES", FeatureCache())
    return nodes.FEATURES


@pytest.fixture
def vlm(vlm_folder: Any) -> Any:
    from pack.model_loaders.vlm import load_vlm

    return load_vlm(vlm_folder("qwen2_5_vl"), "fp32")


def evaluations(vlm: Any) -> list[int]:
    calls: list[int] = []
    vlm.network.model.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def encoded(vlm: Any, **change: Any) -> tuple[torch.Tensor, dict]:
    """The conditioning of the node, from fresh copies of the pictures."""
    from pack.dit.references import ResizeRule, Task, build_references
    from pack.nodes.vlm import VLMEncode

    asked = {**SAME, **change}
    pictures = [picture.clone() for picture in asked.pop("pictures")]
    references = build_references(Task.EDIT, ResizeRule.NONE, pictures) if pictures else None
    with torch.inference_mode():
        ((tokens, extras),) = VLMEncode.execute(vlm, asked.pop("prompt"), references, **asked).args[0]
    return tokens, extras


def test_the_same_again_evaluates_nothing_and_gives_the_same(vlm: Any, features: Any) -> None:
    calls = evaluations(vlm)
    (first, extras), (again, more) = encoded(vlm), encoded(vlm)
    assert len(calls) == features.computed == features.reused == 1
    assert torch.equal(first, again)
    assert all(torch.equal(extras[name], more[name]) for name in extras)


def brighter(picture: torch.Tensor) -> torch.Tensor:
    """The same but for 5 of 255 in one pixel."""
    changed = picture.clone()
    changed[0, 20, 30] = (changed[0, 20, 30] + 5 / 255) % 1
    return changed


CHANGES = {
    "one letter": {"prompt": "a red bag "},
    "no words": {"prompt": ""},
    "order": {"pictures": (TWO, ONE)},
    "fewer pictures": {"pictures": (ONE,)},
    "no pictures": {"pictures": ()},
    "a pixel": {"pictures": (ONE, brighter(TWO))},
    "size": {"pictures": (ONE, TWO[:, :32])},
    "layer": {"layer": -2},
    "embeddings": {"layer": 0},
    "template": {"template": "plain"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_request_is_evaluated_and_equals_one_without_cache(vlm: Any, change: dict) -> None:
    calls = evaluations(vlm)
    before, _ = encoded(vlm)
    found, _ = encoded(vlm, **change)
    assert len(calls) == 2
    asked = {**SAME, **change}
    fresh = vlm.hidden_states(
        asked["prompt"], asked["pictures"], asked["layer"], template=asked["template"]
    ).tokens
    assert torch.equal(found, fresh)
    assert found.shape != before.shape or not torch.equal(found, before)
    assert torch.equal(encoded(vlm)[0], before)


def test_the_token_limit_holds_for_what_is_kept_too(vlm: Any) -> None:
    encoded(vlm)
    with pytest.raises(ValueError, match="over the limit of 16"):
        encoded(vlm, max_tokens=16)


def test_a_patch_of_the_weights_is_never_stale(vlm: Any) -> None:
    before, _ = encoded(vlm)
    name = "network.model.language_model.layers.1.mlp.down_proj.weight"
    change = torch.randn_like(dict(vlm.model_patcher.model.named_parameters())[name])
    assert vlm.model_patcher.add_patches({name: ("diff", (change,))}) == [name]
    patched, _ = encoded(vlm)
    assert float((patched - before).abs().max()) > 1e-2
    vlm.model_patcher.unpatch_model()


def test_a_replaced_part_of_the_network_is_never_stale(vlm: Any) -> None:
    calls = evaluations(vlm)
    encoded(vlm)
    vlm.model_patcher.add_object_patch("network.model.language_model.norm", torch.nn.Identity())
    encoded(vlm)
    assert len(calls) == 2
    vlm.model_patcher.unpatch_model()


def test_another_precision_or_file_is_evaluated_by_itself(vlm: Any, vlm_folder: Any, tmp_path: Any) -> None:
    from pack.model_loaders.vlm import load_vlm
    from tiny_vlm import build_model

    whole, _ = encoded(vlm)
    half, _ = encoded(load_vlm(vlm_folder("qwen2_5_vl"), "bf16"))
    assert half.dtype == torch.bfloat16
    shutil.copytree(vlm_folder("qwen2_5_vl"), tmp_path / "other", copy_function=os.link)
    (tmp_path / "other" / "model.safetensors").unlink()
    build_model("qwen2_5_vl", seed=1).save_pretrained(tmp_path / "other")
    other, _ = encoded(load_vlm(tmp_path / "other", "fp32"))
    assert not torch.equal(other, whole)
    assert torch.equal(encoded(vlm)[0], whole)


def test_a_handle_whose_precision_is_exchanged_is_not_believed(vlm: Any, features: Any) -> None:
    from pack.model_loaders.vlm import choose_precision

    encoded(vlm)
    vlm.precision = choose_precision("bf16", vlm.load_device)
    encoded(vlm)
    assert features.computed == 2


def test_what_is_given_out_may_be_written_to(vlm: Any) -> None:
    first, extras = encoded(vlm)
    kept = first.clone()
    with torch.inference_mode():
        first.zero_()
        extras["dreamomni_image_index"].zero_()
    again, more = encoded(vlm)
    assert torch.equal(again, kept)
    assert more["dreamomni_image_index"].unique().tolist() == [0, 1, 2]


def test_a_batch_shares_what_single_pictures_left(vlm: Any) -> None:
    calls = evaluations(vlm)
    encoded(vlm, pictures=(ONE,))
    encoded(vlm, pictures=(torch.cat((ONE, TWO)),))
    assert len(calls) == 2


def test_they_are_bounded_in_bytes_and_go_with_the_vlm(vlm_folder: Any, features: Any) -> None:
    from pack.model_loaders.vlm import load_vlm

    vlm = load_vlm(vlm_folder("qwen2_5_vl"), "fp32")
    encoded(vlm)
    size = features.size(vlm)
    # 64 numbers of 4 bytes, a mask of 1 and an index of 8 for every token.
    assert size > 0 and size % (64 * 4 + 1 + 8) == 0
    features.max_bytes = int(2.5 * size)
    for prompt in ("a blue bag", "a green bag", "a black bag"):
        encoded(vlm, prompt=prompt)
    assert size < features.size(vlm) <= features.max_bytes
    asked = features.computed
    encoded(vlm, prompt="a black bag")
    assert features.computed == asked
    encoded(vlm)
    assert features.computed == asked + 1
    kept = weakref.ref(next(iter(features.results[vlm].values())).tokens)
    del vlm
    gc.collect()
    assert kept() is None
    assert not features.results


def test_an_error_keeps_nothing(vlm: Any, features: Any) -> None:
    with pytest.raises(ValueError, match="layer 9 does not exist"):
        encoded(vlm, layer=9)
    assert features.size(vlm) == features.computed == 0


def test_the_node_says_what_was_reused(vlm: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="dreamomni"):
        encoded(vlm)
        encoded(vlm)
    assert caplog.messages[-2:] == ["1 computed, 0 reused, 0 MB kept", "0 computed, 1 reused, 0 MB kept"]

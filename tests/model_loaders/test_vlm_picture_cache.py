"""The vision tower runs once for the same pictures, whatever is said about them; nothing kept is stale."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = pytest.mark.host

ONE, TWO = (torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))


@pytest.fixture(params=["qwen2_vl", "qwen2_5_vl"])
def vlm(vlm_folder: Any, request: pytest.FixtureRequest) -> Any:
    from pack.model_loaders.encode_cache import PictureCache
    from pack.model_loaders.vlm import load_vlm

    loaded = load_vlm(vlm_folder(request.param), "fp32")
    loaded.seen = PictureCache()
    return loaded


def tower_runs(vlm: Any) -> list[int]:
    runs: list[int] = []
    vlm.network.model.visual.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


def fresh(vlm: Any, prompt: str, pictures: tuple) -> torch.Tensor:
    """Hidden states with nothing kept."""
    from pack.model_loaders.encode_cache import PictureCache

    kept, vlm.seen = vlm.seen, PictureCache()
    tokens = vlm.hidden_states(prompt, pictures).tokens
    vlm.seen = kept
    return tokens


def test_other_words_about_the_same_pictures_run_no_tower_and_change_nothing(vlm: Any) -> None:
    wanted = fresh(vlm, "a blue bag", (ONE, TWO))
    runs = tower_runs(vlm)
    vlm.hidden_states("a red bag", (ONE, TWO))
    found = vlm.hidden_states("a blue bag", (ONE.clone(), TWO.clone())).tokens
    assert len(runs) == vlm.seen.computed == vlm.seen.reused == 1
    assert torch.equal(found, wanted)


def test_an_answer_uses_what_the_encoder_saw(vlm: Any) -> None:
    alone = vlm.generate_text("say", (ONE,), 6)
    runs = tower_runs(vlm)
    vlm.hidden_states("look", (ONE,))
    assert vlm.generate_text("say", (ONE,), 6) == alone
    assert not runs


@pytest.mark.parametrize("pictures", [(TWO, ONE), (ONE,), (ONE, TWO[:, :32]), (ONE, 1 - TWO)])
def test_other_pictures_are_looked_at(vlm: Any, pictures: tuple) -> None:
    vlm.hidden_states("a bag", (ONE, TWO))
    runs = tower_runs(vlm)
    found = vlm.hidden_states("a bag", pictures).tokens
    assert len(runs) == 1
    assert torch.equal(found, fresh(vlm, "a bag", pictures))


def test_a_patched_tower_looks_again(vlm: Any) -> None:
    before = vlm.hidden_states("a bag", (ONE,)).tokens
    name = next(
        name
        for name, _ in vlm.model_patcher.model.named_parameters()
        if "visual.blocks.0.mlp" in name and name.endswith("weight")
    )
    change = torch.randn_like(dict(vlm.model_patcher.model.named_parameters())[name])
    assert vlm.model_patcher.add_patches({name: ("diff", (change,))}) == [name]
    assert float((vlm.hidden_states("a bag", (ONE,)).tokens - before).abs().max()) > 1e-3
    vlm.model_patcher.unpatch_model()


def test_words_alone_and_a_failure_leave_the_tower_as_it_was(vlm: Any) -> None:
    tower = vlm.network.model.visual
    vlm.hidden_states("no pictures", ())
    assert vlm.seen.computed == 0

    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    hook = tower.blocks[0].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        vlm.hidden_states("a bag", (ONE,))
    hook.remove()
    assert "forward" not in vars(tower)
    assert vlm.seen.size(vlm) == 0


def test_what_is_kept_is_bounded(vlm: Any) -> None:
    vlm.hidden_states("a bag", (ONE,))
    vlm.seen.max_bytes = vlm.seen.size(vlm)
    vlm.hidden_states("a bag", (TWO,))
    assert vlm.seen.size(vlm) == vlm.seen.max_bytes
    runs = tower_runs(vlm)
    vlm.hidden_states("two bags", (TWO,))
    vlm.hidden_states("two bags", (ONE,))
    assert len(runs) == 1

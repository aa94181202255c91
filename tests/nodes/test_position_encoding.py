"""How the position encoding hangs on a MODEL: on a clone, keyed, stacking, stateless, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from host_models import kontext_model

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def model() -> Any:
    return kontext_model()


def test_the_help_page_says_where_each_encoding_starts() -> None:
    from pack.dit.positions import PositionScheme

    page = (Path(__file__).parents[2] / "web" / "docs" / "DreamOmniPositionEncoding.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in page.splitlines() if "|" in line]
    said = {name.strip("`"): (index, column) for name, index, column in rows if name.startswith("`")}
    start = said[PositionScheme.INDEX_OFFSET.value][1]
    for scheme in PositionScheme:
        index, column = said[scheme.value]
        assert index == ("n" if scheme.has_index else "1")
        assert column in ((start, "as for `index+offset`") if scheme.has_offset else ("0",))


def encode(model: Any, encoding: str = "index+offset") -> Any:
    from pack.nodes.kontext import PositionEncoding

    return PositionEncoding.execute(model, encoding).args[0]


def ids_seen(model: Any, latents: list[torch.Tensor], later: Any = None) -> torch.Tensor:
    """The image ids that reach the blocks, from a real call of the network."""
    seen = []

    def look(tokens: dict) -> dict:
        seen.append(tokens["img_ids"])
        return tokens

    options = {**model.model_options["transformer_options"], "wrappers": model.wrappers}
    options["patches"] = {"post_input": [*([later] if later else []), look]}
    network = model.model.diffusion_model
    with torch.inference_mode():
        network(
            torch.zeros(1, 16, 4, 4),
            torch.ones(1),
            context=torch.zeros(1, 2, 24),
            y=torch.zeros(1, 16),
            guidance=torch.ones(1),
            ref_latents=latents,
            transformer_options=options,
        )
    return seen[0][0]


def starts(ids: torch.Tensor) -> list[list[float]]:
    return [ids[i].tolist() for i in (4, 10)]


TWO = [torch.zeros(1, 16, 4, 6), torch.zeros(1, 16, 2, 4)]


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("index+offset", [[1, 0, 0], [2, 0, 3]]),
        ("index", [[1, 0, 0], [2, 0, 0]]),
        ("offset", [[1, 0, 0], [1, 0, 3]]),
        ("none", [[1, 0, 0], [1, 0, 0]]),
    ],
)
def test_ids_inside_the_network(model: Any, encoding: str, expected: list) -> None:
    ids = ids_seen(encode(model, encoding), TWO)
    assert starts(ids) == expected
    assert ids[:4].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert len(ids) == 4 + 6 + 2


def test_the_input_model_is_untouched_and_the_clone_shares_its_weights(model: Any) -> None:
    encoded = encode(model)
    assert encoded is not model
    assert encoded.model is model.model
    assert not model.wrappers
    assert starts(ids_seen(model, TWO)) != starts(ids_seen(encoded, TWO))


def test_applying_twice_leaves_one_wrapper_and_the_last_scheme_wins(model: Any) -> None:
    twice = encode(encode(model, "offset"), "index+offset")
    assert [len(by_key) for by_key in twice.wrappers.values()] == [1, 1]
    assert all(len(found) == 1 for by_key in twice.wrappers.values() for found in by_key.values())
    assert starts(ids_seen(twice, TWO)) == [[1, 0, 0], [2, 0, 3]]


def test_no_state_between_calls_with_different_references(model: Any) -> None:
    encoded = encode(model)
    first = ids_seen(encoded, TWO)
    swapped = ids_seen(encoded, TWO[::-1])
    assert swapped[6].tolist() == [2, 0, 2]
    assert torch.equal(ids_seen(encoded, TWO), first)
    assert len(ids_seen(encoded, [])) == 4


def test_patches_of_others_still_run_and_see_the_moved_ids(model: Any) -> None:
    def shift_text(tokens: dict) -> dict:
        return {**tokens, "img_ids": tokens["img_ids"] + 100}

    assert starts(ids_seen(encode(model), TWO, later=shift_text)) == [[101, 100, 100], [102, 100, 103]]


def test_wrappers_of_others_stay(model: Any) -> None:
    from comfy.patcher_extension import WrappersMP

    calls = []

    def count(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return executor(*args, **kwargs)

    wrapped = model.clone()
    wrapped.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "other", count)
    assert starts(ids_seen(encode(wrapped), TWO)) == [[1, 0, 0], [2, 0, 3]]
    assert calls == [1]


def test_a_patcher_of_another_loader_keeps_its_class(model: Any) -> None:
    """GGUF loaders subclass ModelPatcher around an ordinary Flux."""
    import comfy.model_patcher

    class GGUFModelPatcher(comfy.model_patcher.ModelPatcher):
        pass

    other = GGUFModelPatcher(model.model, model.load_device, model.offload_device)
    encoded = encode(other)
    assert type(encoded) is GGUFModelPatcher
    assert starts(ids_seen(encoded, TWO)) == [[1, 0, 0], [2, 0, 3]]


class OtherNetwork(torch.nn.Module):
    pass


def patcher_with(network: torch.nn.Module, model: Any) -> Any:
    other = model.clone()
    other.add_object_patch("diffusion_model", network)
    return other


def test_a_network_that_is_not_flux_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=r"is for FLUX.1 Kontext; this MODEL is Flux \(OtherNetwork\)"):
        encode(patcher_with(OtherNetwork(), model))


def test_a_nunchaku_wrapper_is_refused(model: Any) -> None:
    kind = type("ComfyFluxWrapper", (torch.nn.Module,), {"__module__": "ComfyUI-nunchaku.wrappers.flux"})
    with pytest.raises(ValueError, match="nunchaku Flux: its wrapper ignores reference methods"):
        encode(patcher_with(kind(), model))


def test_flux_2_is_refused(model: Any) -> None:
    from copy import copy
    from dataclasses import replace

    network = copy(model.model.diffusion_model)
    network.params = replace(network.params, axes_dim=[8, 8, 8, 8])
    with pytest.raises(ValueError, match=r"4 position axes \(FLUX.2\)"):
        encode(patcher_with(network, model))


TEXT = [[torch.zeros(1, 2, 24), {"pooled_output": torch.zeros(1, 16)}]]


def sample(model: Any, latents: list[torch.Tensor], batch: int = 1) -> torch.Tensor:
    from pack.model_loaders.reference_latents import append_reference_latents

    cond = append_reference_latents(TEXT, latents)
    return sample_from(model, torch.ones(batch, 16, 4, 4), cond, cond)


def sample_from(model: Any, noise: torch.Tensor, positive: list, negative: list) -> torch.Tensor:
    import comfy.samplers

    with torch.inference_mode():
        return comfy.samplers.sample(
            model, noise, positive, negative, 2.0, model.load_device,
            comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.0]),
            model_options=model.model_options, latent_image=torch.zeros_like(noise),
        )  # fmt: skip


def test_a_latent_of_another_vae_is_refused_before_sampling_and_the_next_prompt_works(model: Any) -> None:
    encoded = encode(model)
    with pytest.raises(ValueError, match=r"reference 2 is a latent of shape .* this model takes 16 channels"):
        sample(encoded, [TWO[0], torch.zeros(1, 4, 4, 6)])
    assert sample(encoded, TWO).isfinite().all()


def test_references_that_would_be_dropped_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=r"reference 1 is a batch of 3 but 1 picture\(s\) are sampled"):
        sample(encode(model), [torch.zeros(3, 16, 4, 6)])
    assert len(sample(encode(model), [torch.zeros(3, 16, 4, 6)], batch=3)) == 3


def test_text_only_conditioning_samples_as_plain_kontext(model: Any) -> None:
    assert torch.equal(sample(encode(model), []), sample(model, []))


def with_index(text: list) -> list:
    """What VLM Encode gives: states, their mask and the picture of each token."""
    index = torch.zeros(1, 2, dtype=torch.long)
    return [[text[0][0], {"attention_mask": index.bool(), "dreamomni_image_index": index}]]


def as_ids() -> list:
    """What OmniGen Encode gives of an edit: token ids and a latent of its own VAE."""
    return [[torch.ones(1, 84, dtype=torch.int64), {"reference_latents": [torch.zeros(1, 4, 4, 4)]}]]


@pytest.mark.parametrize(
    ("conditioning", "found"),
    [
        (with_index(TEXT), "is VLM Encode's"),
        (as_ids(), "is OmniGen Encode's"),
        ([[TEXT[0][0], {}]], "has no pooled text"),
    ],
)
@pytest.mark.parametrize("side", ["positive", "negative", "emptied"])
def test_text_of_another_model_is_refused_before_anything_is_loaded(
    model: Any, monkeypatch: pytest.MonkeyPatch, conditioning: list, found: str, side: str
) -> None:
    import comfy.model_management
    import nodes

    loads: list[Any] = []
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", lambda *args, **kwargs: loads.append(args))
    emptied = nodes.ConditioningZeroOut().zero_out(conditioning)[0]
    sides = {"positive": (conditioning, TEXT), "negative": (TEXT, conditioning), "emptied": (TEXT, emptied)}
    message = f"this conditioning {found}, but Kontext reads CLIP Text Encode's.* connect Rewrite Prompt's"
    with pytest.raises(ValueError, match=message):
        sample_from(encode(model), torch.ones(1, 16, 4, 4), *sides[side])
    assert not loads


def test_text_that_went_through_stock_nodes_is_taken(model: Any) -> None:
    from comfy_extras.nodes_flux import FluxGuidance

    import nodes

    encoded, noise = encode(model), torch.ones(1, 16, 4, 4)
    emptied = nodes.ConditioningZeroOut().zero_out(TEXT)[0]
    guided = FluxGuidance.execute(TEXT, 2.5).args[0]
    controlled = nodes.ControlNetApplyAdvanced().apply_controlnet(
        guided, emptied, silent_control(), torch.zeros(1, 32, 32, 3), 1.0, 0.0, 1.0
    )
    # An encoder without CLIP leaves the pooled text empty, which Flux takes.
    text_alone = [[TEXT[0][0], {"pooled_output": None}]]
    for pair in ((guided, emptied), controlled, (guided, []), (text_alone, text_alone)):
        assert sample_from(encoded, noise, *pair).isfinite().all()


def silent_control() -> Any:
    """A ControlNet that adds nothing."""
    import comfy.controlnet

    class Silent(comfy.controlnet.ControlBase):
        def get_control(self, *call: Any) -> None:
            return None

        def copy(self) -> Silent:
            return Silent()

    return Silent()

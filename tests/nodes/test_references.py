"""The reference nodes in the real host, with a small stand-in VAE."""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfy_stand_ins import CountingVAE
from host_models import kontext_model
from live_server import WORKFLOWS, read_workflow
from workflow_nodes import run_nodes, running

pytestmark = pytest.mark.host


def picture(width: int = 32, height: int = 48, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(seed))


def reference_set(*images: torch.Tensor, task: str = "edit", resize: str = "none") -> tuple:
    from pack.nodes.references import ReferenceSetNode

    slots = {f"image_{n}": image for n, image in enumerate(images, start=1)}
    return ReferenceSetNode.execute(task, resize, **slots).args


def conditioned(references: object, vae: object, **options: str) -> tuple:
    from pack.nodes.references import ReferenceConditioning

    return ReferenceConditioning.execute(
        [[torch.zeros(1, 4, 8), {"guidance": 3.5}]], vae, references, **options
    )


def test_the_set_gives_image_1_as_used_and_its_size() -> None:
    references, image, width, height = reference_set(picture(60, 40), picture(), resize="kontext")
    assert (width, height) == (1248, 832)
    assert image is references.images[0]
    assert len(references.images) == 2


def test_without_images_the_image_output_is_blocked_and_noted(caplog: pytest.LogCaptureFixture) -> None:
    from comfy_execution.graph_utils import ExecutionBlocker

    with caplog.at_level("INFO", logger="dreamomni"):
        references, image, width, height = reference_set()
    assert references.images == ()
    assert isinstance(image, ExecutionBlocker)
    assert (width, height) == (1024, 1024)
    assert "No image connected" in caplog.text


def test_latents_are_appended_in_order_and_equal_pictures_encoded_once() -> None:
    vae = CountingVAE()
    one, other = picture(32, 48, seed=1), picture(64, 16, seed=2)
    references = reference_set(one, other, one.clone())[0]
    conditioning, latent = conditioned(references, vae)
    latents = conditioning[0][1]["reference_latents"]
    assert [tuple(item.shape) for item in latents] == [(1, 16, 6, 4), (1, 16, 2, 8), (1, 16, 6, 4)]
    assert vae.calls == 2
    torch.testing.assert_close(latents[0], CountingVAE().encode(one))
    torch.testing.assert_close(latents[1], CountingVAE().encode(other))
    assert conditioning[0][1]["reference_latents_method"] == "index"
    assert conditioning[0][1]["guidance"] == 3.5
    assert latent["samples"].shape == (1, 16, 6, 4)
    assert not latent["samples"].any()


def test_earlier_reference_latents_stay_in_front_and_the_input_is_untouched() -> None:
    from pack.nodes.references import ReferenceConditioning

    earlier = torch.ones(1, 16, 2, 2)
    given = [[torch.zeros(1, 4, 8), {"reference_latents": [earlier]}]]
    out = ReferenceConditioning.execute(given, CountingVAE(), reference_set(picture())[0]).args[0]
    assert len(out[0][1]["reference_latents"]) == 2
    assert out[0][1]["reference_latents"][0] is earlier
    assert given[0][1].keys() == {"reference_latents"}
    assert len(given[0][1]["reference_latents"]) == 1


def test_a_batch_of_image_1_makes_a_batch_of_latents() -> None:
    conditioning, latent = conditioned(reference_set(picture(batch=3), picture(64, 16))[0], CountingVAE())
    latents = conditioning[0][1]["reference_latents"]
    assert [len(item) for item in latents] == [3, 1]
    assert latent["samples"].shape == (3, 16, 6, 4)


def test_without_images_the_conditioning_passes_unchanged() -> None:
    from pack.nodes.references import ReferenceConditioning

    given = [[torch.zeros(1, 4, 8), {}]]
    vae = CountingVAE()
    conditioning, latent = ReferenceConditioning.execute(given, vae, reference_set()[0]).args
    assert conditioning is given
    assert latent["samples"].shape == (1, 16, 128, 128)
    assert vae.calls == 0


def test_the_narrow_sizes() -> None:
    references = reference_set(picture(20, 48), resize="kontext")[0]
    assert conditioned(references, CountingVAE())[1]["samples"].shape[2:] == (196, 84)
    published = conditioned(references, CountingVAE(), latent_size="as published")[1]["samples"]
    assert published.shape[2:] == (1552 // 8, 656 // 8)


def test_another_vae_of_pictures_keeps_its_own_channels() -> None:
    conditioning, latent = conditioned(reference_set(picture())[0], CountingVAE(channels=4))
    assert conditioning[0][1]["reference_latents"][0].shape == (1, 4, 6, 4)
    assert latent["samples"].shape == (1, 4, 6, 4)


def test_a_vae_for_video_is_refused() -> None:
    with pytest.raises(ValueError, match=r"this VAE made a latent of shape \(1, 16, 1, 6, 4\) from image_1"):
        conditioned(reference_set(picture())[0], CountingVAE(video=True))


NO_PLACES = "no Position Encoding in this graph"


def graph_with(*class_types: str) -> dict[str, Any]:
    classes = ("DreamOmniReferenceConditioning", "SamplerCustomAdvanced", *class_types)
    return {str(number): {"class_type": name, "inputs": {}} for number, name in enumerate(classes, start=1)}


def note_on_conditioning(graph: dict[str, Any], count: int, caplog: pytest.LogCaptureFixture) -> str:
    from pack.nodes.references import ReferenceConditioning

    references = reference_set(*(picture(seed=n) for n in range(count)))[0]
    caplog.clear()
    with caplog.at_level("INFO", logger="dreamomni"):
        node = running(ReferenceConditioning, {"unique_id": "1", "prompt": graph})
        node.execute([[torch.zeros(1, 4, 8), {}]], CountingVAE(), references)
    (message,) = caplog.messages
    return message


def test_several_pictures_without_position_encoding_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    text = note_on_conditioning(graph_with(), 2, caplog)
    assert text.startswith(f"2 pictures, and {NO_PLACES}")
    assert "Put it behind the LoRA" in text
    assert note_on_conditioning(graph_with(), 1, caplog) == "1 picture in the conditioning."
    for placing in ("DreamOmniPositionEncoding", "DreamOmniLoadDreamOmni"):
        assert note_on_conditioning(graph_with(placing), 3, caplog) == "3 pictures in the conditioning."


@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_shipped_workflow_is_told_that_position_encoding_is_missing(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    types = [node["type"] for node in read_workflow(name)["nodes"]]
    if "DreamOmniReferenceConditioning" in types:
        assert NO_PLACES not in note_on_conditioning(graph_with(*types), 2, caplog)


def test_position_encoding_takes_the_note_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference Conditioning's result is kept when the node is added, so it does not run and speak again."""
    from pack.nodes.kontext import PLACED, PositionEncoding

    sent: list[tuple[str, str]] = []
    server = SimpleNamespace(
        client_id="me", send_progress_text=lambda text, node, sid: sent.append((node, text))
    )
    host = SimpleNamespace(PromptServer=SimpleNamespace(instance=server))
    monkeypatch.setitem(sys.modules, "server", host)
    graph = graph_with("DreamOmniPositionEncoding")
    node = running(PositionEncoding, {"unique_id": "1", "prompt": graph})
    node.execute(kontext_model(), "index+offset")
    assert sent == [("1", PLACED)]


def test_the_rest_of_the_graph_makes_no_node_run_anew() -> None:
    """ComfyUI's cache key must not hold the graph that these nodes are shown."""
    from comfy_execution.caching import CacheKeySetInputSignature
    from comfy_execution.graph import DynamicPrompt
    from pack.nodes.kontext import PositionEncoding
    from pack.nodes.references import ReferenceConditioning

    import nodes

    ours = {node.GET_SCHEMA().node_id: node for node in (ReferenceConditioning, PositionEncoding)}

    async def never_changed(_: str) -> bool:
        return False

    def keys(graph: dict[str, Any]) -> list[Any]:
        found = CacheKeySetInputSignature(
            DynamicPrompt(graph), list(graph), SimpleNamespace(get=never_changed)
        )
        asyncio.run(found.add_keys(["1", "3"]))
        return [found.get_data_key("1"), found.get_data_key("3")]

    graph = graph_with("DreamOmniPositionEncoding")
    with pytest.MonkeyPatch.context() as patch:
        for name, node in ours.items():
            patch.setitem(nodes.NODE_CLASS_MAPPINGS, name, node)
        before = keys(graph)
        assert keys(graph | graph_with("DreamOmniPositionEncoding", "SaveImage", "LoadImage")) == before


def test_the_set_says_what_a_batch_makes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="dreamomni"):
        reference_set(picture(batch=3), picture(seed=1))
        reference_set(picture(), picture(seed=1), task="generate")
        reference_set(picture())
    assert caplog.messages == [
        "image_1 is a batch of 3: 3 results.", "2 pictures, task generate.", "1 picture, task edit.",
    ]  # fmt: skip


def test_the_region_workflow_changes_nothing_outside_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """And around the region the sampler starts from image 1, not from the grey of an empty latent."""
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=None))
    from comfy_extras.nodes_images import GetImageSize
    from comfy_extras.nodes_mask import ImageCompositeMasked
    from pack.nodes.references import ReferenceSetNode

    import nodes

    classes = {
        "DreamOmniReferenceSet": ReferenceSetNode,
        "VAEEncode": nodes.VAEEncode,
        "SetLatentNoiseMask": nodes.SetLatentNoiseMask,
        "GetImageSize": GetImageSize,
        "ImageScale": nodes.ImageScale,
        "ImageCompositeMasked": ImageCompositeMasked,
    }
    source, mask = picture(640, 427), torch.zeros(1, 427, 640)
    mask[:, 100:200, 50:300] = 1
    vae = CountingVAE()
    # The model paints white, in the size that Kontext has for 3:2.
    results = {
        "LoadImage": (source, mask),
        "VAELoader": (vae,),
        "VAEDecode": (torch.ones(1, 832, 1248, 3),),
    }
    run_nodes("edit-region", classes, results)
    assert results["DreamOmniReferenceSet"][2:] == (1248, 832)
    latent = results["SetLatentNoiseMask"][0]
    torch.testing.assert_close(latent["samples"], vae.encode(results["DreamOmniReferenceSet"][1]))
    assert latent["noise_mask"].shape == (1, 1, 427, 640)
    (sampler,) = (n for n in read_workflow("edit-region")["nodes"] if n["type"] == "SamplerCustomAdvanced")
    given = next(item["link"] for item in sampler["inputs"] if item["name"] == "latent_image")
    sources = {number: origin for number, origin, *_ in read_workflow("edit-region")["links"]}
    types = {node["id"]: node["type"] for node in read_workflow("edit-region")["nodes"]}
    assert types[sources[given]] == "SetLatentNoiseMask"
    composite = results["ImageCompositeMasked"][0]
    region = mask[0].bool()
    assert torch.equal(composite[0][~region], source[0][~region])
    assert bool((composite[0][region] == 1).all())


def test_a_part_of_a_photo_is_cropped_and_pasted_back_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=None))
    from comfy_extras.nodes_images import ImageCrop
    from comfy_extras.nodes_mask import CropMask, ImageCompositeMasked

    photo, mask, place = picture(80, 60), torch.rand(1, 60, 80), {"x": 24, "y": 8}
    part = ImageCrop().crop(photo, 32, 40, **place)[0]
    mask_of_part = CropMask().crop(mask, width=32, height=40, **place)[0]
    assert part.shape[1:3] == mask_of_part.shape[1:] == (40, 32)
    paste = ImageCompositeMasked().composite
    assert torch.equal(paste(photo, part, **place, resize_source=False)[0], photo)
    changed = paste(photo, part + 1, **place, resize_source=False)[0]
    assert torch.equal(changed[:, 8:48, 24:56], part + 1)
    assert int((changed != photo).any(-1).sum()) == 32 * 40

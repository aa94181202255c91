"""The DreamOmni nodes: thin faces over what is tested elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_dreamomni import write_adapter, write_dreamomni
from workflow_nodes import run_nodes

pytestmark = pytest.mark.host


def test_load_encode_and_sample_through_the_nodes(models_dir) -> None:
    from pack.dit.references import ReferenceSet, Task
    from pack.nodes.dreamomni import LoadDreamOmni
    from pack.nodes.references import ReferenceConditioning
    from pack.nodes.vlm import VLMEncode

    import comfy.sample

    write_dreamomni(models_dir / "dreamomni" / "toy")
    model, vlm, vae = LoadDreamOmni.execute("toy", "default").result
    picture = torch.rand(1, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    references = ReferenceSet(Task.EDIT, (picture,))
    results = []
    for prompt in ("remove the red ball", "make it blue"):
        encoded = VLMEncode.execute(vlm, prompt, references).result[0]
        positive, latent = ReferenceConditioning.execute(encoded, vae, references).result
        noise = torch.randn(1, 48, 8, 12, generator=torch.Generator().manual_seed(1))
        sampled = comfy.sample.sample(
            model, noise, 2, 1.0, "euler", "simple", positive, positive, latent["samples"], disable_pbar=True
        )
        results.append(vae.decode(sampled))
    assert results[0].shape == picture.shape
    assert (results[0] - results[1]).abs().max() > 1e-4


def test_task_lora_finds_the_adapters_of_a_model_folder(models_dir: Path) -> None:
    from pack.dit.references import ReferenceSet, Task
    from pack.nodes.dreamomni import LoadDreamOmni
    from pack.nodes.lora import TaskLoRA

    folder = write_dreamomni(models_dir / "dreamomni" / "toy")
    model = LoadDreamOmni.execute("toy", "default").result[0]
    write_adapter(folder / "loras" / "edit.safetensors")
    name = "toy/loras/edit.safetensors"
    combo = next(item for item in TaskLoRA.define_schema().inputs if item.id == "edit_lora")
    assert combo.options == ["none", name]
    picture = torch.zeros(1, 32, 32, 3)
    for task, changed in ((Task.EDIT, True), (Task.GENERATE, False)):
        patched = TaskLoRA.execute(model, ReferenceSet(task, (picture,)), name, "none", 1.0).result[0]
        assert bool(patched.patches) is changed
    for wrong in ("toy/loras/../../other.safetensors", "toy/loras/gone.safetensors"):
        with pytest.raises((ValueError, FileNotFoundError), match=r"leaves the model|no safetensors file"):
            TaskLoRA.execute(model, ReferenceSet(Task.EDIT, (picture,)), wrong, "none", 1.0)


def test_only_folders_of_ours_can_be_chosen(models_dir) -> None:
    from pack.nodes.dreamomni import LoadDreamOmni

    with pytest.raises(FileNotFoundError, match=r"no model folder '\.\./vae'"):
        LoadDreamOmni.execute("../vae", "default")
    assert LoadDreamOmni.validate_inputs("int3").startswith("weight_dtype must be one of default")
    assert LoadDreamOmni.validate_inputs("bf16") is True


def test_drag_prompt_writes_the_published_example() -> None:
    from pack.nodes.dreamomni import DragPrompt

    points = "1162, 231\n1053, 305\n1177, 325\n1034, 213\n1127, 320\n1219, 352"
    bubble = "the white speech bubble with a blue letter A and B"
    text = DragPrompt.execute(1350, 776, "rotate", points, bubble, angle=-62.0).result[0]
    assert text.startswith("(0.8607, 0.2977, 0.0000, 0.0000) (0.7800, 0.3930, 0.0912, 0.0734)")
    assert text.endswith("(0.9030, 0.4536, 0.0567, -0.1476). Revolve " + bubble + ".")


def test_masked_source_says_when_nothing_is_masked(caplog) -> None:
    from pack.nodes.dreamomni import NOTHING_MASKED, MaskedSource

    image = torch.full((1, 8, 8, 4), 0.5)
    with caplog.at_level("INFO", logger="dreamomni"):
        source, area = MaskedSource.execute(image, torch.zeros(1, 64, 64)).result
    assert NOTHING_MASKED in caplog.text
    assert source.shape == (1, 8, 8, 3)
    assert area.abs().max() == 0
    with caplog.at_level("INFO", logger="dreamomni"):
        source, area = MaskedSource.execute(image, None, left=8).result
    assert caplog.messages == [NOTHING_MASKED, "50 % is to be painted."]
    assert source.shape == (1, 8, 16, 3)
    assert source[:, :, :8].abs().max() == 0
    assert area.sum() == 64


def test_the_inpaint_workflow_changes_nothing_outside_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    from pack.nodes.dreamomni import MaskedSource
    from pack.nodes.references import ReferenceSetNode

    # These nodes import the server for a text on the node, which needs a graph.
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=None))
    from comfy_extras.nodes_images import GetImageSize, ImageCrop
    from comfy_extras.nodes_mask import ImageCompositeMasked

    classes = {
        "DreamOmniMaskedSource": MaskedSource,
        "DreamOmniReferenceSet": ReferenceSetNode,
        "GetImageSize": GetImageSize,
        "ImageCrop": ImageCrop,
        "ImageCompositeMasked": ImageCompositeMasked,
    }
    picture, mask = torch.full((1, 427, 640, 3), 0.5), torch.zeros(1, 427, 640)
    # The model paints white, in the size of the references: 832 x 427 px in multiples of 16.
    results = {
        "ImageScaleToTotalPixels": (picture,),
        "LoadImage": (None, mask),
        "VAEDecode": (torch.ones(1, 432, 832, 3),),
    }
    run_nodes("dreamomni-inpaint", classes, results)
    assert results["DreamOmniReferenceSet"][2:] == (832, 432)
    composite = results["ImageCompositeMasked"][0]
    assert composite.shape == (1, 427, 832, 3)
    assert torch.equal(composite[:, :, 96:-96], picture)
    assert bool((composite[:, :, :96] == 1).all() and (composite[:, :, -96:] == 1).all())

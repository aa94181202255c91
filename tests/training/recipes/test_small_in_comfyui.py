"""The folder the recipe writes, opened by the pack's own loader in ComfyUI."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pack.training.evaluation.cases import held_out_cases
from pack.training.recipes.editor import FolderEditor, canvas, case_noise, question
from safetensors.torch import load_file

from tests.training.recipes.small_budget import CPU, tiny_recipe

pytestmark = pytest.mark.host

STEPS = 3


@pytest.fixture(scope="module")
def case():
    recipe = tiny_recipe()
    return next(iter(held_out_cases(recipe.synthesis((("remove", 1.0),)), "remove", "several", 1)))


def images_of(case) -> list[torch.Tensor]:
    return [(picture[None] / 2 + 0.5).movedim(1, -1) for picture in question(case).references]


def test_its_vlm_reads_as_it_was_trained(tiny_model: Path, case) -> None:
    from pack.model_loaders.dreamomni import load_dreamomni

    _, vlm, _ = load_dreamomni(tiny_model, "fp32")
    asked = question(case)
    told = vlm.hidden_states(asked.instruction, images_of(case))
    pair = FolderEditor(tiny_model, STEPS, CPU).pairs["none"]
    with torch.no_grad():
        trained = pair.features([asked], CPU)
    assert torch.equal(told.image_index, trained.image_index)
    assert set(told.image_index.unique().tolist()) == {0, 1}
    # transformers rounds the pixels to the stored weights' bf16, whatever is computed in.
    loose = 5e-3 if vlm.precision.compute == torch.float32 else 5e-2
    torch.testing.assert_close(told.tokens.float(), trained.tokens, rtol=loose, atol=loose)


def test_comfyuis_sampler_paints_what_the_judge_sees(tiny_model: Path, case) -> None:
    from pack.model_loaders.dreamomni import load_dreamomni

    import comfy.sample
    import comfy.samplers

    model, _, vae = load_dreamomni(tiny_model, "fp32")
    editor = FolderEditor(tiny_model, STEPS, CPU)
    with torch.no_grad():
        features = editor.pairs["none"].features([question(case)], CPU)
    extras = {
        "attention_mask": features.attention_mask,
        "dreamomni_image_index": features.image_index,
        "reference_latents": [vae.encode(image) for image in images_of(case)],
    }
    noise = torch.nn.functional.pixel_unshuffle(case_noise(case)[None], tiny_recipe().pixel_block)
    positive = [[features.tokens, extras]]
    latent = comfy.sample.sample_custom(
        model,
        noise,
        1.0,
        comfy.samplers.sampler_object("euler"),
        torch.tensor([1 - step / STEPS for step in range(STEPS + 1)]),
        positive,
        positive,
        torch.zeros_like(noise),
        disable_pbar=True,
    )
    painted = vae.decode(latent)[0].movedim(-1, 0) * 2 - 1
    difference = canvas(painted).astype(int) - editor([case])[0].astype(int)
    assert abs(difference).max() <= 2


@pytest.mark.parametrize("task", ["edit", "generate"])
def test_comfyui_knows_every_key_of_its_adapters(tiny_model: Path, task: str) -> None:
    from pack.model_loaders.dreamomni import load_patcher

    import comfy.lora

    model = load_patcher(tiny_model, "fp32")
    weights = load_file(tiny_model / "loras" / f"{task}.safetensors")
    places = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(dict(weights), places)
    assert len(patches) == len([name for name in weights if name.endswith(".lora_A.weight")]) > 0

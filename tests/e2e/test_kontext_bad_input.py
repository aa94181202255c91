"""Bad input to the Kontext nodes on a real server: each a clear error, and the next prompt works."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from host_models import TINY, write_kontext
from live_server import LiveServer
from pack.host.client import Prompt, PromptError
from safetensors.torch import save_file
from standins.autoencoders import write_taesd

pytestmark = pytest.mark.e2e

KONTEXT, REFERENCES, LORA, CONDITIONING, SAMPLER = "1", "5", "6", "9", "10"


def good_prompt() -> Prompt:
    """An edit of one picture with one step, and a second picture ready to be wired."""
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        KONTEXT: ("DreamOmniLoadKontext", {"unet_name": "bad/good.safetensors", "weight_dtype": "default"}),
        "2": ("StandInFluxCLIP", {"text_dim": TINY.text_dim, "pooled_dim": TINY.pooled_dim}),
        "3": ("VAELoader", {"vae_name": "bad_flux.safetensors"}),
        "4": ("EmptyImage", {"width": 64, "height": 48, "batch_size": 1, "color": 0x336699}),
        REFERENCES: ("DreamOmniReferenceSet", {"task": "edit", "resize": "none", "image_1": ["4", 0]}),
        LORA: (
            "DreamOmniTaskLoRA",
            {
                "model": [KONTEXT, 0],
                "references": [REFERENCES, 0],
                "edit_lora": "none",
                "generate_lora": "none",
                "strength": 1.0,
            },
        ),
        "7": ("DreamOmniPositionEncoding", {"model": [LORA, 0], "encoding": "index+offset"}),
        "8": ("CLIPTextEncode", {"clip": ["2", 0], "text": "a red hat"}),
        CONDITIONING: (
            "DreamOmniReferenceConditioning",
            {"conditioning": ["8", 0], "vae": ["3", 0], "references": [REFERENCES, 0]},
        ),
        SAMPLER: (
            "KSampler",
            {
                "model": ["7", 0],
                "positive": [CONDITIONING, 0],
                "negative": [CONDITIONING, 0],
                "latent_image": [CONDITIONING, 1],
                "seed": 1,
                "steps": 1,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        ),
        "11": ("VAEDecode", {"samples": [SAMPLER, 0], "vae": ["3", 0]}),
        "12": ("PreviewImage", {"images": ["11", 0]}),
        "13": ("EmptySD3LatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "14": ("EmptyImage", {"width": 1, "height": 1, "batch_size": 1, "color": 0}),
        "15": ("EmptyImage", {"width": 64, "height": 48, "batch_size": 2, "color": 0}),
        "16": ("VAELoader", {"vae_name": "bad_sd.safetensors"}),
    }
    return {number: {"class_type": kind, "inputs": inputs} for number, (kind, inputs) in nodes.items()}


def changed(node: str, **inputs: Any) -> Prompt:
    prompt = copy.deepcopy(good_prompt())
    prompt[node]["inputs"] |= inputs
    return prompt


BAD = {
    "a picture of one pixel": (changed(REFERENCES, image_2=["14", 0]), "image_2 is 1x1 pixels"),
    "a gap": (changed(REFERENCES, image_3=["4", 0]), "image_2 is empty but a later image"),
    "a batch as reference": (changed(REFERENCES, image_2=["15", 0]), "image_2 is a batch of 2"),
    "a batch that is dropped": (
        {
            **changed(REFERENCES, image_1=["15", 0]),
            SAMPLER: changed(SAMPLER, latent_image=["13", 0])[SAMPLER],
        },
        "some would be dropped",
    ),
    "the VAE of another model": (changed(CONDITIONING, vae=["16", 0]), "this model takes 16 channels"),
    "a LoRA of another model": (changed(LORA, edit_lora="bad_lora.safetensors"), "is for another model"),
    "not a Flux": (changed(KONTEXT, unet_name="bad/other.safetensors"), "it looks like a LoRA"),
    "cut short": (changed(KONTEXT, unet_name="bad/cut.safetensors"), "damaged or incomplete"),
    "a path out of the folders": (
        changed(KONTEXT, unet_name="../vae/x.safetensors"),
        "leaves the model folders",
    ),
}


@pytest.fixture(scope="module")
def server(live_server: LiveServer) -> LiveServer:
    models = live_server.server.base / "models"
    folder = models / "diffusion_models" / "bad"
    good = write_kontext(folder / "good.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(good[: len(good) // 2])
    lora = {"lora_unet_down_blocks_0_proj_in.lora_up.weight": torch.zeros(8, 4)}
    save_file(lora, str(folder / "other.safetensors"))
    (models / "loras").mkdir(exist_ok=True)
    save_file(lora, str(models / "loras" / "bad_lora.safetensors"))
    write_taesd(models / "vae" / "bad_flux.safetensors", channels=16)
    write_taesd(models / "vae" / "bad_sd.safetensors", channels=4)
    return live_server


@pytest.mark.parametrize("what", BAD)
def test_a_clear_error_and_the_next_prompt_works(server: LiveServer, what: str) -> None:
    prompt, message = BAD[what]
    with pytest.raises(PromptError) as caught:
        server.client.run(prompt)
    # A newer host checks lists itself, before our node sees the name.
    assert message in str(caught.value) or "not in list" in str(caught.value)
    assert server.pictures(server.client.run(changed(SAMPLER, seed=len(what))))


def test_without_images_plain_kontext_runs_and_says_so(server: LiveServer) -> None:
    prompt = changed(SAMPLER, latent_image=["13", 0])
    del prompt[REFERENCES]["inputs"]["image_1"]
    prompt[LORA]["inputs"]["edit_lora"] = "bad_lora.safetensors"
    assert server.pictures(server.client.run(prompt))
    log = server.server.log_tail(200)
    assert "No image connected" in log
    assert "LoRA off: no reference image" in log


def test_a_batch_is_edited_to_as_many_pictures(server: LiveServer) -> None:
    prompt = changed(REFERENCES, image_1=["15", 0], image_2=["4", 0])
    assert len(server.pictures(server.client.run(prompt))) == 2


def test_more_than_five_images_cannot_be_wired(server: LiveServer) -> None:
    inputs = server.object_info["DreamOmniReferenceSet"]["input"]
    assert [name for name in inputs["optional"] if name.startswith("image_")][-1] == "image_5"


def test_model_files_stay_below_the_models_folder(server: LiveServer) -> None:
    """Names the nodes offer lead nowhere else."""
    names = server.client.object_info()["DreamOmniLoadKontext"]["input"]["required"]["unet_name"]
    options = names[1]["options"] if names[0] == "COMBO" else names[0]
    assert "bad/good.safetensors" in options
    assert not [name for name in options if Path(name).is_absolute() or ".." in Path(name).parts]

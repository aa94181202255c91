"""Qwen2-VL and Qwen2.5-VL as prompt translators: supervised answers, as a LoRA or in full."""

from __future__ import annotations

import json
import shutil
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...vlm.families import CLASSES
from ...vlm.inputs import accepted_inputs
from ..answers import NOT_LEARNT
from ..config import RunConfig
from ..files import whole_folder, write_json
from ..frozen import hold_frozen
from .base import Batch, CachedSample, EncodePlan, Family

BESIDE = ("*.json", "*.txt", "*.jinja", "*.model")


class VlmFamily(Family):
    """A VLM folder (`config.base["vlm"]`) taught to write the prompts its image model was trained with."""

    name = "vlm"
    base_role = "vlm"
    uses_sigma = False
    lora_prefix = ""

    def encode_plan(self, config: RunConfig) -> EncodePlan:
        """Requests and answers as tokens; no latents. The pictures are those it is asked about later."""
        return EncodePlan(
            image_encoding="none", prompt_encoding="answers", asked_sizes=True, prompt_sees_images=True
        )

    def load_network(self, config: RunConfig, device: torch.device) -> nn.Module:
        """The folder's network; frozen and held small for a LoRA, fp32 and whole otherwise.

        Raises FileNotFoundError for a folder without a config, ValueError for another kind of model.
        """
        import transformers

        folder = Path(config.base.get("vlm", ""))
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"no VLM in {str(folder)!r}; choose a folder of models/vlm")
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind not in CLASSES:
            raise ValueError(f"{folder.name} is a {kind!r}; {', '.join(CLASSES)} can be trained")
        wide = (
            torch.float32 if config.adapter is None or config.memory.precision == "fp32" else torch.bfloat16
        )
        network = getattr(transformers, CLASSES[kind][0]).from_pretrained(
            folder, dtype=wide, local_files_only=True, use_safetensors=True, attn_implementation="sdpa"
        )
        if config.adapter is None:
            return network.to(device)
        hold_frozen(network, config.memory, device, skip=("lm_head", "model.visual"))
        return network

    def adapter_targets(self, config: RunConfig) -> list[str]:
        """Attention of the language model; the picture side and the head stay as they are."""
        return ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]

    def trainable_parameters(self, network: nn.Module, config: RunConfig) -> list[tuple[str, nn.Parameter]]:
        """Everything but the picture side."""
        return [(name, p) for name, p in network.named_parameters() if "visual" not in name.split(".")]

    def block_classes(self, network: nn.Module) -> tuple[type[nn.Module], ...]:
        """The decoder layers."""
        found = {type(m) for m in network.modules() if type(m).__name__.endswith("VLDecoderLayer")}
        return tuple(found)

    def signature(self, sample: CachedSample) -> Hashable:
        """Every draw of a sample is a batch of its own: pictures differ in number and size."""
        return object()

    def prompt_part(self, config: RunConfig) -> str:
        """Request and answer, pictures and all."""
        return "input_ids"

    def num_tokens(self, sample: CachedSample) -> int:
        """Tokens of request and answer."""
        return sample.prompt["input_ids"].shape[0]

    def loss(
        self, network: nn.Module, batch: Batch, noise: Tensor, sigmas: Tensor, config: RunConfig
    ) -> Tensor:
        """Mean cross entropy of the answer's tokens, (1,); noise and sigma play no part."""
        inputs = sft_inputs(batch)
        labels = inputs.pop("labels")[0]
        # The answer stands at the end; scores of the request would cost memory for nothing.
        answer = labels[int((labels == NOT_LEARNT).sum()) :]
        accepted = accepted_inputs(network, inputs)
        logits = network(**accepted, use_cache=False, logits_to_keep=len(answer) + 1).logits
        return F.cross_entropy(logits[0, :-1].float(), answer)[None]

    def predict_velocity(self, network: nn.Module, batch: Batch, noisy: Tensor, sigmas: Tensor) -> Tensor:
        """A language model has no velocity."""
        raise NotImplementedError("a VLM draws no pictures; set sample_every to 0")

    def metadata(self, config: RunConfig) -> dict[str, str]:
        """Which answers it was taught."""
        return {"dreamomni.answers": "<edit>...</edit>, <gene>...</gene>"}

    def export_full(
        self,
        network: nn.Module,
        weights: Mapping[str, Tensor],
        folder: Path,
        metadata: Mapping[str, str],
        config: RunConfig,
    ) -> list[Path]:
        """A whole VLM folder in bf16 that DreamOmniLoadVLM reads, tokenizer and all."""
        state = {name: tensor.to(torch.bfloat16) for name, tensor in network.state_dict().items()}
        writer: Any = network
        with whole_folder(folder) as partial:
            writer.save_pretrained(partial, state_dict=state)
            keep_old_names(partial)
            copy_beside(Path(config.base["vlm"]), partial)
            write_json(partial / "dreamomni.json", dict(metadata))
        return sorted(folder.iterdir())


def sft_inputs(batch: Batch) -> dict[str, Tensor]:
    """A model's arguments (1, ...) of the batch's one sample."""
    prompt = batch.conditions["prompt"]
    inputs = {name: prompt[name] for name in ("input_ids", "labels", "mm_token_type_ids")}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "pixel_values" in prompt:
        inputs |= {"pixel_values": prompt["pixel_values"][0], "image_grid_thw": prompt["image_grid_thw"][0]}
    return inputs


def keep_old_names(folder: Path) -> None:
    """Write the rope settings of a saved VLM under transformers 4's names too, which read no others."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    rope = text.get("rope_parameters") or {}
    if "mrope_section" in rope:
        text["rope_theta"] = rope["rope_theta"]
        text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
        write_json(path, config)


def copy_beside(base: Path, folder: Path) -> None:
    """Copy tokenizer, templates and settings that `folder` does not have yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in BESIDE:
        for path in base.glob(pattern):
            if not (folder / path.name).exists() and path.name != "model.safetensors.index.json":
                shutil.copyfile(path, folder / path.name)

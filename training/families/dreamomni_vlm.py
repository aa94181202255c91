"""A small VLM trained along with its DreamOmni network, reading the same prompts as inference does.

B samples, L tokens, D the VLM's width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...dit.dreamomni.network import DreamOmniNetwork
from ...vlm import encoder, inputs
from ...vlm.families import CLASSES
from ...vlm.images import to_pil
from .base import CachedSample

UNUSED = "vlm.lm_head."


class TrainedPair(nn.Module):
    """The network and the VLM that feeds it, as one module."""

    def __init__(self, dit: DreamOmniNetwork, vlm: nn.Module, processor: Any, template: str) -> None:
        super().__init__()
        self.dit, self.vlm, self.processor, self.template = dit, vlm, processor, template

    def features(self, samples: Sequence[CachedSample], device: torch.device) -> encoder.VLMFeatures:
        """Hidden states of the samples' instructions and pictures, with gradient."""
        requests = [self.request(sample) for sample in samples]
        batch = {name: value.to(device) for name, value in joined(requests).items()}
        counts = [
            inputs.tokens_per_image(self.processor, request["image_grid_thw"])
            if "image_grid_thw" in request
            else []
            for request in requests
        ]
        token = inputs.image_token_id(self.processor)
        index = torch.cat(
            [
                inputs.image_index(ids[None], token, count)
                for ids, count in zip(batch["input_ids"], counts, strict=True)
            ]
        )
        tokens = encoder.encode(self.vlm, inputs.accepted_inputs(self.vlm, batch))
        return encoder.VLMFeatures(tokens, batch["attention_mask"].bool(), index)

    def request(self, sample: CachedSample) -> dict[str, Tensor]:
        """One sample's model inputs, built by the function inference uses."""
        pictures = [to_pil((pixels / 2 + 0.5).movedim(0, -1)[None])[0] for pixels in sample.reference_pixels]
        return inputs.build_inputs(self.processor, sample.instruction, pictures, self.template)


def joined(requests: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Requests as one batch, padded on the right; pictures one after the other."""
    batch = {
        name: pad_sequence([request[name][0] for request in requests], batch_first=True)
        for name in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    for name in ("pixel_values", "image_grid_thw"):
        parts = [request[name] for request in requests if name in request]
        if parts:
            batch[name] = torch.cat(parts)
    return batch


def load_pair(dit: DreamOmniNetwork, folder: Path, template: str) -> TrainedPair:
    """The network with the VLM of `folder` in fp32; raises ValueError for another kind of model."""
    import transformers

    kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    if kind not in CLASSES:
        raise ValueError(f"{folder.name} is a {kind!r}; {', '.join(CLASSES)} can be trained along")
    model, processor = (getattr(transformers, name) for name in CLASSES[kind])
    vlm = model.from_pretrained(
        folder,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        attn_implementation="sdpa",
        trust_remote_code=False,
    )
    reader = processor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return TrainedPair(dit, vlm, reader, template)

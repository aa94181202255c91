"""A new small Qwen2-VL folder: random weights, a tokenizer of its own, all in the releases' layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...dit.whole_files import write_text
from ..families.vlm import keep_old_names
from ..files import write_json
from .vocabulary import SPECIAL, UNKNOWN, build_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>{% endfor %}"
)
"""Qwen's marks without the roles' names: a small model has no answers to tell apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallVLMConfig:
    """Sizes of a small Qwen2-VL; chosen, not published."""

    width: int = 128
    layers: int = 2
    heads: int = 4
    feedforward: int = 384
    picture_width: int = 64
    picture_layers: int = 2
    patch: int = 8
    """Pixels per side of a patch; 2 x 2 patches make one token."""
    largest_side: int = 64
    """Larger pictures are made smaller before they are read."""

    def __post_init__(self) -> None:
        if self.width % self.heads or self.head_width % 8:
            raise ValueError(
                f"{self.heads} heads get {self.width / self.heads:g} channels each of width {self.width}; "
                "a multiple of 8 is needed"
            )

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.heads

    @property
    def rope_sections(self) -> list[int]:
        """Half the channels of a head shared among time, row and column."""
        quarter = self.head_width // 8
        return [self.head_width // 2 - 2 * (quarter + quarter // 2), *[quarter + quarter // 2] * 2]


def build_network(config: SmallVLMConfig, vocabulary: dict[str, int], seed: int) -> Any:
    """The random network in fp32."""
    import transformers

    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": config.width,
        "intermediate_size": config.feedforward,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": config.rope_sections},
        "bos_token_id": vocabulary["<|endoftext|>"],
        "eos_token_id": vocabulary["<|im_end|>"],
    }
    vision = {
        "depth": config.picture_layers,
        "embed_dim": config.picture_width,
        "hidden_size": config.width,
        "num_heads": 4,
        "mlp_ratio": 4,
        "patch_size": config.patch,
    }
    ids: dict[str, Any] = {
        f"{name}_token_id": vocabulary[f"<|{token}|>"]
        for name, token in (
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
            ("image", "image_pad"),
            ("video", "video_pad"),
        )
    }
    whole = transformers.Qwen2VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **ids
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.Qwen2VLForConditionalGeneration(whole)


def write_small_vlm(folder: Path, config: SmallVLMConfig, seed: int) -> Path:
    """Write a new VLM folder that the VLM loader and the trainer read; its folder."""
    tokenizer = build_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    build_network(config, tokenizer.get_vocab(), seed).save_pretrained(folder)
    keep_old_names(folder)
    write_text(folder / "tokenizer.json", tokenizer.to_str())
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": UNKNOWN,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "extra_special_tokens": {},
            "additional_special_tokens": list(SPECIAL[1:]),
            "model_max_length": 4096,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_json(folder / "preprocessor_config.json", picture_settings(config))
    return folder


def ensure_small_vlm(folder: Path, config: SmallVLMConfig, seed: int) -> Path:
    """The VLM of a run: written unless its last file is there already; its folder."""
    if not (folder / "preprocessor_config.json").is_file():
        write_small_vlm(folder, config, seed)
    return folder


def picture_settings(config: SmallVLMConfig) -> dict[str, Any]:
    """How pictures become patches."""
    return {
        "min_pixels": (2 * config.patch) ** 2,
        "max_pixels": config.largest_side**2,
        "patch_size": config.patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    }

"""A random VLM folder of any size: real Qwen classes, the tokenizer ComfyUI ships, Qwen's chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

# The template Qwen2-VL and Qwen2.5-VL ship (Apache-2.0).
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 151680
SPECIAL_IDS = {
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
}
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
}
VISION = {
    "qwen2_5_vl": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
        "window_size": 112,
    },
    "qwen2_vl": {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
}
PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 100352,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
}
PROCESSORS = {"qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen2_vl": "Qwen2VLProcessor"}


def build_model(family: str, seed: int = 0, tied: bool = False, **text: object) -> torch.nn.Module:
    """A random model of `family` in float32; `text` overrides sizes of the language side."""
    import transformers

    kinds = {
        "qwen2_5_vl": (transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration),
        "qwen2_vl": (transformers.Qwen2VLConfig, transformers.Qwen2VLForConditionalGeneration),
    }
    config_kind, model_kind = kinds[family]
    language = {**TEXT, **text, "bos_token_id": 151643, "eos_token_id": 151645}
    joint = {"qwen2_5_vl": "out_hidden_size", "qwen2_vl": "hidden_size"}[family]
    config = config_kind(
        text_config=language,
        vision_config={**VISION[family], joint: language["hidden_size"]},
        tie_word_embeddings=tied,
        **SPECIAL_IDS,
    )
    torch.manual_seed(seed)
    model = model_kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Wider than the default, so that pictures and layers change which token wins.
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    model.generation_config.eos_token_id = [151645, 151643]
    model.generation_config.pad_token_id = 151643
    return model


def tokenizer_folder() -> Path:
    """Qwen's vocabulary inside ComfyUI."""
    import comfy

    return Path(next(iter(comfy.__path__))) / "text_encoders" / "qwen25_tokenizer"


def write_vlm(folder: Path, family: str = "qwen2_5_vl", model: torch.nn.Module | None = None) -> Path:
    """Write a VLM of `family` to `folder` in the releases' layout, which transformers 4 and 5 read."""
    folder.mkdir(parents=True, exist_ok=True)
    (model or build_model(family)).save_pretrained(folder)
    tokenizer = tokenizer_folder()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tokenizer / name, folder / name)
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", {**settings, "chat_template": CHAT_TEMPLATE})
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_json(folder / "preprocessor_config.json", {**PREPROCESSOR, "processor_class": PROCESSORS[family]})
    return folder


def write_json(path: Path, content: object) -> None:
    """Write `content` as the releases write their settings."""
    path.write_text(json.dumps(content, indent=1))

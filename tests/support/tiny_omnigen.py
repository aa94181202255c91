"""A tiny random OmniGen in the official layout and in diffusers', and a tokenizer of the model's kind."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import OmniGenTransformer2DModel
from pack.dit.omnigen.config import OmniGenConfig
from pack.dit.omnigen.network import OmniGenNetwork
from pack.dit.omnigen.state_dict import to_official
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

SPECIALS = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", "<img>", "</img>"]
SPECIALS += ["<|diffusion|>", "<cfg>"]


def tiny_config(**changes) -> OmniGenConfig:
    fields = {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 300,
        "short_factor": (1.0, 1.1, 1.2, 1.3),
        "long_factor": (1.5, 2.0, 3.0, 5.0),
    }
    return OmniGenConfig(**(fields | changes))


def diffusers_model(config: OmniGenConfig, seed: int = 0) -> OmniGenTransformer2DModel:
    torch.manual_seed(seed)
    model = OmniGenTransformer2DModel(
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        pad_token_id=2,
        max_position_embeddings=config.max_position_embeddings,
        original_max_position_embeddings=config.original_max_position_embeddings,
        rope_scaling={
            "type": "su",
            "short_factor": list(config.short_factor),
            "long_factor": list(config.long_factor),
        },
    ).eval()
    # Random norms too, so that a forgotten one shows.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and parameter.ndim == 1 and "norm_out" not in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif parameter.ndim > 1:
                parameter.mul_(2)
    return model


def own_network(model: OmniGenTransformer2DModel, config: OmniGenConfig) -> OmniGenNetwork:
    network = OmniGenNetwork(config)
    weights = to_official(model.state_dict())
    weights.pop("pos_embed")
    network.load_state_dict(weights, strict=True)
    return network.eval()


def byte_tokenizer() -> Tokenizer:
    """Llama-like: a byte-level vocabulary with `<s>` 1 in front and the model's special words."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "model_max_length": 131072}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def official_fields(config: OmniGenConfig) -> dict:
    return {
        "architectures": ["Phi3ForCausalLM"],
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "original_max_position_embeddings": config.original_max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": {
            "type": "su",
            "short_factor": list(config.short_factor),
            "long_factor": list(config.long_factor),
        },
    }


def write_official(folder: Path, config: OmniGenConfig, dtype: torch.dtype = torch.float32) -> Path:
    """The released folder: model.safetensors (with its position table), config.json, tokenizer.json."""
    write_tokenizer(folder)
    weights = to_official(diffusers_model(config).state_dict())
    save_file({name: part.to(dtype) for name, part in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(official_fields(config)))
    return folder


def write_diffusers(folder: Path, config: OmniGenConfig, shard_size: str = "10GB") -> Path:
    """diffusers' folder: transformer (sharded if shards are small) and tokenizer."""
    write_tokenizer(folder / "tokenizer")
    diffusers_model(config).save_pretrained(folder / "transformer", max_shard_size=shard_size)
    return folder

"""How much memory a request needs beside the weights, from the model's own sizes."""

from __future__ import annotations

from typing import Any

# Tensors of the residual width and of the MLP width that are alive at once inside one block, rounded up.
LIVE_HIDDEN = 12
LIVE_MLP = 4
SCORE_COPIES = 4


def request_memory(config: Any, num_tokens: int, num_patches: int, new_tokens: int, itemsize: int) -> int:
    """Bytes for one request: key/value cache, the widest block's activations, vision tower, scores."""
    text, vision = config.get_text_config(), config.vision_config
    head_dim = text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * (num_tokens + new_tokens)
    block = num_tokens * (LIVE_HIDDEN * text.hidden_size + LIVE_MLP * text.intermediate_size)
    width = getattr(vision, "embed_dim", vision.hidden_size)
    mlp = getattr(vision, "intermediate_size", None) or int(width * getattr(vision, "mlp_ratio", 4))
    tower = num_patches * (LIVE_HIDDEN * width + LIVE_MLP * mlp)
    scores = SCORE_COPIES * text.vocab_size * 4
    return (cache + max(block, tower)) * itemsize + scores

"""The Phi-3 decoder layer, with fused projections, injected attention and a memory for keys and values.

B batch, L tokens, H heads, K key heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import OmniGenConfig
from .layout import Rows
from .rope import Rotation, rotate

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(query, key, value) of (B, H, rows, D) and a bool mask (rows, keys) or None -> (B, rows, H * D)."""

MLP_PIECES, MLP_ROW_SHARE = 4, 6
"""Without gradients the MLP, the widest part of a layer, runs over this many pieces of the rows, each of at
least a sixth as many rows as it has channels: smaller ones would keep a processor waiting."""


class KeyValueMemory(Protocol):
    """Keeps keys and values of earlier tokens beside those a layer has just made."""

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens up to the fresh ones (B, K, fresh, D), which come last."""
        ...


def torch_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's own attention; the choice where no host brings a better one."""
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Rotary self-attention in as many calls as the layout has kinds of rows; never a dense L x L mask."""

    def __init__(self, config: OmniGenConfig, *, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.config = config
        width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        self.qkv_proj = operations.Linear(config.hidden_size, width, bias=False, **factory)
        self.o_proj = operations.Linear(config.hidden_size, config.hidden_size, bias=False, **factory)

    def split(self, projected: Tensor, positions: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated query (B, H, L, D), rotated key and value (B, K, L, D) of qkv_proj's output."""
        heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
        packed = projected.unflatten(-1, (heads + 2 * kv_heads, self.config.head_dim))
        query, key, value = packed.transpose(1, 2).split((heads, kv_heads, kv_heads), dim=1)
        return rotate(query, positions), rotate(key, positions), value

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, rows: Sequence[Rows], attention: Attention
    ) -> Tensor:
        """The rows' answers (B, L, hidden), one attention call for each entry of `rows`."""
        repeats = self.config.num_heads // self.config.num_kv_heads
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        answers = [
            attention(
                query[:, :, call.start : call.stop],
                key[:, :, : call.key_stop],
                value[:, :, : call.key_stop],
                call.mask,
            )
            for call in rows
        ]
        return answers[0] if len(answers) == 1 else torch.cat(answers, dim=1)


class GatedMLP(nn.Module):
    """SiLU-gated MLP with gate and up projection in one matrix."""

    def __init__(self, config: OmniGenConfig, *, operations: Any, **factory: Any) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_up_proj = operations.Linear(hidden, 2 * inner, bias=False, **factory)
        self.down_proj = operations.Linear(inner, hidden, bias=False, **factory)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, hidden) to the same."""
        rows, width = hidden.shape[-2:]
        pieces = min(MLP_PIECES, rows // max(1, width // MLP_ROW_SHARE))
        if torch.is_grad_enabled() or pieces <= 1:
            return self.gated(hidden)
        return torch.cat([self.gated(piece) for piece in hidden.chunk(pieces, dim=1)], dim=1)

    def gated(self, hidden: Tensor) -> Tensor:
        """The MLP of some rows."""
        gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        return self.down_proj(up * F.silu(gate))


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind an RMSNorm; no modulation by time, so prefix rows never see it."""

    def __init__(self, config: OmniGenConfig, index: int, *, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.index = index
        norm = {"eps": config.rms_norm_eps, **factory}
        self.input_layernorm = operations.RMSNorm(config.hidden_size, **norm)
        self.self_attn = SelfAttention(config, operations=operations, **factory)
        self.post_attention_layernorm = operations.RMSNorm(config.hidden_size, **norm)
        self.mlp = GatedMLP(config, operations=operations, **factory)

    def forward(
        self,
        hidden: Tensor,
        positions: Rotation,
        rows: Sequence[Rows],
        memory: KeyValueMemory | None,
        attention: Attention,
    ) -> Tensor:
        """(B, L, hidden) to the same; with a memory, L are the fresh tokens only."""
        hidden = hidden + self.attended(hidden, positions, rows, memory, attention)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))

    def attended(
        self,
        hidden: Tensor,
        positions: Rotation,
        rows: Sequence[Rows],
        memory: KeyValueMemory | None,
        attention: Attention,
    ) -> Tensor:
        """What attention adds; its queries, keys and values are gone when the MLP needs room."""
        projected = self.self_attn.qkv_proj(self.input_layernorm(hidden))
        query, key, value = self.self_attn.split(projected, positions)
        if memory is not None:
            key, value = memory.extend(self.index, key, value)
        return self.self_attn.o_proj(self.self_attn.attend(query, key, value, rows, attention))


class Decoder(nn.Module):
    """Word embeddings, the decoder layers and the last norm; the names are those of the released file."""

    def __init__(self, config: OmniGenConfig, *, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.embed_tokens = operations.Embedding(config.vocab_size, config.hidden_size, **factory)
        self.layers = nn.ModuleList(
            DecoderLayer(config, index, operations=operations, **factory)
            for index in range(config.num_layers)
        )
        self.norm = operations.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)

"""The sizes of an OmniGen network, read from either published config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class OmniGenConfig:
    """Shape of the network; the defaults are the released 3.8 B model's."""

    hidden_size: int = 3072
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    intermediate_size: int = 8192
    rms_norm_eps: float = 1e-5
    vocab_size: int = 32064
    max_position_embeddings: int = 131072
    """Longest sequence (text, pictures and target together) the positions reach."""
    original_max_position_embeddings: int = 4096
    """Sequences longer than this take `long_factor`, the others `short_factor`."""
    rope_theta: float = 10000.0
    short_factor: tuple[float, ...] = ()
    """Divisors of the rotary frequencies, one for each pair of channels; empty means all 1."""
    long_factor: tuple[float, ...] = ()
    in_channels: int = 4
    patch_size: int = 2
    max_grid: int = 192
    """Most tokens along one side of a picture; a token is 16 px."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size}, {self.num_heads} heads and {self.num_kv_heads} key heads "
                "do not divide; is this the config.json of an OmniGen model?"
            )
        if self.hidden_size % 4 or self.head_dim % 2:
            raise ValueError(f"hidden_size must be a multiple of 4 with even heads, got {self.hidden_size}")
        for name in ("short_factor", "long_factor"):
            if len(getattr(self, name)) not in (0, self.head_dim // 2):
                raise ValueError(f"{name} must have {self.head_dim // 2} numbers, one for each channel pair")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def rope_scaling(self) -> float:
        """Factor on cos and sin that keeps attention's temperature on stretched positions (su/longrope)."""
        stretch = self.max_position_embeddings / self.original_max_position_embeddings
        if stretch <= 1 or not self.short_factor:
            return 1.0
        return math.sqrt(1 + math.log(stretch) / math.log(self.original_max_position_embeddings))

    def rope_factors(self, sequence_length: int) -> tuple[float, ...]:
        """The frequency divisors of a sequence of that many tokens, target included."""
        factors = (
            self.long_factor if sequence_length > self.original_max_position_embeddings else self.short_factor
        )
        return factors or (1.0,) * (self.head_dim // 2)


def config_from_json(fields: Mapping[str, Any]) -> OmniGenConfig:
    """The config in a config.json, official (Phi-3 names) or diffusers'; raises on another model's."""
    diffusers = "num_layers" in fields
    try:
        scaling = fields.get("rope_scaling") or {}
        return OmniGenConfig(
            hidden_size=fields["hidden_size"],
            num_layers=fields["num_layers" if diffusers else "num_hidden_layers"],
            num_heads=fields["num_attention_heads"],
            num_kv_heads=fields.get("num_key_value_heads") or fields["num_attention_heads"],
            intermediate_size=fields["intermediate_size"],
            rms_norm_eps=fields.get("rms_norm_eps", 1e-5),
            vocab_size=fields["vocab_size"],
            max_position_embeddings=fields["max_position_embeddings"],
            original_max_position_embeddings=fields["original_max_position_embeddings"],
            rope_theta=float(fields["rope_base" if diffusers else "rope_theta"]),
            short_factor=tuple(scaling.get("short_factor", ())),
            long_factor=tuple(scaling.get("long_factor", ())),
            in_channels=fields.get("in_channels", 4),
            max_grid=fields.get("pos_embed_max_size", 192),
        )
    except KeyError as err:
        raise ValueError(
            f"config.json has no {err}: it is not an OmniGen v1 config (official or diffusers layout); "
            f"it names {fields.get('_class_name') or fields.get('architectures') or 'no class'}"
        ) from err

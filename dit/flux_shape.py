"""The shape of a FLUX.1 transformer, worked out from the names and shapes of its weights.

The head count and the rotary axes are in no weight file. The head size is: it is the length of a query norm.
The axes follow from it: FLUX.1 splits its 128 into (16, 56, 56), one eighth for the picture index and equal
halves of the rest for row and column; smaller test networks are split alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

PATCH = 2
MLP_RATIO = 4

# One weight per property, in Black Forest Labs' layout and in diffusers' layout.
NAMES = {
    "image_in": ("img_in.weight", "x_embedder.weight"),
    "text_in": ("txt_in.weight", "context_embedder.weight"),
    "pooled_in": ("vector_in.in_layer.weight", "time_text_embed.text_embedder.linear_1.weight"),
    "query_norm": (
        "double_blocks.0.img_attn.norm.query_norm.scale",
        "transformer_blocks.0.attn.norm_q.weight",
    ),
    "mlp": ("double_blocks.0.img_mlp.0.weight", "transformer_blocks.0.ff.net.0.proj.weight"),
    "out": ("final_layer.linear.weight", "proj_out.weight"),
}
GUIDANCE = ("guidance_in.in_layer.weight", "time_text_embed.guidance_embedder.linear_1.weight")


@dataclass(frozen=True, kw_only=True, slots=True)
class FluxShape:
    """Sizes that define a FLUX.1 network; `in_channels` counts the channels of a packed 2x2 patch."""

    in_channels: int = 64
    hidden_size: int = 3072
    num_heads: int = 24
    axes_dim: tuple[int, int, int] = (16, 56, 56)
    text_dim: int = 4096
    pooled_dim: int = 768
    num_double: int = 19
    num_single: int = 38

    def __post_init__(self) -> None:
        if self.num_heads * sum(self.axes_dim) != self.hidden_size or any(dim % 2 for dim in self.axes_dim):
            raise ValueError(
                f"{self.num_heads} heads with rotary axes {self.axes_dim} do not make a hidden size of "
                f"{self.hidden_size} with even axes"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return sum(self.axes_dim)

    @property
    def latent_channels(self) -> int:
        """Channels of the latent, before 2x2 pixels are packed into a token."""
        return self.in_channels // PATCH**2


def rotary_axes(head_dim: int) -> tuple[int, int, int]:
    """Channels of (index, row, column) in a head: 128 gives FLUX.1's (16, 56, 56).

    Raises ValueError for a head that cannot be split into three even parts with equal halves.
    """
    splits = [index for index in range(2, head_dim - 3, 2) if (head_dim - index) % 4 == 0]
    if not splits:
        raise ValueError(f"attention heads of {head_dim} channels cannot hold index, row and column")
    index = min(splits, key=lambda split: (abs(split - head_dim / 8), split))
    half = (head_dim - index) // 2
    return index, half, half


def flux_shape(shapes: Mapping[str, Sequence[int]]) -> FluxShape:
    """The network a weight file holds, from its weights' shapes in either layout.

    Raises ValueError naming what is missing or different from FLUX.1 Kontext.
    """
    layout = 0 if NAMES["query_norm"][0] in shapes else 1
    found = {what: shapes.get(names[layout]) for what, names in NAMES.items()}
    absent = [NAMES[what][layout] for what, shape in found.items() if shape is None]
    if absent:
        raise ValueError(f"these weights of FLUX.1 are missing: {', '.join(absent)}")
    size = {what: tuple(shape) for what, shape in found.items() if shape is not None}
    if GUIDANCE[layout] not in shapes:
        raise ValueError("it has no guidance embedding: FLUX.1 schnell, not Kontext dev")
    hidden, in_channels = size["image_in"]
    head_dim = size["query_norm"][0]
    if hidden % head_dim or size["mlp"][0] != MLP_RATIO * hidden:
        raise ValueError(
            f"hidden size {hidden}, head size {head_dim} and MLP {size['mlp'][0]} do not fit FLUX.1"
        )
    if size["out"][0] != in_channels:
        raise ValueError(
            f"it reads {in_channels} packed channels and writes {size['out'][0]}: FLUX.1 fill or control"
        )
    return FluxShape(
        in_channels=in_channels,
        hidden_size=hidden,
        num_heads=hidden // head_dim,
        axes_dim=rotary_axes(head_dim),
        text_dim=size["text_in"][1],
        pooled_dim=size["pooled_in"][1],
        num_double=count_blocks(shapes, ("double_blocks", "transformer_blocks")[layout]),
        num_single=count_blocks(shapes, ("single_blocks", "single_transformer_blocks")[layout]),
    )


def count_blocks(names: Iterable[str], kind: str) -> int:
    """Blocks `kind.0.` .. `kind.n-1.` among the weights' names; raises ValueError for a gap."""
    numbers = {int(name.split(".")[1]) for name in names if name.startswith(f"{kind}.")}
    if numbers != set(range(len(numbers))):
        missing = sorted(set(range(max(numbers))) - numbers)
        raise ValueError(f"{kind} {', '.join(map(str, missing))} are missing")
    return len(numbers)

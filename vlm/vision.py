"""What the vision tower made of a request's pictures, kept for the next words about them.

All pictures of a request are one result: the tower would give some of them alone in other last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Pixels = dict[str, Tensor]
"""What the tower reads: `pixels` (patches, values) and `grid` (pictures, 3)."""


@dataclass(frozen=True, slots=True, eq=False)
class PictureTokens:
    """Tokens (L, D) of all pictures of a request, and whether transformers wraps them in an output object."""

    tokens: Tensor
    wrapped: bool


Find = Callable[[Pixels, Callable[[], PictureTokens]], PictureTokens]


@contextmanager
def pictures_from(model: Any, find: Find) -> Generator[None]:
    """Inside the block the tower of `model` runs only where `find` calls the function it is given."""
    tower = model.model.visual
    run = tower.forward

    def forward(pixels: Tensor, grid_thw: Tensor, **more: Any) -> Any:
        made = []

        def compute() -> PictureTokens:
            made.append(run(pixels, grid_thw=grid_thw, **more))
            wrapped = not isinstance(made[0], Tensor)
            return PictureTokens(made[0].pooler_output if wrapped else made[0], wrapped)

        found = find({"pixels": pixels, "grid": grid_thw}, compute)
        return made[0] if made else as_output(found, pixels)

    tower.forward = forward
    try:
        yield
    finally:
        del tower.forward


def as_output(found: PictureTokens, pixels: Tensor) -> Any:
    """Kept tokens as the tower returns them, where its pictures are."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    tokens = found.tokens.to(pixels.device)
    return BaseModelOutputWithPooling(pooler_output=tokens) if found.wrapped else tokens

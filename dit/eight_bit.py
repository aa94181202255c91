"""Rows of numbers in 8 bit, int8 or float8 e4m3, with one scale for each row: the one place of the formula.

A row is the last axis: a weight's inputs, the channels of a head, a group of channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: torch.finfo(torch.float8_e4m3fn).max}
"""What the largest magnitude of a row becomes; int8 leaves -128 out and is symmetric around zero."""
SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""For rows of zeros, which any scale but 0 fits; exact in bfloat16 too."""


def rows_to_eight_bit(
    rows: Tensor, kind: torch.dtype, scale_dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """(numbers (..., D) in `kind`, scale (..., 1)) of rows (..., D); numbers * scale are about the rows."""
    values = rows.float()
    scale = values.abs().amax(dim=-1, keepdim=True) / LARGEST[kind]
    # A scale in bfloat16 is at most 2^-8 too small: 127 becomes 127.496, which still rounds to 127.
    scale = scale.clamp(min=SMALLEST_SCALE).to(scale_dtype)
    values = values / scale.float()
    # The step to int8 cuts, the step to float8 rounds.
    return (values.round() if kind == torch.int8 else values).to(kind), scale


def rows_from_eight_bit(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows (..., D), multiplied in `dtype`."""
    return numbers.to(dtype) * scale.to(dtype)

"""Rows in 8 bit against tables worked out by hand, and everything that keeps such rows against the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pack.dit.eight_bit import rows_from_eight_bit, rows_to_eight_bit
from pack.dit.omnigen.prefix_entry import store
from pack.dit.stored_tensor import StoredTensor
from pack.training.config import MemoryConfig
from pack.training.frozen import frozen_linear
from torch import Tensor, nn

CPU = torch.device("cpu")
INT8, FP8 = torch.int8, torch.float8_e4m3fn
ROWS = {
    INT8: [[127, -127, 0.5, 2.5], [254, -3, 5, 1], [0, 0, 0, 0], [-127 / 256, 2 / 256, 1.5 / 256, 0]],
    FP8: [[448, -224, 1, 2**-9], [896, 3, 34, -1], [0, 0, 0, 0], [-448 / 256, 2 / 256, 19 / 256, 0]],
}
NUMBERS = {
    INT8: [[127, -127, 0, 2], [127, -2, 2, 0], [0, 0, 0, 0], [-127, 2, 2, 0]],
    FP8: [[448, -224, 1, 2**-9], [448, 1.5, 16, -0.5], [0, 0, 0, 0], [-448, 2, 20, 0]],
}
SCALES = [[1], [2], [2**-126], [1 / 256]]
Kept = Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor, Tensor]]
"""(numbers, scales, the rows read back) of rows in a number type."""


def in_the_room(rows: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    numbers, scale = rows_to_eight_bit(rows, kind)
    assert scale.dtype == torch.float32
    return numbers, scale, rows_from_eight_bit(numbers, scale, torch.float32)


def as_a_reference(rows: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    kept = StoredTensor.pack(rows, quantise=True)
    assert kept.scales is not None and kept.scales.dtype == torch.bfloat16
    return kept.values[:, 0], kept.scales[:, 0].float(), kept.read(CPU)


def as_a_prefix(rows: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    kept = store(rows[None, None], True, CPU)
    read = torch.empty(1, 1, *rows.shape)
    kept.copy_to(read, len(rows))
    assert kept.scale is not None
    return kept.numbers[0, 0], kept.scale[0, 0], read[0, 0]


def as_a_frozen_weight(rows: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    precision = "int8" if kind == INT8 else "fp8"
    held = frozen_linear(linear(rows), MemoryConfig(precision=precision), CPU)
    return held.weight, held.scale, held(torch.eye(rows.shape[1])).T


def as_a_vlm_weight(rows: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    from pack.model_loaders.vlm_quantize import quantized_layer

    held = quantized_layer(linear(rows), "int8" if kind == INT8 else "fp8", CPU)
    assert held.scale.ndim == 1
    return held.weight, held.scale[:, None], held(torch.eye(rows.shape[1])).T


def linear(rows: Tensor) -> nn.Linear:
    layer = nn.Linear(rows.shape[1], rows.shape[0], bias=False)
    layer.weight = nn.Parameter(rows)
    return layer


@pytest.mark.parametrize(
    ("keep", "kind"),
    [
        (in_the_room, INT8),
        (in_the_room, FP8),
        (as_a_reference, INT8),
        (as_a_prefix, INT8),
        (as_a_frozen_weight, INT8),
        (as_a_frozen_weight, FP8),
        pytest.param(as_a_vlm_weight, INT8, marks=pytest.mark.host),
        pytest.param(as_a_vlm_weight, FP8, marks=pytest.mark.host),
    ],
)
def test_rows_are_kept_as_the_table_says(keep: Kept, kind: torch.dtype) -> None:
    numbers, scales, read = keep(torch.tensor(ROWS[kind]), kind)
    expected = torch.tensor(NUMBERS[kind], dtype=torch.float32)
    assert numbers.dtype == kind
    assert torch.equal(numbers.float(), expected)
    assert torch.equal(scales, torch.tensor(SCALES))
    assert torch.equal(read, expected * torch.tensor(SCALES))


def test_numbers_are_made_for_the_scale_as_it_is_kept() -> None:
    """In bfloat16 1 + 1/256 becomes 1 and 1 + 3/512 becomes 1 + 1/128."""
    rows = torch.tensor([[127 * (1 + 1 / 256), 1.5], [127 * (1 + 3 / 512), 3.5 * (1 + 1 / 128)]])
    numbers, scale = rows_to_eight_bit(rows, INT8, scale_dtype=torch.bfloat16)
    assert scale.tolist() == [[1.0], [1 + 1 / 128]]
    assert numbers.tolist() == [[127, 2], [127, 4]]


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_the_largest_of_a_row_never_leaves_int8(scale_dtype: torch.dtype) -> None:
    values = torch.linspace(1, 2, 50001)[:, None]
    for rows in (values, values * 1e-30, values * -1e30):
        numbers, _ = rows_to_eight_bit(rows, INT8, scale_dtype)
        assert torch.equal(numbers.float(), 127 * rows.sign())

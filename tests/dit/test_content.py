"""Keys of tensors: equal for equal contents, another for another type, shape or value."""

from __future__ import annotations

import torch
from pack.dit.content import tensor_key
from pack.dit.references import picture_key


def test_a_key_is_the_contents_and_not_the_place_in_memory() -> None:
    rows = torch.arange(12.0).reshape(3, 4)
    assert tensor_key(rows) == tensor_key(rows.T.contiguous().T) == tensor_key(rows.clone().requires_grad_())


def test_type_shape_and_values_each_change_the_key() -> None:
    zeros = torch.zeros(2, 6)
    others = [torch.zeros(3, 4), torch.zeros(2, 6, dtype=torch.int32), torch.zeros(1, 2, 6), zeros + 1]
    assert len({tensor_key(tensor) for tensor in [zeros, *others]}) == 1 + len(others)


def test_every_kind_of_tensor_has_a_key() -> None:
    kinds = [torch.bfloat16, torch.float16, torch.bool, torch.int64, torch.uint8, torch.float8_e4m3fn]
    assert len({tensor_key(torch.ones(3).to(kind)) for kind in kinds}) == len(kinds)
    assert tensor_key(torch.zeros(0)) != tensor_key(torch.zeros(0, 3))
    assert tensor_key(torch.tensor(1.0)) != tensor_key(torch.tensor(2.0))


def test_a_picture_is_the_same_in_either_number_type() -> None:
    picture = torch.tensor([[[[0.0, 0.5, 1.0]]]])
    assert picture_key(picture) == picture_key(picture.half())

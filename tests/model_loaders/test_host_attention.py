"""Masked rows are computed with their mask, whatever attention ComfyUI was started with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytestmark = pytest.mark.host


@pytest.mark.parametrize("override", ["", "by name", "inside"])
def test_a_mask_is_kept_where_the_hosts_attention_would_drop_it(
    monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    from pack.model_loaders import host_attention

    calls = []

    def attention_sage(
        query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Any = None, **more: Any
    ) -> Tensor:
        """As the host's function of that name."""
        calls.append(more["transformer_options"])
        return host_attention.attention_pytorch(query, key, value, heads, **more)

    overridden = False

    def sage_of_a_pack(inner: Any, *tensors: Any, **more: Any) -> Tensor:
        nonlocal overridden
        overridden = True
        assert more.get("mask") is None
        return inner(*tensors, **more)

    overrides = {"by name": sage_of_a_pack, "inside": lambda *given, **more: sage_of_a_pack(*given, **more)}
    monkeypatch.setattr(host_attention, "optimized_attention", attention_sage)
    options = {"of": "this run"} | ({"optimized_attention_override": overrides[override]} if override else {})
    attend = host_attention.host_attention(options)
    query, key, value = torch.randn(3, 2, 4, 6, 16, generator=torch.Generator().manual_seed(0))
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    padded = torch.tensor([True, True, True, True, False, False]).expand(2, 1, 1, 6)
    for mask in (None, causal, padded):
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        torch.testing.assert_close(
            attend(query, key, value, mask), expected.transpose(1, 2).flatten(2), atol=1e-6, rtol=1e-5
        )
    assert calls == [options], "only what has no mask goes to the host's choice"
    assert overridden == bool(override)


def test_other_overrides_see_all_rows() -> None:
    from pack.model_loaders import host_attention

    seen = []

    def message_of_a_pack(inner: Any, *tensors: Any, **more: Any) -> Tensor:
        seen.append(more["mask"] is not None)
        return inner(*tensors, **more)

    attend = host_attention.host_attention({"optimized_attention_override": message_of_a_pack})
    query, key, value = torch.randn(3, 1, 2, 4, 8)
    for mask in (None, torch.ones(4, 4, dtype=torch.bool).tril()):
        attend(query, key, value, mask)
    assert seen == [False, True]

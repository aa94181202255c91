"""References that were taken out of a call are not spoken of any more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cached_runs import cached, reference, sampled
from tiny_flux import tiny_flux

pytestmark = pytest.mark.host
ONE, TWO = reference(6, 8, 5), reference(4, 10, 6)
TARGET_TOKENS = 4 * 6
COUNTS = "reference_image_num_tokens"


def stock(model: Any) -> Any:
    from pack.model_loaders.reference_cache import attach_stock_cache
    from pack.model_loaders.stock_cache import StockSettings

    return attach_stock_cache(model, StockSettings(warm_up=1, refresh_every=100), print)


def test_newer_comfyuis_counts_go_with_the_tokens() -> None:
    from pack.model_loaders.reference_reading import without_references

    options = {COUNTS: [12, 10], "block_type": "double"}
    tokens = {"img": torch.zeros(1, 46, 8), "img_ids": torch.zeros(1, 46, 3), "transformer_options": options}
    left = without_references(tokens, TARGET_TOKENS)
    assert left["img"].shape[1] == left["img_ids"].shape[1] == TARGET_TOKENS
    assert left["transformer_options"] is options == {"block_type": "double"}
    del tokens["transformer_options"]
    assert without_references(tokens, TARGET_TOKENS).keys() == {"img", "img_ids"}


@pytest.mark.parametrize("attach", [cached, stock])
def test_blocks_are_told_of_the_references_they_get(attach: Any) -> None:
    """ComfyUI's own Flux KV Cache cuts as many tokens as it is told of."""
    seen: list[tuple[int, int]] = []

    def block(args: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        told = sum(args.get("transformer_options", {}).get(COUNTS, []))
        seen.append((args["img"].shape[1] - TARGET_TOKENS, told))
        return more["original_block"](args)

    target = attach(tiny_flux())
    target.set_model_patch_replace(block, "dit", "double_block", 0)
    sampled(target, [ONE, TWO])
    assert (0, 0) in seen
    assert all(told in (0, there) for there, told in seen)

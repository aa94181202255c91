"""The error of references from an earlier step: the attention it stands for, and its table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.host


def test_the_attention_is_that_of_the_cache() -> None:
    from pack.bench.stock_references import NotedAttention
    from pack.dit.reference_cache import StepReader, StepRecorder
    from pack.model_loaders.stock_cache import StockSettings
    from torch.nn.functional import scaled_dot_product_attention

    def attention(q, k, v, heads, mask=None, **_):
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    draw = torch.Generator().manual_seed(0)
    own, shown, blocks = 5, 3, 2
    noted = NotedAttention(StockSettings(warm_up=1, refresh_every=2), slice(own, own + shown), blocks)
    kept: dict = {}
    for step in range(4):
        for block in range(blocks):
            q, k, v = (torch.randn(1, 2, own + shown, 8, generator=draw) for _ in range(3))
            options = {"transformer_options": {"block_type": "double", "block_index": block}}
            if step in (0, 2):
                wanted = StepRecorder(shown, kept)(attention, q, k, v, 2, **options)
            else:
                alone = (part[:, :, :own] for part in (q, k, v))
                wanted = StepReader(kept)(attention, *alone, 2, **options)
                fresh = attention(q, k, v, 2)[:, :own]
                assert not torch.allclose(wanted, fresh, atol=1e-3)
            assert torch.allclose(noted(q, k, v)[:, :own], wanted[:, :own], atol=1e-6)


def test_full_steps_change_nothing_and_fewer_do(loud_model: Path) -> None:
    from pack.bench import stock_references
    from pack.bench.small_solvers import Solved
    from pack.model_loaders.stock_cache import StockSettings
    from pack.training.recipes.editor import Sampling

    cases = stock_references.asked_cases(loud_model, 1)["scenes from references"]
    solved, sampling = Solved(loud_model, cases), Sampling(evaluations=4)
    whole = solved(sampling)
    full = stock_references.pictures(solved, sampling, StockSettings(warm_up=4))
    assert torch.equal(full, whole)
    first = stock_references.pictures(solved, sampling, StockSettings(warm_up=1, refresh_every=4))
    error = stock_references.psnr(first, whole)
    assert bool((error < 98).all()) and bool((error > 5).all())
    (batch,) = {id(pair): pair for pair, *_ in solved.batches}.values()
    assert not batch.dit._forward_pre_hooks


def test_the_table(loud_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pack.bench import stock_references

    monkeypatch.setattr(stock_references, "PLANS", ((1, 4), (2, 2)))
    monkeypatch.setattr(stock_references, "TASKS", {"edits of the source": ("remove",)})
    table = stock_references.error_table(loud_model, 1, 4)
    assert [row[:2] for row in table.rows] == [
        ("all 4", 4),
        ("the first 1", 1),
        ("the first 2, then 1 in 2", 3),
    ]
    assert all(0 <= row[-1] <= 100 for row in table.rows)
    assert all(row[2] > 5 for row in table.rows[1:])

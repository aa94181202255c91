"""The benchmark of the reference cache at a size for tests."""

from __future__ import annotations

import math

import pytest
import torch

pytestmark = pytest.mark.host


def test_step_flops_by_hand() -> None:
    from pack.bench.networks import random_flux, step_flops

    network = random_flux(hidden=32, heads=1, double=1, single=2, device="cpu", dtype=torch.float32)
    network = network.model.diffusion_model
    # 10 tokens computed; 10 or 14 keys; 3 blocks of 24 * 32 * 32 a token and 4 * 32 a pair.
    assert step_flops(network, 4, 6, 4, cached=True) == 3 * (24 * 1024 * 10 + 128 * 10 * 14)
    assert step_flops(network, 4, 6, 4, cached=False) == 3 * (24 * 1024 * 14 + 128 * 14 * 14)


def test_flux_at_full_size_costs_what_the_cache_promises() -> None:
    from types import SimpleNamespace

    from pack.bench.networks import step_flops

    flux = SimpleNamespace(double_blocks=range(19), single_blocks=range(38), hidden_size=3072)
    none = step_flops(flux, 512, 4096, 0, cached=True)
    assert none == pytest.approx(74.4e12, rel=0.01)
    ratios = [step_flops(flux, 512, 4096, count * 4096, cached=True) / none for count in (1, 3, 5)]
    assert ratios == pytest.approx([1.18, 1.53, 1.89], abs=0.01)


def test_tables_at_test_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from pack.bench import reference_cache as bench
    from pack.bench.networks import random_flux
    from pack.model_loaders.reference_cache import attach_reference_cache
    from pack.model_loaders.reference_writing import CacheSettings

    def small(**settings: str) -> bench.Scene:
        model = random_flux(hidden=64, heads=2, double=1, single=1, device="cpu", dtype=torch.float32)
        cached = attach_reference_cache(model, CacheSettings(**settings), lambda _: None)
        return bench.Scene(model, cached, side=8, text=4, rounds=1)

    monkeypatch.setattr(bench, "scene", small)
    step, run, reuse, memory = bench.tables()
    assert [row[0] for row in step.rows] == [
        f"{n} references, {how}" for n in (1, 3, 5) for how in ("cached", "uncached")
    ]
    assert all(math.isfinite(value) and value >= 0 for row in run.rows for value in row[1:])
    assert reuse.column("references computed") == [0, 0]
    assert memory.rows[1][3] >= 44  # few tokens

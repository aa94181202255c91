"""Compiled blocks: the cache works with them, and neither prompts nor references compile anything again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cached_runs import reference, sampled
from tiny_flux import tiny_flux

pytestmark = pytest.mark.host


def compiled(model: Any, counter: list[int]) -> Any:
    """A clone whose blocks are compiled one by one, as regional compile nodes do; counts the compilations."""

    def backend(graph: Any, inputs: Any) -> Any:
        counter.append(1)
        return graph.forward

    patched, network = model.clone(), model.model.diffusion_model
    for kind in ("double_blocks", "single_blocks"):
        for number, block in enumerate(getattr(network, kind)):
            lazily = torch.compile(block, backend=backend, dynamic=True)
            patched.add_object_patch(f"diffusion_model.{kind}.{number}", lazily)
    return patched


def test_compiled_blocks_give_the_same_and_are_compiled_once() -> None:
    from pack.model_loaders.reference_cache import attach_reference_cache
    from pack.model_loaders.reference_writing import CacheSettings

    torch._dynamo.reset()
    references = [reference(6, 8, 5), reference(4, 10, 6), reference(9, 7, 7)]
    expected = sampled(attach_reference_cache(tiny_flux(depth=1, single=1), CacheSettings()), references[:2])
    counter: list[int] = []
    model = compiled(tiny_flux(depth=1, single=1), counter)
    target = attach_reference_cache(model, CacheSettings())
    out = sampled(target, references[:2])
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    first = len(counter)
    assert first > 0
    for changes in ({"prompt": 4}, {"seed": 8}, {"guidance": 2.0}):
        sampled(target, references[:2], **changes)
    for count in (1, 3):
        sampled(target, references[:count])
    assert len(counter) == first
    torch._dynamo.reset()

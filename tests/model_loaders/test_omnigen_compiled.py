"""OmniGen behind ComfyUI's TorchCompileModel: prefixes of several lengths, kept or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_omnigen import tiny_config, write_official

pytestmark = pytest.mark.host


def guided(model: Any, processor: Any) -> torch.Tensor:
    """Two guided steps whose branches have prompts of different lengths."""
    import comfy.samplers

    texts = ("a cat on the red roof of a house", "ugly")
    positive, negative = ([[processor.tokenize(text, []).as_tensor(), {}]] for text in texts)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(2.5)
    noise = torch.randn(1, 4, 4, 4, generator=torch.manual_seed(3))
    sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.5, 0.0])
    with torch.inference_mode():
        return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True)


@pytest.mark.parametrize("is_cached", [True, False])
def test_a_compiled_model_gives_the_same(tmp_path: Path, is_cached: bool) -> None:
    from pack.dit.omnigen.prefix_cache import CacheSettings
    from pack.model_loaders.omnigen import load_omnigen

    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model, processor = load_omnigen(
        write_official(tmp_path, tiny_config()), "fp32", CacheSettings(enabled=is_cached)
    )
    expected = guided(model, processor)
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(1)
        return graph.forward

    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend)
    torch._dynamo.reset()
    torch.testing.assert_close(guided(compiled, processor), expected, atol=1e-5, rtol=1e-5)
    assert graphs
    torch._dynamo.reset()

"""A small VLM trained along with its network reads what inference reads, learns, and is stored with it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pack.training.config import MemoryConfig, RunConfig, StageConfig
from pack.training.families import load_family
from pack.training.families.base import CachedSample
from tiny_dreamomni import write_dreamomni

pytestmark = pytest.mark.host
CPU = torch.device("cpu")
SIDE = 32


def sample(number: int, pictures: int) -> CachedSample:
    generator = torch.Generator().manual_seed(number)
    levels = [torch.randint(0, 256, (3, SIDE, SIDE), generator=generator) for _ in range(pictures + 1)]
    target, *references = [level / 127.5 - 1 for level in levels]
    return CachedSample(
        id=str(number),
        task="edit",
        instruction=f"make it {'very ' * number}blue",
        target=target,
        references=tuple(references),
        reference_pixels=tuple(references),
        prompt={},
        has_source=pictures > 0,
    )


def test_the_trained_vlm_is_the_one_inference_uses(tmp_path) -> None:
    from pack.model_loaders.dreamomni import load_dreamomni
    from pack.model_loaders.vlm import load_vlm

    base = write_dreamomni(tmp_path / "base") / "vlm"
    config = RunConfig(
        name="along",
        family="dreamomni",
        task="all",
        base={"vlm": str(base)},
        options={
            "preset": "tiny",
            "train_vlm": True,
            "network.width": 32,
            "network.heads": 2,
            "network.groups": 1,
            "network.rope_axes": "4,6,6",
        },
        adapter=None,
        memory=MemoryConfig(precision="fp32"),
        stages=(StageConfig(resolution=SIDE, steps=1),),
    )
    family = load_family("dreamomni")
    pair = family.load_network(config, CPU)
    items = [sample(1, 1), sample(2, 2), sample(3, 0)]
    with torch.no_grad():
        features = pair.features(items, CPU)
    vlm = load_vlm(base, "fp32")
    for row, item in enumerate(items):
        images = [(picture / 2 + 0.5).movedim(0, -1)[None] for picture in item.references]
        expected = vlm.hidden_states(item.instruction, images)
        length = expected.tokens.shape[1]
        torch.testing.assert_close(features.tokens[row, :length], expected.tokens[0], rtol=1e-3, atol=1e-3)
        assert torch.equal(features.image_index[row, :length], expected.image_index[0])
        assert features.attention_mask[row].tolist() == [True] * length + [False] * (
            features.attention_mask.shape[1] - length
        )
    torch.nn.init.normal_(pair.dit.exit.out.weight, std=0.1)
    batch = family.collate([dataclasses.replace(items[0])], config, CPU, torch.float32)
    noise = torch.randn(1, 3, SIDE, SIDE)
    family.loss(pair, batch, noise, torch.tensor([0.5]), config).sum().backward()
    trained = dict(family.trainable_parameters(pair, config))
    assert not any("lm_head" in name for name in trained)
    for part in ("vlm.model.visual", "vlm.model.language_model", "dit.vlm_in"):
        assert any(
            p.grad is not None and p.grad.abs().max() > 0 for n, p in trained.items() if n.startswith(part)
        ), part
    family.export_full(pair, {}, tmp_path / "out", {}, config)
    model, stored, _ = load_dreamomni(tmp_path / "out", "default")
    assert model.model.network_config.vlm_width == 64
    again = stored.hidden_states("make it blue", [])
    assert again.tokens.shape[-1] == 64

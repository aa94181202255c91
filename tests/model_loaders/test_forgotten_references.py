"""Pictures that would silently do nothing: refused by OmniGen, told of by DreamOmni."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_dreamomni import VLM_WIDTH, toy_config, write_network
from tiny_omnigen import tiny_config, write_official

pytestmark = pytest.mark.host

TAG = "<img><|image_{}|></img>"


def omnigen_conds(folder: Path, prompt: str, named: int, held: int) -> dict[str, Any]:
    """What OmniGen makes of a prompt with `named` pictures when the conditioning holds `held` latents."""
    from pack.model_loaders.omnigen import load_omnigen

    model, processor = load_omnigen(write_official(folder, tiny_config()), "fp32")
    return model.model.extra_conds(
        cross_attn=processor.tokenize(prompt, [(32, 32)] * named).as_tensor(),
        reference_latents=[torch.randn(1, 4, 4, 4) for _ in range(held)],
        noise=torch.zeros(1, 4, 8, 8),
        device=torch.device("cpu"),
    )


def test_omnigen_refuses_pictures_that_its_prompt_does_not_name(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"holds 1 reference\(s\), the prompt names 0.*'OmniGen Encode', not"
    ):
        omnigen_conds(tmp_path / "none", "a cat", 0, 1)
    with pytest.raises(ValueError, match=r"holds 2 reference\(s\), the prompt names 1"):
        omnigen_conds(tmp_path / "one", f"{TAG.format(1)} and again {TAG.format(1)}", 1, 2)


def test_omnigen_takes_pictures_that_are_named_twice_or_not_there(tmp_path: Path) -> None:
    twice = omnigen_conds(tmp_path / "twice", f"{TAG.format(1)} and again {TAG.format(1)}", 1, 1)
    assert len(twice["prefixes"].cond[0].tokens.slots) == 2
    assert not omnigen_conds(tmp_path / "words", "a cat", 0, 0)["prefixes"].cond[0].tokens.slots


@pytest.mark.parametrize(
    ("source_tokens", "seen", "held", "told"),
    [
        (True, 2, 0, "saw 2 picture"),
        (True, 2, 1, "saw 1 picture"),
        (True, 2, 2, ""),
        (True, 0, 1, ""),
        (False, 2, 0, ""),
    ],
)
def test_dreamomni_says_once_that_latents_were_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source_tokens: bool, seen: int, held: int, told: str
) -> None:
    from pack.model_loaders.dreamomni import load_patcher

    model = load_patcher(write_network(tmp_path / "toy", toy_config(source_tokens=source_tokens)), "fp32")
    conditioning = {
        "cross_attn": torch.randn(1, 4, VLM_WIDTH),
        "dreamomni_image_index": torch.tensor([[0, min(seen, 1), seen, 0]]),
        "reference_latents": [torch.randn(1, 48, 4, 4)] * held,
        "noise": torch.zeros(1, 48, 8, 8),
    }
    with caplog.at_level("WARNING", logger="dreamomni"):
        for _ in range(2):
            model.model.extra_conds(**conditioning)
    messages = [record.getMessage() for record in caplog.records if record.name == "dreamomni"]
    assert len(messages) == bool(told)
    assert all(told in words and "Reference Conditioning" in words for words in messages)

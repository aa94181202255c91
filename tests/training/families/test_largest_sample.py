"""The tokens a memory plan is made for, counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pack.training.cache import TensorCache
from pack.training.config import RunConfig
from pack.training.encode import SampleEntry
from pack.training.families import load_family
from pack.training.samples import SampleStore


def store(folder: Path, prompt: dict[str, Any], *samples: list[list[int]]) -> SampleStore:
    """Samples of pictures of these shapes; the prompt of sample n is n rows longer."""
    cache, entries = TensorCache(folder), []
    for number, shapes in enumerate(samples):
        longer = {name: [rows, rows[:1].expand(number, *rows.shape[1:])] for name, rows in prompt.items()}
        cache.write(f"prompt{number}", {name: torch.cat(rows) for name, rows in longer.items()})
        entries.append(
            SampleEntry(
                id=str(number),
                task="edit",
                instruction="",
                target="target",
                references=[],
                prompts={"full": f"prompt{number}"},
                shapes=shapes,
            )
        )
    return SampleStore(entries, cache)


SMALL, LARGE = [[16, 4, 4], [16, 4, 4]], [[16, 8, 6], [16, 4, 6], [16, 6, 4]]
BLOCKS = {"pixel_block": 2, "network.patch": 1}
"""Twice 2 pixels a side are a token's: 4, and a rest counts as a whole one."""
CASES = {
    "kontext": ("kontext", {}, {"context": torch.zeros(5, 16), "pooled": torch.zeros(8)}, 12 + 6 + 6 + 6),
    "omnigen: its slots hold the references": ("omnigen", {}, {"ids": torch.zeros(40)}, 12 + 41),
    "dreamomni": ("dreamomni", BLOCKS, {"tokens": torch.zeros(7, 32)}, 4 + 2 + 2 + 8),
    "dreamomni: words without a length yet": (
        "dreamomni",
        {**BLOCKS, "train_vlm": True},
        {"utf8": torch.zeros(9)},
        4 + 2 + 2 + 512,
    ),
}


@pytest.mark.parametrize(("family", "options", "prompt", "wanted"), CASES.values(), ids=CASES)
def test_the_largest_sample(tmp_path: Path, family: str, options: dict, prompt: dict, wanted: int) -> None:
    samples = store(tmp_path, prompt, SMALL, LARGE)
    run = RunConfig(name="run", family=family, options=options, adapter=None)
    assert load_family(family).largest_sample(samples, run) == wanted
    samples.close()


def test_a_long_request_counts_where_there_are_no_pictures(tmp_path: Path) -> None:
    samples = store(tmp_path, {"input_ids": torch.zeros(700)}, [], [])
    assert load_family("vlm").largest_sample(samples, RunConfig(name="run", family="vlm")) == 701
    samples.close()

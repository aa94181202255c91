"""One tiny model for the tests of this folder."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from pack.training.recipes.small_run import train_small

from tests.training.recipes.small_budget import TrainHere, tiny_recipe


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Generator[None]:
    """Networks this small only lose time to the threads' waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("small")
    return train_small(tiny_recipe(), folder / "work", folder / "small", "cpu", TrainHere())

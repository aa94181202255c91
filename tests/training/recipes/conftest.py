"""One tiny model for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from pack.training.recipes.small_run import train_small

from tests.training.recipes.small_budget import TrainHere, tiny_recipe


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    return train_small(tiny_recipe(), folder / "work", folder / "small", "cpu", TrainHere())

"""One tiny model for the tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from pack.training.recipes.small_run import train_small
from safetensors.torch import load_file, save_file

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


@pytest.fixture(scope="package")
def loud_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with weights large enough to be seen in 8 bits."""
    folder = tmp_path_factory.mktemp("loud") / "model"
    shutil.copytree(tiny_model, folder)
    generator = torch.Generator().manual_seed(3)
    for path in (folder / "dit.safetensors", *folder.glob("loras/*.safetensors")):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if name.endswith(("exit.out.weight", "lora_B.weight", "lora_A.weight")):
                tensors[name] = torch.randn(tensor.shape, generator=generator).mul(0.2).bfloat16()
        save_file(tensors, path, {"format": "pt"})
    return folder

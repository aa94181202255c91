"""Two processes that share every step learn what one process learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pack.training.launch import run_once
from pack.training.run_file import read_run_file
from safetensors.torch import load_file

from tests.training.test_process import kontext_run


def trained(folder: Path, processes: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and the LoRA of six steps of two samples each; the run says how many processes it has."""
    run = kontext_run(folder, steps=6, batch_size=2)
    losses: list[float] = []

    def heard(event: dict | None) -> None:
        if event is not None and event["event"] == "started":
            assert event["processes"] == processes
        if event is not None and event["event"] == "step":
            losses.append(event["loss"])

    assert run_once(run, folder / "run", heard, processes) == 0
    assert read_run_file(folder / "run").config == run.config
    return losses, load_file(folder / "run" / "exports" / "last.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], dict[str, torch.Tensor]]:
    return trained(tmp_path_factory.mktemp("alone"), 1)


def test_two_processes_equal_one(alone, tmp_path: Path) -> None:
    losses, weights = trained(tmp_path, 2)
    assert len(losses) == 6  # one writer
    assert losses == pytest.approx(alone[0], rel=1e-5)
    assert weights.keys() == alone[1].keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, alone[1][name], rtol=1e-3, atol=1e-5)

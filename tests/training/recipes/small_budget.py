"""The small recipe at a budget of seconds, trained in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pack.training.families import load_family
from pack.training.recipes.small import Refinement, SmallRecipe
from pack.training.recipes.small_tasks import BASE_TASKS
from pack.training.recipes.small_vlm import SmallVLMConfig
from pack.training.run_file import RunFile
from pack.training.session import Session
from pack.training.team import Team
from pack.training.trainer import RunFolder, Trainer

CPU = torch.device("cpu")
TINY_VLM = SmallVLMConfig(width=64, layers=1, heads=2, feedforward=64, picture_width=32, picture_layers=1)
TINY_NETWORK = (
    ("source_matte", True),
    ("source_exit_skips", True),
    ("width", 32),
    ("heads", 2),
    ("groups", 1),
    ("conv_width", 16),
    ("time_width", 16),
    ("rope_axes", "4,6,6"),
)


def tiny_recipe(**changes: Any) -> SmallRecipe:
    settings = {
        "steps": 2,
        "further_steps": 0,
        "refinements": (Refinement(steps=1, tasks=BASE_TASKS),),
        "batch_size": 4,
        "distinct_samples": 60,
        "edit_steps": 3,
        "generate_steps": 2,
        "lora_batch_size": 4,
        "lora_samples": 6,
        "lora_rank": 2,
        "warmup_steps": 0,
        "vlm": TINY_VLM,
        "network": TINY_NETWORK,
        "precision": "fp32",
    }
    return SmallRecipe(**{**settings, **changes})


class TrainHere:
    """Stands for the training process; keeps the losses it hears."""

    def __init__(self) -> None:
        self.losses: dict[str, list[float]] = {}

    def __call__(self, run: RunFile, folder: Path, heard: Callable[[dict[str, Any] | None], None]) -> int:
        losses = self.losses.setdefault(run.config.name, [])

        def emit(event: dict[str, Any]) -> None:
            if event["event"] == "step":
                losses.append(event["loss"])
            heard(event)

        session = Session(run.config, load_family(run.config.family), CPU)
        place = RunFolder(folder=folder, cache=Path(run.cache))
        Trainer(session, place, Team(), emit, lambda: False, run.base_hashes).run()
        return 0

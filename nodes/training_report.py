"""A look at a training run: its curve, its pictures and what happened."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from comfy_api.latest import io, ui

from ..training.config import check_run_name
from ..training.metrics import FILE as DIARY
from ..training.report import (
    DATASET_NOTES,
    dataset_notes,
    loss_chart,
    run_summary,
    sample_strips,
    words_picture,
)
from .fingerprints import UNKNOWN, state_of_name
from .notes import show_note
from .pictures import image_of
from .schema import node_input, node_schema
from .training_folders import TrainingRun, runs_root
from .types import CATEGORY, Run

CONNECTED = "the connected run"


def recorded_runs() -> list[str]:
    """Names of the runs that have a diary, newest first, however they ended."""
    root = runs_root()
    diaries = [entry / DIARY for entry in root.iterdir()] if root.is_dir() else []
    found = [diary for diary in diaries if diary.is_file()]
    return [file.parent.name for file in sorted(found, key=lambda file: file.stat().st_mtime, reverse=True)]


def recorded_folder(run: TrainingRun | None, run_name: str) -> Path:
    """Folder of the run to show; ValueError for none or a bad name, FileNotFoundError without a diary."""
    if run_name != CONNECTED:
        folder = runs_root() / check_run_name(run_name)
    elif run is not None:
        folder = run.folder
    else:
        raise ValueError("no run to show; connect a training node's run, or choose one in run_name")
    if not (folder / DIARY).is_file():
        raise FileNotFoundError(
            f"the run {folder.name!r} has no diary ({DIARY}) in {folder.parent}: its training never started, "
            f"or it was moved away. Runs with one: {', '.join(recorded_runs()) or 'none'}"
        )
    return folder


def shown_files(run_name: str) -> list[Path]:
    """What the report of a run is made from."""
    folder = recorded_folder(None, run_name)
    return [folder / DIARY, folder / DATASET_NOTES, *sample_strips(folder)]


def stacked_strips(files: list[Path]) -> Tensor:
    """Pictures as one IMAGE batch (N, H, W, 3), padded to the largest; words without any."""
    if not files:
        return image_of(words_picture("no sample pictures"))
    pictures = []
    for file in files:
        with Image.open(file) as picture:
            pictures.append(image_of(picture)[0])
    height, width = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
    batch = torch.ones(len(pictures), height, width, 3)
    for index, picture in enumerate(pictures):
        batch[index, : picture.shape[0], : picture.shape[1]] = picture
    return batch


class TrainingReport(io.ComfyNode):
    """Shows a run: loss curve, samples at the start and now, and what happened."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniTrainingReport",
            display_name="Training Report",
            category=f"{CATEGORY}/train",
            description="Draws a run from its diary on disk, also one that was cancelled or failed: loss, "
            "held-out loss, sample pictures, events.",
            search_aliases=["loss curve", "training samples", "failed training", "cancelled training"],
            is_output_node=True,
            not_idempotent=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                node_input(
                    Run,
                    "run",
                    optional=True,
                    tooltip="From a training node: shown when it has finished.",
                ),
                node_input(
                    io.Combo,
                    "run_name",
                    options=[CONNECTED, *recorded_runs()],
                    default=CONNECTED,
                    optional=True,
                    tooltip="Any run on disk instead, newest first: finished, cancelled, failed, or running "
                    "in another ComfyUI. Press R for new ones.",
                ),
            ],
            outputs=[
                io.Image.Output("loss_curve", display_name="loss curve", tooltip="Loss over the steps."),
                io.Image.Output(
                    "samples",
                    display_name="samples",
                    tooltip="References, sample and target: first drawing, then the newest.",
                ),
                io.String.Output("text", display_name="text", tooltip="The run in words."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, run_name: str | None = None, **_: object) -> str:
        return UNKNOWN if run_name == CONNECTED else state_of_name(run_name, shown_files)

    @classmethod
    def execute(cls, run: TrainingRun | None = None, run_name: str = CONNECTED) -> io.NodeOutput:
        folder = recorded_folder(run, run_name)
        chart = image_of(loss_chart(folder))
        words = run_summary(folder, dataset_notes(folder))
        show_note(cls, words)
        samples = stacked_strips(sample_strips(folder))
        return io.NodeOutput(chart, samples, words, ui=ui.PreviewImage(chart, cls=cls))


NODES = [TrainingReport]

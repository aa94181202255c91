"""A look at a training run: its curve, its pictures and what happened."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from comfy_api.latest import io, ui

from ..training.report import loss_chart, run_summary, sample_strips, words_picture
from .notes import show_note
from .pictures import image_of
from .schema import node_input, node_schema
from .training_run import TrainingRun, run_notes
from .types import CATEGORY, Run


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
            description="Draws a run from its diary on disk: loss, held-out loss, sample pictures, events.",
            search_aliases=["loss curve", "training samples"],
            is_output_node=True,
            not_idempotent=True,
            hidden=[io.Hidden.unique_id],
            inputs=[node_input(Run, "run", tooltip="From a training node.")],
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
    def execute(cls, run: TrainingRun) -> io.NodeOutput:
        chart = image_of(loss_chart(run.folder))
        words = "\n".join(part for part in (run_summary(run.folder), run_notes(run.folder)) if part)
        show_note(cls, words)
        samples = stacked_strips(sample_strips(run.folder))
        return io.NodeOutput(chart, samples, words, ui=ui.PreviewImage(chart, cls=cls))


NODES = [TrainingReport]

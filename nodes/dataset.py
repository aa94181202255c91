"""Making, opening and looking at edit datasets."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable

from PIL import Image

from comfy_api.latest import io, ui

from ..training.contact_sheet import SIDE, SheetRow, contact_sheet, fitted
from ..training.dataset import EditDataset, EditSample, open_dataset
from ..training.synthesis.config import MIN_SIDE, TASK_GROUPS, recipe_for, tasks_from_words
from ..training.synthesis.generate import Job, generate
from ..training.synthesis.samples import Sample, Synthesizer
from ..training.synthesis.writers import FORMATS
from .dataset_folders import dataset_names, find_dataset, input_folder, new_dataset_folder
from .fingerprints import dataset_state, input_folder_state
from .notes import show_note
from .own_writes import OWN_WRITES
from .pictures import image_of
from .progress import progress_reporter
from .schema import node_input, node_schema
from .types import CATEGORY, Dataset

PREVIEW_SECONDS = 1.5
LARGEST = 1024
MOST_SAMPLES = 100_000_000
MOST_ROWS = 64
PART_BYTES = 48_000_000
"""About how many bytes of pixels one shard holds; what a crash can lose."""


def part_size(size: int) -> int:
    """Samples of one shard: many small ones, few large ones."""
    return max(8, min(512, PART_BYTES // (size * size * 3 * 3)))


def pair_preview(sample: Sample) -> Image.Image:
    """Source (or first reference) and target side by side."""
    left = sample.source if sample.source is not None else (*sample.references, sample.target)[0]
    pictures = [Image.fromarray(canvas).resize((256, 256)) for canvas in (left, sample.target)]
    sheet = Image.new("RGB", (512, 256))
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (256 * place, 0))
    return sheet


def dataset_reporter(job: Job) -> Callable[[int, Sample | None], None]:
    """Moves the node's bar and shows a pair every now and then; raises when cancelled."""
    report, shown = progress_reporter(job.count), 0.0
    synthesizer: Synthesizer | None = None

    def on_samples(done: int, sample: Sample | None) -> None:
        nonlocal shown, synthesizer
        if time.monotonic() - shown < PREVIEW_SECONDS:
            report(done, None)
            return
        shown = time.monotonic()
        if sample is None:
            # The worker processes tell numbers only: one of their samples is drawn again here.
            synthesizer = synthesizer or Synthesizer(job.config)
            sample = synthesizer.sample(min(done, job.count - 1))
        report(done, pair_preview(sample))

    return on_samples


def wanted_samples() -> list[io.Input]:
    """Inputs that say how many samples of what there will be, and where."""
    groups = "; ".join(f"{name}: {', '.join(tasks)}" for name, tasks in TASK_GROUPS.items())
    return [
        node_input(
            io.String,
            "name",
            default="stickers",
            tooltip="Folder in output/dreamomni/datasets. The same name with the same settings goes on.",
        ),
        node_input(
            io.Int,
            "size",
            default=512,
            min=MIN_SIDE,
            max=LARGEST,
            step=8,
            tooltip="Width and height in pixels. Below 192 shapes are few and flat, as small models need.",
        ),
        node_input(
            io.Int,
            "count",
            default=1000,
            min=1,
            max=MOST_SAMPLES,
            tooltip="Samples to have in the end. Raise it later to add more.",
        ),
        node_input(
            io.String,
            "tasks",
            default="all",
            tooltip=f"all, or groups and tasks with commas. {groups}. all leaves out what "
            "cannot be made: control_canny without OpenCV or scikit-image, control_depth without "
            "depth maps.",
        ),
        node_input(
            io.Int,
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFF,
            control_after_generate=False,
            tooltip="The same seed and settings give the same files, byte for byte.",
        ),
    ]


def drawn_from() -> list[io.Input]:
    """Inputs that say what samples are drawn from, and how they are written."""
    return [
        node_input(
            io.String,
            "stickers_folder",
            default="",
            optional=True,
            tooltip="A folder inside ComfyUI's input folder with cut-out pictures (PNG, WebP, "
            "GIF, SVG), an emoji package or iconify JSON. Empty: drawn shapes only.",
        ),
        node_input(
            io.String,
            "backgrounds_folder",
            default="",
            optional=True,
            tooltip="A folder inside ComfyUI's input folder with photos. Empty: plain colours and gradients.",
        ),
        node_input(
            io.Combo,
            "format",
            options=list(FORMATS),
            default="shards",
            optional=True,
            advanced=True,
            tooltip="shards: webdataset tar files, for many samples. folder: pictures and a JSONL "
            "file, to look at or change; keep the last line of each file.",
        ),
        node_input(
            io.Int,
            "processes",
            default=0,
            min=0,
            max=128,
            optional=True,
            advanced=True,
            tooltip="Processes that draw. 0: one for each CPU core, at most 8. The files do not "
            "depend on it.",
        ),
    ]


class StickerDataset(io.ComfyNode):
    """Makes exact before/after training pairs from stickers, shapes and photos."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniStickerDataset",
            display_name="Make Sticker Dataset",
            category=f"{CATEGORY}/train",
            description="Makes exact before/after training pairs from stickers, shapes and photos, with "
            "instructions, and writes them to output/dreamomni/datasets. Running it again goes on where it "
            "stopped.",
            search_aliases=["synthetic data", "training pairs", "edit dataset", "dreamomni"],
            is_output_node=True,
            inputs=[*wanted_samples(), *drawn_from()],
            outputs=[Dataset.Output("dataset", display_name="dataset", tooltip="For preview and training.")],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        name: str | None = None,
        count: int | None = None,
        stickers_folder: str | None = "",
        backgrounds_folder: str | None = "",
        **_: object,
    ) -> str:
        material = input_folder_state(stickers_folder) + input_folder_state(backgrounds_folder)
        try:
            folder = new_dataset_folder(name or "")
        except ValueError:  # linked, or no name of a folder, which is told when the node runs
            return material
        changes = OWN_WRITES.changes(folder, count)
        return f"{material} {changes}"

    @classmethod
    def execute(
        cls,
        name: str,
        size: int,
        count: int,
        tasks: str,
        seed: int,
        stickers_folder: str = "",
        backgrounds_folder: str = "",
        format: str = "shards",
        processes: int = 0,
    ) -> io.NodeOutput:
        drawn = recipe_for(
            size,
            size,
            seed,
            tasks_from_words(tasks),
            input_folder(stickers_folder, "stickers_folder"),
            input_folder(backgrounds_folder, "backgrounds_folder"),
        )
        # Some scenes are kept for judging (`dev.py evaluate`); nothing is trained on those.
        config = dataclasses.replace(drawn, split="train")
        folder = new_dataset_folder(name)
        job = Job(folder=folder, config=config, count=count, format=format, part_size=part_size(size))
        generate(job, processes or min(os.cpu_count() or 1, 8), dataset_reporter(job))
        OWN_WRITES.wrote(folder, count)
        return io.NodeOutput(open_dataset(folder))


class LoadDataset(io.ComfyNode):
    """Opens an edit dataset of one's own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniLoadDataset",
            display_name="Load Dataset",
            category=f"{CATEGORY}/train",
            description="Opens an edit dataset from output/dreamomni/datasets or input/dreamomni/datasets "
            "and checks every sample: the pack's own folders and shards, OmniGen JSONL, ai-toolkit and "
            "musubi-tuner folders.",
            search_aliases=["jsonl", "webdataset", "omnigen", "ai-toolkit", "musubi", "training data"],
            inputs=[
                node_input(
                    io.Combo,
                    "name",
                    options=dataset_names(),
                    tooltip="A folder (or .jsonl file) in input/dreamomni/datasets or "
                    "output/dreamomni/datasets.",
                ),
            ],
            outputs=[Dataset.Output("dataset", display_name="dataset", tooltip="For preview and training.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None) -> str:
        return dataset_state(name)

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        dataset = open_dataset(find_dataset(name))
        report = progress_reporter(len(dataset))
        dataset.check(lambda done: report(done, None))
        show_note(cls, f"samples: {len(dataset)}. {dataset.left_out}".rstrip())
        return io.NodeOutput(dataset)


def sheet_row(number: int, sample: EditSample) -> SheetRow:
    """A sample as a row of the contact sheet; photos of many rows would fill the memory at their own size."""
    pictures = [("source", sample.source)] if sample.source else []
    first = 2 if sample.source else 1
    pictures += [(f"image {first + place}", image) for place, image in enumerate(sample.references)]
    pictures += [("target", sample.target)]
    pictures += [("change", sample.mask)] if sample.mask else []
    return SheetRow(
        pictures=tuple((name, fitted(picture, SIDE)) for name, picture in pictures),
        text=sample.instruction,
        heading=f"{number}  {sample.task}  ({sample.mode})",
    )


class DatasetPreview(io.ComfyNode):
    """Shows samples of a dataset as a contact sheet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniDatasetPreview",
            display_name="Preview Dataset",
            category=f"{CATEGORY}/train",
            description="Shows some samples: source, references, target and where it changed, with the "
            "instruction.",
            search_aliases=["contact sheet", "inspect dataset", "show samples"],
            is_output_node=True,
            inputs=[
                node_input(Dataset, "dataset", tooltip="From Make Sticker Dataset or Load Dataset."),
                node_input(
                    io.Int,
                    "first",
                    default=0,
                    min=0,
                    max=MOST_SAMPLES,
                    tooltip="Number of the first sample shown, from 0.",
                ),
                node_input(
                    io.Int, "count", default=8, min=1, max=MOST_ROWS, tooltip="How many samples are shown."
                ),
            ],
            outputs=[
                io.Image.Output("sheet", display_name="contact sheet", tooltip="One picture with all rows."),
                io.String.Output("text", display_name="instructions", tooltip="One line for each sample."),
            ],
        )

    @classmethod
    def execute(cls, dataset: EditDataset, first: int, count: int) -> io.NodeOutput:
        if first >= len(dataset):
            raise ValueError(f"first is {first}, but the dataset has the samples 0 to {len(dataset) - 1}.")
        report, rows, lines = progress_reporter(min(count, len(dataset) - first)), [], []
        for number in range(first, min(first + count, len(dataset))):
            sample = dataset[number]
            rows.append(sheet_row(number, sample))
            lines.append(f"{number}\t{sample.task}\t{sample.instruction}")
            report(len(rows), None)
        sheet = image_of(contact_sheet(rows))
        return io.NodeOutput(sheet, "\n".join(lines), ui=ui.PreviewImage(sheet, cls=cls))


NODES: list[type[io.ComfyNode]] = [DatasetPreview, LoadDataset, StickerDataset]

"""Edit datasets: lazy random access to (source, references, instruction, target) on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .datasets.folders import FolderRecords
from .datasets.jsonl import JsonlRecords
from .datasets.records import Records, SampleRecord
from .datasets.shards import ShardRecords

OWN_JSONL = "samples*.jsonl"
"""What the sticker pipeline writes into a folder; several files are read one after another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditSample:
    """One training sample; pictures are RGB, the mask one channel with 255 where the target changed."""

    source: Image.Image | None
    references: tuple[Image.Image, ...]
    instruction: str
    task: str
    target: Image.Image
    mask: Image.Image | None
    id: str
    mode: str = "edit"
    """`edit` (there is a source) or `generate`: which LoRA the sample trains."""
    scene: dict[str, Any] | None = None
    """What is drawn where in source and target, if the sticker pipeline made the sample."""
    tagged_instruction: str | None = None
    """The words with OmniGen's image tags, if the file had them."""


class EditDataset:
    """Samples of a folder; nothing but an index is kept in memory."""

    def __init__(self, folder: Path, records: Records) -> None:
        self.folder = folder
        self._records = records
        self.fingerprint = records.fingerprint()
        self.left_out = records.left_out
        """Which pictures of the folder belong to no sample because of their kind; empty if none."""

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[EditSample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> EditSample:
        record = self.record(index)
        return EditSample(
            source=record.source.load() if record.source else None,
            references=tuple(picture.load() for picture in record.references),
            instruction=record.instruction,
            task=record.task,
            target=record.target.load(),
            mask=record.mask.load_mask() if record.mask else None,
            id=record.id,
            mode=record.mode,
            scene=record.scene,
            tagged_instruction=record.tagged_instruction,
        )

    def record(self, index: int) -> SampleRecord:
        """The words and file places of a sample without decoding a picture; negative counts from the end."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"{self.folder} has the samples 0 to {count - 1}, got {index}")
        return self._records.record(index % count)

    def check(self, report: Callable[[int], None] | None = None) -> None:
        """Read every record and require its files; raises for the first fault, naming file and line.

        `report` is called with the number of samples seen so far and may raise to cancel.
        """
        for index in range(len(self)):
            record = self.record(index)
            if not record.instruction.strip():
                raise ValueError(f"{record.target.label}: the instruction is empty.")
            for picture in record.pictures():
                picture.require()
            if report is not None:
                report(index + 1)


def find_records(folder: Path) -> Records:
    """The reader for what lies in `folder`: shards, JSONL, or pictures with captions."""
    shards = sorted(folder.glob("*.tar"))
    if shards:
        return ShardRecords(shards)
    lines = sorted(folder.glob(OWN_JSONL)) or sorted(folder.glob("*.jsonl"))
    if len(lines) > 1 and not lines[0].match(OWN_JSONL):
        raise ValueError(
            f"{folder} holds several JSONL files ({', '.join(path.name for path in lines)}). Keep one, or "
            "name the parts of one dataset samples-000.jsonl, samples-001.jsonl, ..."
        )
    return JsonlRecords(lines) if lines else FolderRecords(folder)


def open_dataset(folder: Path) -> EditDataset:
    """Open a dataset folder (or one .jsonl file) of any known layout without reading a picture.

    Raises FileNotFoundError if there is no such folder, ValueError if it holds no dataset.
    """
    if folder.is_file() and folder.suffix == ".jsonl":
        return EditDataset(folder.parent, JsonlRecords([folder]))
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no dataset folder {folder}.")
    return EditDataset(folder, find_records(folder))

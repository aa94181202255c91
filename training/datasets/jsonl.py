"""One JSON object per line: the pack's own keys, OmniGen's and musubi-tuner's."""

from __future__ import annotations

import hashlib
import json
import os
import re
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .records import Picture, SampleRecord, words_of

LINES_PER_MARK = 128
"""A byte offset is kept for every so many lines: 10^6 lines cost 63 kB of memory."""

IMAGE_TAG = re.compile(r"(?:<img>)?<\|image_(\d+)\|>(?:</img>)?")
GENERATE_TASKS = frozenset({"generate", "generation", "subject_driven", "text_to_image", "t2i", "few_shot"})


class LineIndex:
    """Random access to the non-empty lines of a text file through sparse byte offsets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._marks = array("Q")
        self._count = 0
        digest = hashlib.sha256()
        offset = 0
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    if self._count % LINES_PER_MARK == 0:
                        self._marks.append(offset)
                    self._count += 1
                    digest.update(line)
                offset += len(line)
        self.digest = digest.hexdigest()
        self._state = self._stat()

    def __len__(self) -> int:
        return self._count

    def line(self, index: int) -> str:
        """Non-empty line `index`; raises ValueError if the file changed since it was opened."""
        if self._stat() != self._state:
            raise ValueError(
                f"{self.path} was changed while it was in use. Load the dataset again; a run that was "
                "started on the old files should get a new name."
            )
        skip = index % LINES_PER_MARK
        with self.path.open("rb") as file:
            file.seek(self._marks[index // LINES_PER_MARK])
            for line in file:
                if line.strip():
                    if skip == 0:
                        return words_of(line, f"{self.path} line {index + 1}")
                    skip -= 1
        raise IndexError(f"{self.path} has no line {index}")

    def _stat(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns


class LineFields:
    """Typed access to the keys of one line; every error names the file and the line."""

    def __init__(self, values: dict[str, Any], folder: Path, where: str) -> None:
        self.values = values
        self.folder = folder
        self.where = where

    def text(self, *keys: str, default: str | None = None) -> str:
        """The first of `keys` that is present, as words."""
        value = next((self.values[key] for key in keys if self.values.get(key) is not None), default)
        if not isinstance(value, str):
            raise ValueError(f"{self.where}: {' or '.join(keys)!s} must be words, got {value!r}.")
        return value

    def picture(self, key: str, value: Any) -> Picture:
        """The picture a line names, inside the dataset's folder."""
        if not isinstance(value, str) or not value:
            raise ValueError(f"{self.where}: {key} must be the path of a picture, got {value!r}.")
        path = Path(os.path.normpath(self.folder / value))
        if not path.is_relative_to(os.path.normpath(self.folder)):
            raise ValueError(
                f"{self.where}: {key} {value!r} lies outside {self.folder}. "
                "Move the picture into the dataset's folder and name it relative to that folder."
            )
        return Picture(path=path, label=f"{self.where}, {key} {value}")

    def optional_picture(self, key: str) -> Picture | None:
        """The picture at `key`, or None if the line has none."""
        value = self.values.get(key)
        return None if value is None else self.picture(key, value)

    def pictures(self, key: str) -> tuple[Picture, ...]:
        """The list of pictures at `key`, in order; empty if absent."""
        values = self.values.get(key) or []
        if not isinstance(values, list):
            raise ValueError(f"{self.where}: {key} must be a list of paths, got {values!r}.")
        return tuple(self.picture(f"{key}[{place}]", value) for place, value in enumerate(values))


def own_record(fields: LineFields, number: int) -> SampleRecord:
    """A line of the pack's format: task, instruction, source, references, target, mask, scene, id."""
    source = fields.optional_picture("source")
    scene = fields.values.get("scene")
    return SampleRecord(
        id=fields.text("id", default=f"{number:08d}"),
        task=fields.text("task", default="generate" if source is None else "edit"),
        instruction=fields.text("instruction"),
        source=source,
        references=fields.pictures("references"),
        target=fields.picture("target", fields.values.get("target")),
        mask=fields.optional_picture("mask"),
        scene=read_scene(fields, scene),
    )


def read_scene(fields: LineFields, scene: Any) -> dict[str, Any] | None:
    """The scene description of a line: inline, or the path of a JSON file beside the pictures."""
    if scene is None or isinstance(scene, dict):
        return scene
    place = fields.picture("scene", scene)
    try:
        loaded = json.loads(place.read_bytes())
    except ValueError as error:
        raise ValueError(f"{place.label} is not readable JSON ({error}). Mend or remove it.") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{place.label} must hold a JSON object.")
    return loaded


def plain_instruction(tagged: str) -> str:
    """OmniGen's words without image tags: a leading tag is dropped, others become `image k`."""
    words = tagged.strip()
    leading = IMAGE_TAG.match(words)
    if leading and words[leading.end() :].lstrip()[:1].isupper():
        words = words[leading.end() :]
    return " ".join(IMAGE_TAG.sub(lambda match: f"image {match[1]}", words).split())


def omnigen_record(fields: LineFields, number: int) -> SampleRecord:
    """A line of OmniGen's training file: task_type, instruction, input_images, output_image."""
    tagged = fields.text("instruction")
    images = fields.pictures("input_images")
    task = fields.text("task_type", default="edit" if images else "generate")
    edits = bool(images) and task not in GENERATE_TASKS
    key = "output_image" if "output_image" in fields.values else "output_images"
    output = fields.values.get(key)
    return SampleRecord(
        id=f"{number:08d}",
        task=task,
        instruction=plain_instruction(tagged),
        source=images[0] if edits else None,
        references=images[1:] if edits else images,
        target=fields.picture(key, output[0] if isinstance(output, list) and output else output),
        tagged_instruction=tagged,
    )


def musubi_record(fields: LineFields, number: int) -> SampleRecord:
    """A line of musubi-tuner's metadata file: image_path, caption, control_path, control_path_0, ..."""
    keys = [key for key in fields.values if re.fullmatch(r"control_path(_\d+)?", key)]
    keys.sort(key=lambda key: (len(key), key))
    controls = tuple(fields.picture(key, fields.values[key]) for key in keys)
    return SampleRecord(
        id=f"{number:08d}",
        task="edit" if controls else "generate",
        instruction=fields.text("caption"),
        source=controls[0] if controls else None,
        references=controls[1:],
        target=fields.picture("image_path", fields.values.get("image_path")),
    )


PARSERS: dict[str, Callable[[LineFields, int], SampleRecord]] = {
    "target": own_record,
    "output_image": omnigen_record,
    "output_images": omnigen_record,
    "image_path": musubi_record,
}
"""The key that tells the format -> the reader of such a line."""


class JsonlRecords:
    """Samples of one or several JSONL files, read one line at a time."""

    left_out = ""
    """Nothing: a line that names a picture of a kind that is not read is refused."""

    def __init__(self, paths: list[Path]) -> None:
        self._files = [LineIndex(path) for path in paths]
        if not len(self):
            raise ValueError(f"{paths[0]} holds no sample. Each line must be one JSON object with a target.")

    def __len__(self) -> int:
        return sum(len(file) for file in self._files)

    def record(self, index: int) -> SampleRecord:
        """The sample at `index`; a fault names the file and the 1-based line."""
        number = index
        for file in self._files:
            if number < len(file):
                return self._parse(file, number, index)
            number -= len(file)
        raise IndexError(index)

    def fingerprint(self) -> str:
        """Hash of every line of every file."""
        return hashlib.sha256("".join(file.digest for file in self._files).encode()).hexdigest()

    def _parse(self, file: LineIndex, number: int, index: int) -> SampleRecord:
        where = f"{file.path.name} line {number + 1}"
        try:
            values = json.loads(file.line(number))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{where} is not JSON ({error}). Mend or remove the line.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{where} must be a JSON object, got {type(values).__name__}.")
        parser = next((parser for key, parser in PARSERS.items() if key in values), None)
        if parser is None:
            raise ValueError(
                f"{where} has the keys {', '.join(sorted(values)) or 'none'}, but no target picture. "
                f"One of these is needed: {', '.join(PARSERS)}."
            )
        return parser(LineFields(values, file.path.parent, where), index)

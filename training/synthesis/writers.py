"""Finished shards and folders on disk: every part appears whole or not at all."""

from __future__ import annotations

import errno
import io
import json
import shutil
import tarfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from ...dit.whole_files import flush_to_disk, whole_file
from ..datasets.shards import INDEX_SUFFIX
from .render import Canvas
from .samples import Sample

FORMATS = ("shards", "folder")
COMPRESSION = 1
"""zlib level of the PNG files: flat pictures hardly shrink further, and writing is three times faster."""


def encode_png(canvas: Canvas | Any) -> bytes:
    """A picture or a mask as PNG bytes, the same for the same pixels."""
    stream = io.BytesIO()
    Image.fromarray(canvas).save(stream, "PNG", compress_level=COMPRESSION)
    return stream.getvalue()


def sample_pictures(sample: Sample) -> dict[str, bytes]:
    """Encoded pictures by part name, in reading order."""
    pictures = {} if sample.source is None else {"source": encode_png(sample.source)}
    for number, canvas in enumerate(sample.references):
        pictures[f"ref_{number}"] = encode_png(canvas)
    pictures["target"] = encode_png(sample.target)
    if sample.mask is not None:
        pictures["mask"] = encode_png(sample.mask)
    return pictures


def words_of(sample: Sample) -> dict[str, Any]:
    """What is written in words about a sample."""
    return {"id": sample.id, "task": sample.plan.task, "instruction": sample.plan.instruction}


def dump(value: dict[str, Any]) -> bytes:
    """Compact JSON bytes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@contextmanager
def disk_errors(folder: Path) -> Generator[None]:
    """Turn a full disk into a message that says what is safe and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"the disk is full while writing {folder}. All finished parts are intact: make room and "
                "start the same dataset again to go on where it stopped",
            ) from error
        raise


class ShardWriter:
    """`shard-000000.tar` with its index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def final(self, part: int) -> Path:
        """The file whose existence means that a part is finished."""
        return self.folder / f"shard-{part:06d}.tar"

    def write(self, part: int, samples: Iterator[Sample]) -> None:
        """Write a whole part; on any error nothing of it stays."""
        final = self.final(part)
        index = final.with_name(final.name + INDEX_SUFFIX)
        try:
            with disk_errors(self.folder):
                with whole_file(final) as partial:
                    offsets = self._write_tar(partial, samples)
                # The index last: its size tells a finished part, and beside a longer shard an older index
                # still fits, as the samples of both are the same.
                with whole_file(index) as partial:
                    partial.write_bytes(b"".join(offset.to_bytes(8, "little") for offset in offsets))
        finally:
            if not final.exists():
                index.unlink(missing_ok=True)

    def _write_tar(self, partial: Path, samples: Iterator[Sample]) -> list[int]:
        offsets = []
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                offsets.append(tar.offset)
                self._add(tar, f"{sample.id}.json", dump(words_of(sample) | {"scene": sample.scene}))
                for name, data in sample_pictures(sample).items():
                    self._add(tar, f"{sample.id}.{name}.png", data)
        return offsets

    def _add(self, tar: tarfile.TarFile, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


class FolderWriter:
    """`samples-000000.jsonl` and its pictures in `pictures/000000/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def final(self, part: int) -> Path:
        """The file whose existence means that a part is finished."""
        return self.folder / f"samples-{part:06d}.jsonl"

    def write(self, part: int, samples: Iterator[Sample]) -> None:
        """Write a whole part; on any error nothing of it stays."""
        final = self.final(part)
        place = self.folder / "pictures" / f"{part:06d}"
        try:
            with disk_errors(self.folder), whole_file(final) as partial:
                place.mkdir(parents=True, exist_ok=True)
                with partial.open("wb") as lines:
                    for sample in samples:
                        lines.write(dump(self._write_sample(place, sample)) + b"\n")
                # All before the list: after a power cut it must name nothing that is empty.
                for path in place.iterdir():
                    flush_to_disk(path)
        finally:
            if not final.exists():
                shutil.rmtree(place, ignore_errors=True)

    def _write_sample(self, place: Path, sample: Sample) -> dict[str, Any]:
        line: dict[str, Any] = {**words_of(sample), "source": None, "references": []}
        for name, data in sample_pictures(sample).items():
            path = place / f"{sample.id}.{name}.png"
            path.write_bytes(data)
            relative = path.relative_to(self.folder).as_posix()
            if name.startswith("ref_"):
                line["references"].append(relative)
            else:
                line[name] = relative
        scene = place / f"{sample.id}.scene.json"
        scene.write_bytes(dump(sample.scene))
        return line | {"scene": scene.relative_to(self.folder).as_posix()}


WRITERS: dict[str, type[ShardWriter] | type[FolderWriter]] = {"shards": ShardWriter, "folder": FolderWriter}
"""Format -> its writer."""

"""Webdataset shards: plain tar files, the members of one sample next to each other.

Members of a sample are `<id>.json` (instruction, task, scene) or `<id>.txt` (instruction), then
`<id>.source.png`, `<id>.ref_0.png`, ..., `<id>.target.png`, `<id>.mask.png`; jpg and webp are read too.
Pictures of kinds that are not read are counted, and refused where a sample has its source, a reference or its
target as such alone: without them it would be another sample.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from .records import IMAGE_SUFFIXES, UNREAD_SUFFIXES, Picture, SampleRecord, told_unread, words_of

INDEX_SUFFIX = ".index"
"""`shard-000000.tar.index`: the byte offset of every sample as little-endian 64-bit numbers."""
NEEDED = re.compile(r"source|target|ref_.+")
"""Names of the pictures without which a sample is another one."""


def split_member(name: str) -> tuple[str, str]:
    """(sample id, part) of a member: webdataset splits at the first dot of the file name."""
    folder, _, base = name.rpartition("/")
    key, _, part = base.partition(".")
    return (f"{folder}/{key}" if folder else key), part.lower()


def split_part(part: str) -> tuple[str, str]:
    """(name, ending) of a part: a picture without a name is the target."""
    name, _, ending = part.rpartition(".")
    return name or "target", f".{ending}"


def scan_members(path: Path) -> tuple[array, Counter[str]]:
    """The samples' byte offsets and the unread pictures of a tar without an index; reads its headers once."""
    offsets, unread = array("Q"), Counter[str]()
    last = None
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, part = split_member(member.name)
                if not member.isfile():
                    continue
                if key != last:
                    offsets.append(member.offset)
                    last = key
                if split_part(part)[1] in UNREAD_SUFFIXES:
                    unread[split_part(part)[1]] += 1
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not a complete tar file ({error}). Write or copy it again.") from error
    return offsets, unread


class Shard:
    """One tar file; offsets stay on disk when our writer, whose pictures are all read, left an index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._index = path.with_name(path.name + INDEX_SUFFIX)
        self._offsets: array | None = None
        self.unread = Counter[str]()
        """How many pictures are of a kind that is not read, by ending."""
        if not self._index.is_file():
            self._offsets, self.unread = scan_members(path)
        self.count = self._index.stat().st_size // 8 if self._offsets is None else len(self._offsets)
        self._state = self._stat()

    def members(self, number: int) -> tuple[str, dict[str, tuple[int, int]]]:
        """Sample id and {part: (byte offset, size)} of sample `number` of this shard."""
        if self._stat() != self._state:
            raise ValueError(
                f"{self.path} was changed while it was in use. Load the dataset again; a run that was "
                "started on the old files should get a new name."
            )
        parts: dict[str, tuple[int, int]] = {}
        sample_id = ""
        with self.path.open("rb") as file:
            file.seek(self._offset(number))
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for member in tar:
                        key, part = split_member(member.name)
                        if parts and key != sample_id:
                            break
                        sample_id = key
                        parts[part] = (member.offset_data, member.size)
            except tarfile.TarError as error:
                raise ValueError(f"{self.path}: sample {number} is damaged ({error}).") from error
        return sample_id, parts

    def identity(self) -> str:
        """Name, size and first bytes of the index."""
        return f"{self.path.name} {self._state[0]} {self.count}"

    def _offset(self, number: int) -> int:
        if self._offsets is not None:
            return self._offsets[number]
        with self._index.open("rb") as file:
            file.seek(8 * number)
            return int.from_bytes(file.read(8), "little")

    def _stat(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns


class ShardRecords:
    """Samples of all shards of a folder, in the order of their names."""

    def __init__(self, paths: list[Path]) -> None:
        self._shards = [Shard(path) for path in paths]
        if not len(self):
            raise ValueError(f"{paths[0].parent} holds shards, but no sample. Write the dataset again.")
        self.left_out = told_unread(sum((shard.unread for shard in self._shards), Counter()))

    def __len__(self) -> int:
        return sum(shard.count for shard in self._shards)

    def record(self, index: int) -> SampleRecord:
        """The sample at `index`; a missing part raises ValueError naming shard and sample."""
        number = index
        for shard in self._shards:
            if number < shard.count:
                return self._parse(shard, number)
            number -= shard.count
        raise IndexError(index)

    def fingerprint(self) -> str:
        """Hash of the names, sizes and sample counts of all shards."""
        return hashlib.sha256("\n".join(shard.identity() for shard in self._shards).encode()).hexdigest()

    def _parse(self, shard: Shard, number: int) -> SampleRecord:
        sample_id, parts = shard.members(number)
        where = f"{shard.path.name} sample {sample_id}"
        words = self._words(shard, parts, where)
        pictures = {
            split_part(part)[0]: Picture(path=shard.path, label=f"{where}, {part}", offset=offset, size=size)
            for part, (offset, size) in parts.items()
            if split_part(part)[1] in IMAGE_SUFFIXES
        }
        require_read(parts, pictures, where)
        if "target" not in pictures:
            raise ValueError(f"{where} has no target picture, only {', '.join(sorted(parts))}.")
        names = sorted(
            (name for name in pictures if name.startswith("ref_")), key=lambda name: (len(name), name)
        )
        source = pictures.get("source")
        return SampleRecord(
            id=sample_id,
            task=words.get("task") or ("generate" if source is None else "edit"),
            instruction=words["instruction"],
            source=source,
            references=tuple(pictures[name] for name in names),
            target=pictures["target"],
            mask=pictures.get("mask"),
            scene=words.get("scene"),
        )

    def _words(self, shard: Shard, parts: dict[str, tuple[int, int]], where: str) -> dict[str, Any]:
        for part in ("json", "txt"):
            if part in parts:
                offset, size = parts[part]
                data = Picture(path=shard.path, label=where, offset=offset, size=size).read_bytes()
                read = words_of(data, f"{where}, {part} member")
                words = json_words(read, where) if part == "json" else {"instruction": read.strip()}
                if isinstance(words, dict) and isinstance(words.get("instruction"), str):
                    return words
        raise ValueError(f"{where} has no instruction: a json member with that key or a txt member.")


def require_read(parts: Iterable[str], pictures: Container[str], where: str) -> None:
    """Raise ValueError for a source, reference or target that is there in kinds that are not read alone."""
    for part in sorted(parts):
        name, ending = split_part(part)
        if ending in UNREAD_SUFFIXES and name not in pictures and NEEDED.fullmatch(name):
            raise ValueError(
                f"{where}: its {part} is of a kind that is not read. Save it as PNG or JPEG and write the "
                "shard again, or remove the sample."
            )


def json_words(text: str, where: str) -> Any:
    """What a json member holds; ValueError naming the sample when it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: its json member is not JSON ({error}). Mend or remove the sample."
        ) from error

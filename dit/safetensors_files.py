"""Safetensors files on disk: opened or refused, and which of them make up one model."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .weight_format import require_safetensors

SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


def open_weights(path: Path) -> Any:
    """A safetensors file opened for reading; ValueError for one that is damaged, cut short or another."""
    try:
        return safe_open(str(path), framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or incomplete ({error}); its size is {path.stat().st_size:,} bytes. It is "
            "not a safetensors file, or its download was cut off; download it again."
        ) from error


def raw_header(path: Path) -> bytes:
    """The header's bytes as they stand, for hashes; ValueError for a file that is damaged or empty."""
    with open_weights(path) as file:
        if not file.keys():
            raise ValueError(f"{path} holds no weights; download it again.")
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def shard_stem(name: str) -> str | None:
    """What the file names of one model's shards share; None for a whole file."""
    match = SHARD.fullmatch(name)
    return None if match is None else match["stem"]


def require_all_shards(place: str, names: Sequence[str]) -> None:
    """Raise FileNotFoundError unless these file names are exactly shards 1 .. count of one model."""
    matches = [match for name in names if (match := SHARD.fullmatch(name))]
    count = int(matches[0]["count"])
    missing = sorted(set(range(1, count + 1)) - {int(match["number"]) for match in matches})
    if missing or len(matches) != count:
        numbers = ", ".join(map(str, missing)) or "none"
        files = ", ".join(f"{matches[0]['stem']}-{number:05}-of-{count:05}.safetensors" for number in missing)
        raise FileNotFoundError(
            f"{place} has {len(matches)} of {count} shards, missing: {numbers}{files and f' ({files})'}; "
            "download the rest. A folder may hold the shards of one model only."
        )


def files_of_index(index: Path) -> tuple[Path, ...]:
    """The files that an index names, in its own folder wherever it says they are; they need not be there.

    ValueError for an index that cannot be read or names nothing, and for files of another format.
    """
    try:
        named = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        files = sorted({Path(name).name for name in named})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no readable index of shards ({error!r}); download it again") from error
    if not files:
        raise ValueError(f"{index} is no readable index of shards (it names none); download it again")
    require_safetensors(named, str(index))
    return tuple(index.parent / name for name in files)


def indexed_shards(index: Path) -> tuple[Path, ...]:
    """The files that an index names; FileNotFoundError unless all are there, see `files_of_index`."""
    files = files_of_index(index)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index.parent} lacks {', '.join(missing)}, of {len(files)} files that {index.name} names; "
            "download the rest"
        )
    return files


@contextmanager
def write_errors(name: str) -> Generator[None]:
    """Turn safetensors' own error while it writes `name`, as a full disk is one, into an OSError."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{name} could not be written: {error}") from error

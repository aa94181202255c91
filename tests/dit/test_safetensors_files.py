"""Which files make up one model, and what is said of those that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pack.dit.safetensors_files import (
    files_of_index,
    indexed_shards,
    open_weights,
    raw_header,
    require_all_shards,
    shard_stem,
)
from safetensors.torch import save_file

SHARDS = ["m-00001-of-00003.safetensors", "m-00002-of-00003.safetensors", "m-00003-of-00003.safetensors"]


def write_index(folder: Path, *names: object) -> Path:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {str(place): name for place, name in enumerate(names)}}))
    return index


@pytest.mark.parametrize("name", ["../../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors"])
def test_an_index_never_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    index = write_index(tmp_path, name)
    assert files_of_index(index) == (tmp_path / "x.safetensors",)
    with pytest.raises(
        FileNotFoundError, match=r"lacks x\.safetensors, of 1 files that .* download the rest"
    ):
        indexed_shards(index)


@pytest.mark.parametrize("names", [("..",), ("x.bin",), ("x.safetensors", "sub/y.pt")])
def test_an_index_names_no_other_format(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=rf"index\.json names {names[-1]}, which may run code"):
        files_of_index(write_index(tmp_path, *names))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_named(tmp_path: Path, text: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(ValueError, match=r"index\.json is no readable index of shards .*download it again"):
        files_of_index(index)


def test_shards_of_an_index_come_in_order_and_once(tmp_path: Path) -> None:
    for name in SHARDS:
        (tmp_path / name).touch()
    assert indexed_shards(write_index(tmp_path, *reversed(SHARDS), SHARDS[1])) == tuple(
        tmp_path / name for name in SHARDS
    )


def test_a_shard_is_told_from_a_whole_file() -> None:
    assert [shard_stem(name) for name in ("whole.safetensors", *SHARDS[:2])] == [None, "m", "m"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            SHARDS[:2],
            r"here has 2 of 3 shards, missing: 3 \(m-00003-of-00003\.safetensors\); download the rest",
        ),
        ([*SHARDS, "other-00001-of-00003.safetensors"], "has 4 of 3 shards, missing: none; .*one model only"),
    ],
)
def test_shards_must_be_all_of_one_model(names: list[str], message: str) -> None:
    require_all_shards("here", SHARDS)
    with pytest.raises(FileNotFoundError, match=message):
        require_all_shards("here", names)


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    save_file({"a": torch.ones(4)}, path)
    whole = path.read_bytes()
    for size in (len(whole) - 1, 50, 4, 0):
        path.write_bytes(whole[:size])
        for read in (open_weights, raw_header):
            with pytest.raises(
                ValueError, match=rf"cut\.safetensors is damaged .* {size:,} bytes.*download it"
            ):
                read(path)


def test_the_header_is_given_byte_by_byte(tmp_path: Path) -> None:
    """Caches on disk are named after it: it may not change with the library that reads it."""
    path, header = tmp_path / "a.safetensors", b'{"a" : {"dtype":"F32","shape":[1],"data_offsets":[0,4]}}    '
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert raw_header(path) == header
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match=r"a\.safetensors holds no weights; download it again"):
        raw_header(path)

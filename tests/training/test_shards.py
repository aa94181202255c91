"""Pictures in shards that are of no kind we read: told, and refused where a sample needs them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from pack.training.dataset import EditDataset, open_dataset
from PIL import Image


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    return stream.getvalue()


def write_shard(path: Path, *names: str) -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            data = b"Make it blue." if name.endswith(".txt") else png() if name.endswith(".png") else b""
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def shards(folder: Path, *names: str) -> EditDataset:
    write_shard(folder / "shard-0.tar", "a.txt", "a.source.png", "a.target.png", *names)
    return open_dataset(folder)


def test_kinds_that_are_not_read_are_counted_over_all_shards(tmp_path: Path) -> None:
    assert shards(tmp_path).left_out == ""
    write_shard(tmp_path / "shard-1.tar", "c.txt", "c.png", "c.avif")
    opened = shards(tmp_path, "a.mask.HEIC", "b.txt", "b.target.png", "b.source.png", "b.source.heic")
    assert opened.left_out == (
        "Left out, as these kinds of pictures are not read: 1 .avif, 2 .heic. Save them as PNG or JPEG."
    )
    opened.check()
    assert [(sample.id, sample.mode) for sample in opened] == [
        ("a", "edit"),
        ("b", "edit"),
        ("c", "generate"),
    ]


@pytest.mark.parametrize("name", ["source.heic", "ref_0.AVIF", "target.jxl", "dng"])
def test_a_sample_without_a_picture_it_needs_is_no_other_sample(tmp_path: Path, name: str) -> None:
    """Without its source an edit would be taken for a new picture, and image 3 for image 2."""
    others = [part for part in ("target.png", "ref_1.png") if not part.startswith(name.partition(".")[0])]
    opened = shards(tmp_path, "b.txt", f"b.{name}", *(f"b.{part}" for part in others if name != "dng"))
    with pytest.raises(ValueError, match=rf"shard-0.tar sample b: its {name.lower()} is of a kind .* PNG"):
        opened.check()

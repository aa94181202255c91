"""The examples of Load Dataset's help page open as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pack.training.dataset import open_dataset
from pack.training.datasets.records import CAMERA_SUFFIXES, IMAGE_SUFFIXES, UNREAD_SUFFIXES
from PIL import Image

PAGES = Path(__file__).parents[2] / "web" / "docs"
PAGE = (PAGES / "DreamOmniLoadDataset.md").read_text("utf-8")
TREE, LINE, NEW_PICTURE = re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def write_tree(folder: Path) -> None:
    """The files of the page's tree: words where it shows words, else a picture."""
    for line in TREE.splitlines()[1:]:
        name, words = line.split(maxsplit=1)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text(words)
        else:
            Image.new("RGB", (8, 8)).save(path)


def test_the_tree_and_the_line_are_the_same_sample(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree")
    (tmp_path / "line").mkdir()
    (tmp_path / "line" / "samples.jsonl").write_text(LINE)
    for name in re.findall(r"\w\.(?:jpg|png)", LINE):
        Image.new("RGB", (8, 8)).save(tmp_path / "line" / name)
    tree, line = (open_dataset(tmp_path / kind) for kind in ("tree", "line"))
    for dataset in (tree, line):
        dataset.check()
        (sample,) = dataset
        assert (sample.mode, len(sample.references)) == ("edit", 1)
        assert sample.source is not None
    assert tree[0].instruction == line[0].instruction


def test_the_line_without_a_source_is_for_the_generate_lora(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text(NEW_PICTURE)
    for name in re.findall(r"\w+\.jpg", NEW_PICTURE):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    dataset = open_dataset(tmp_path)
    dataset.check()
    (sample,) = dataset
    assert (sample.mode, sample.source, len(sample.references)) == ("generate", None, 2)
    note = (PAGES.parents[1] / "workflows" / "train-generate-lora.json").read_text("utf-8")
    assert json.dumps(NEW_PICTURE.strip())[1:-1] in note


def test_pictures_beside_their_words_are_samples_without_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "dog.jpg")
    (tmp_path / "dog.txt").write_text("a dog")
    (sample,) = open_dataset(tmp_path)
    assert (sample.mode, sample.source, sample.references) == ("generate", None, ())
    assert "| pictures only |" in PAGE


def test_the_page_names_the_kinds_of_pictures() -> None:
    told = set(re.findall(r"`(\.\w+)`", PAGE.partition("Picture files may end in")[2].partition("##")[0]))
    assert told == IMAGE_SUFFIXES | (UNREAD_SUFFIXES - CAMERA_SUFFIXES)

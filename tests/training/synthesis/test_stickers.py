"""Stickers and photos of the user's own: what is found, how it is called, and what cannot be used."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pack.training.synthesis.config import recipe_for
from pack.training.synthesis.generate import Job, generate
from pack.training.synthesis.library import find_photos
from pack.training.synthesis.samples import Synthesizer
from pack.training.synthesis.stickers import find_stickers, load_sticker
from PIL import Image, ImageDraw


def sticker(path: Path, colour: str = "red", size: int = 60) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGBA", (size + 20, size), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((10, 4, size, size - 8), fill=colour)
    image.save(path)


def test_a_folder_of_stickers_with_captions(tmp_path: Path) -> None:
    for name, colour in (("frog", "green"), ("old-boat_2", "brown"), ("k1", "blue"), ("k1_mirror", "blue")):
        sticker(tmp_path / f"{name}.png", colour)
    (tmp_path / "k1.txt").write_text("An owl.\nlb.utf8=Eng Eil\n")
    nouns = {file.noun for file in find_stickers(tmp_path)}
    assert nouns == {"frog", "old boat", "owl"}
    config = recipe_for(96, 96, seed=1, tasks=("replace",), stickers_folder=str(tmp_path))
    made = Synthesizer(config)
    told = " ".join(made.sample(index).plan.instruction for index in range(30))
    assert "owl" in told and "boat" in told
    sample = next(made.sample(index) for index in range(30) if "owl" in made.plan(index).instruction)
    assert sample.source is not None and sample.mask is not None
    assert np.array_equal(sample.source[~sample.mask], sample.target[~sample.mask])


def test_an_emoji_package_is_joined_with_its_labels(tmp_path: Path) -> None:
    for code in ("1f600", "2764-fe0f", "1f1e9-1f1ea"):
        sticker(tmp_path / "assets" / f"{code}.webp")
    entries = [
        {"hexcode": "1F600", "label": "grinning face", "group": 0},
        {"hexcode": "2764", "label": "red heart", "group": 0},
        {"hexcode": "1F1E9-1F1EA", "label": "flag: Germany", "group": 9},
    ]
    bengali = [{"hexcode": "1F600", "label": "হাসি মুখ", "group": 0}]
    for language, labels in (("bn", bengali), ("en", entries)):
        (tmp_path / language).mkdir()
        (tmp_path / language / "data.json").write_text(json.dumps(labels), encoding="utf-8")
    assert {file.noun for file in find_stickers(tmp_path)} == {"grinning face", "red heart"}
    (tmp_path / "en" / "data.json").unlink()
    assert {file.noun for file in find_stickers(tmp_path)} == {"হাসি মুখ"}, "better than none"


def test_a_mended_iconify_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "icons.json"
    for name in ("apple", "grape"):  # as long as the other
        path.write_text(json.dumps({"icons": {name: {"body": ""}}}))
        os.utime(path, ns=(0, ord(name[0])))  # however coarse the disk's clock is
        assert [file.icon for file in find_stickers(tmp_path)] == [name]


def test_iconify_files_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    body = '<circle cx="16" cy="16" r="12" fill="#f00"/>'
    icons = {name: {"body": body} for name in ("red-ball", "red-ball-medium-dark")}
    (tmp_path / "icons.json").write_text(json.dumps({"width": 32, "icons": icons}))
    (file,) = find_stickers(tmp_path)
    assert file.noun == "red ball"
    made = Synthesizer(recipe_for(64, 64, tasks=("text_to_image",), stickers_folder=str(tmp_path)))
    pictures = [made.sample(index) for index in range(8)]
    drawn = next(sample for sample in pictures if "red ball" in sample.plan.instruction)
    assert ((drawn.target == (255, 0, 0)).all(axis=2)).sum() > 40


def test_what_the_system_puts_beside_pictures_is_no_sticker_and_no_photo(tmp_path: Path) -> None:
    for name in ("cat.png", "._cat.png"):
        Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / name)
    assert [sticker.key for sticker in find_stickers(tmp_path)] == ["cat.png"]
    assert list(find_photos(tmp_path)) == ["cat.png"]


def test_a_drawn_square_is_a_sticker_and_an_empty_icon_is_named(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    icons = {"square": {"body": '<rect width="32" height="32" fill="#00f"/>'}, "nothing": {"body": ""}}
    (tmp_path / "icons.json").write_text(json.dumps({"width": 32, "height": 32, "icons": icons}))
    files = {file.icon: file for file in find_stickers(tmp_path)}
    full = np.asarray(load_sticker(files["square"]))
    assert full.shape[0] == full.shape[1] and (full == (0, 0, 255, 255)).all()
    with pytest.raises(ValueError, match=r"icons\.json \(icon nothing\) is fully transparent"):
        load_sticker(files["nothing"])


def test_bad_stickers_are_told_before_a_dataset_is_begun(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    cuts = tmp_path / "cuts"
    for number in range(3):
        sticker(cuts / f"thing {number}.png")
    (cuts / "bad.svg").write_text("no drawing")
    (cuts / "worse.png").write_bytes(b"no picture")
    config = recipe_for(32, 32, stickers_folder=str(cuts))
    with pytest.raises(ValueError, match=r"bad\.svg is not a readable vector .*\n.*worse\.png is not a read"):
        generate(Job(folder=tmp_path / "a", count=4, config=config))
    assert not (tmp_path / "a").exists()
    (cuts / "bad.svg").unlink()
    (cuts / "worse.png").unlink()
    looked: list[int] = []
    generate(Job(folder=tmp_path / "a", count=4, config=config), 1, lambda done, sample: looked.append(done))
    assert looked.count(0) == 4  # three stickers, and the beginning
    (cuts / "icons.json").write_text("{")
    with pytest.raises(ValueError, match=r"icons\.json is not readable JSON"):
        Synthesizer(config)


def test_vector_stickers_without_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.svg").write_text("<svg/>")
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    made = Synthesizer(recipe_for(64, 64, stickers_folder=str(tmp_path), tasks=("text_to_image",)))
    with pytest.raises(ValueError, match=r"need the package resvg-py: pip install resvg-py"):
        made.library.sticker("a.svg", 10)


def test_bad_sticker_and_background_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def recipe(**folders: str) -> Synthesizer:
        return Synthesizer(recipe_for(64, 64, **folders))

    empty, cuts = tmp_path / "empty", tmp_path / "cuts"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no sticker folder"):
        recipe(stickers_folder=str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"empty holds no stickers. Put pictures with transparency"):
        recipe(stickers_folder=str(empty))
    with pytest.raises(FileNotFoundError, match=r"there is no background folder"):
        recipe(backgrounds_folder=str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"empty holds no pictures. Put photos into it"):
        recipe(backgrounds_folder=str(empty))
    cuts.mkdir()
    Image.new("RGB", (20, 20)).save(cuts / "opaque.png")
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(cuts / "nothing.png")
    (cuts / "broken.png").write_bytes(b"no picture")
    sticker(cuts / "huge.png", size=90)
    library = recipe(stickers_folder=str(cuts)).library
    with pytest.raises(ValueError, match=r"opaque.png has no transparency, so it is no sticker"):
        library.sticker("opaque.png", 10)
    with pytest.raises(ValueError, match=r"nothing.png is fully transparent"):
        library.sticker("nothing.png", 10)
    with pytest.raises(ValueError, match=r"broken.png is not a readable picture"):
        library.sticker("broken.png", 10)
    monkeypatch.setattr("pack.training.datasets.records.MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"huge.png has 110x90 px, allowed are"):
        library.sticker("huge.png", 10)
    (cuts / "icons.json").write_text("[]")
    with pytest.raises(ValueError, match=r"icons.json is not an iconify file"):
        recipe(stickers_folder=str(cuts))


def test_memory_stays_flat_with_large_photos_and_stickers(tmp_path: Path) -> None:
    for number in range(6):
        Image.new("RGB", (1500, 1000), (number * 30, 90, 120)).save(tmp_path / f"photo {number}.png")
        sticker(tmp_path / "cuts" / f"thing{number}.png", size=1400)
    config = recipe_for(
        64, 64, stickers_folder=str(tmp_path / "cuts"), backgrounds_folder=str(tmp_path), tasks=("remove",)
    )
    made = Synthesizer(config)

    def held(count: int) -> int:
        tracemalloc.start()
        for index in range(count):
            made.sample(index)
        current = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return current

    first = held(20)
    assert held(60) < first + 2_000_000
    pictures = [kept for kept in made.library._kept.values() if isinstance(kept, Image.Image)]
    assert pictures and all(picture.width <= 160 for picture in pictures)

"""Every dataset layout on real files: order, laziness and each message a user can meet."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from pack.training.dataset import open_dataset
from pack.training.datasets.jsonl import LineFields, LineIndex, own_record, plain_instruction
from PIL import Image

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (128, 128, 128)}


def picture(path: Path, colour: str, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS[colour]).save(path)


def colour_of(image: Image.Image | None) -> tuple[int, ...]:
    assert image is not None
    return image.getpixel((0, 0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for colour in COLOURS:
        picture(tmp_path / "pictures" / f"{colour}.png", colour)
    return tmp_path


def write_lines(path: Path, *lines: dict) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def own_line(**changes: object) -> dict:
    line = {
        "id": "a",
        "task": "replace",
        "instruction": "Replace it.",
        "source": "pictures/red.png",
        "references": ["pictures/green.png", "pictures/grey.png"],
        "target": "pictures/blue.png",
        "mask": "pictures/grey.png",
    }
    return line | changes


class KeysAsked(dict):
    """A line that remembers what was looked for in it."""

    def __init__(self, line: dict) -> None:
        super().__init__(line)
        self.keys_asked: set[str] = set()

    def get(self, key: str, default: object = None) -> object:
        self.keys_asked.add(key)
        return super().get(key, default)


def test_the_help_page_names_every_key_of_an_own_line(folder: Path) -> None:
    line = KeysAsked(own_line())
    own_record(LineFields(line, folder, "line 1"), 0)
    page = (Path(__file__).parents[2] / "web" / "docs" / "DreamOmniLoadDataset.md").read_text("utf-8")
    (row,) = (row for row in page.splitlines() if row.startswith("| own JSONL |"))
    assert "scene" in line.keys_asked
    assert not [key for key in line.keys_asked if f"`{key}`" not in row]


def test_own_jsonl_keeps_the_order_of_the_pictures(folder: Path) -> None:
    write_lines(folder / "samples.jsonl", own_line(), own_line(id="b", source=None, references=[], mask=None))
    opened = open_dataset(folder)
    first, second = opened[0], opened[1]
    assert len(opened) == 2
    assert colour_of(first.source) == COLOURS["red"]
    assert [colour_of(image) for image in first.references] == [COLOURS["green"], COLOURS["grey"]]
    assert colour_of(first.target) == COLOURS["blue"]
    assert first.mask is not None and first.mask.mode == "L" and first.mask.getpixel((0, 0)) == 128
    assert (first.id, first.task, first.instruction, first.mode) == ("a", "replace", "Replace it.", "edit")
    assert (second.source, second.references, second.mask, second.mode) == (None, (), None, "generate")
    assert opened[-1].id == "b"
    with pytest.raises(IndexError, match=r"samples 0 to 1, got 2"):
        opened[2]


def test_parts_of_one_dataset_are_read_one_after_another(folder: Path) -> None:
    write_lines(folder / "samples-000.jsonl", own_line(id="a"), own_line(id="b"))
    write_lines(folder / "samples-001.jsonl", own_line(id="c"))
    assert [sample.id for sample in open_dataset(folder)] == ["a", "b", "c"]


def test_several_foreign_jsonl_files_are_refused(folder: Path) -> None:
    write_lines(folder / "train.jsonl", own_line())
    write_lines(folder / "test.jsonl", own_line())
    with pytest.raises(ValueError, match=r"several JSONL files \(test.jsonl, train.jsonl\). Keep one"):
        open_dataset(folder)
    assert len(open_dataset(folder / "test.jsonl")) == 1


def test_a_missing_file_is_named_with_its_line(folder: Path) -> None:
    write_lines(folder / "samples.jsonl", own_line(), own_line(target="pictures/none.png"))
    opened = open_dataset(folder)
    opened[0]
    with pytest.raises(FileNotFoundError, match=r"samples.jsonl line 2, target pictures/none.png"):
        opened[1]
    seen: list[int] = []
    with pytest.raises(FileNotFoundError, match=r"samples.jsonl line 2, target"):
        opened.check(seen.append)
    assert seen == [1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"samples.jsonl line 2 is not JSON"),
        ("[1]", r"line 2 must be a JSON object, got list"),
        ('{"image": "a.png"}', r"line 2 has the keys image, but no target picture"),
        ('{"target": 3, "instruction": "x"}', r"line 2: target must be the path of a picture, got 3"),
        ('{"target": "a.png", "instruction": 3}', r"line 2: instruction must be words, got 3"),
        (
            '{"target": "a.png", "instruction": "x", "references": "b.png"}',
            r"line 2: references must be a list",
        ),
        ('{"target": "../a.png", "instruction": "x"}', r"line 2: target '../a.png' lies outside"),
        ('{"target": "/etc/a.png", "instruction": "x"}', r"line 2: target '/etc/a.png' lies outside"),
    ],
)
def test_a_faulty_line_is_named(folder: Path, line: str, message: str) -> None:
    (folder / "samples.jsonl").write_text(json.dumps(own_line()) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        open_dataset(folder).record(1)


@pytest.mark.parametrize("scene", [b"", b"{", b"\xff"])
def test_an_unreadable_scene_is_named(folder: Path, scene: bytes) -> None:
    (folder / "s.json").write_bytes(scene)
    write_lines(folder / "samples.jsonl", own_line(scene="s.json"))
    with pytest.raises(ValueError, match=r"samples\.jsonl line 1, scene s\.json is not readable JSON"):
        open_dataset(folder).check()


def test_an_empty_instruction_is_found_by_the_check(folder: Path) -> None:
    write_lines(folder / "samples.jsonl", own_line(instruction=" "))
    with pytest.raises(ValueError, match=r"line 1, target pictures/blue.png: the instruction is empty"):
        open_dataset(folder).check()


def test_unreadable_and_huge_pictures_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(folder / "samples.jsonl", own_line())
    (folder / "pictures" / "blue.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"line 1, target pictures/blue.png is not a readable picture"):
        open_dataset(folder)[0]
    picture(folder / "pictures" / "blue.png", "blue", (40, 30))
    monkeypatch.setattr("pack.training.datasets.records.MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"blue.png has 40x30 px, allowed are"):
        open_dataset(folder)[0]


def test_transparency_becomes_white(folder: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(folder / "pictures" / "red.png")
    write_lines(folder / "samples.jsonl", own_line())
    assert colour_of(open_dataset(folder)[0].source) == (255, 255, 255)


def test_a_dataset_changed_between_or_during_runs_is_noticed(folder: Path) -> None:
    write_lines(folder / "samples.jsonl", own_line())
    opened = open_dataset(folder)
    assert opened.fingerprint == open_dataset(folder).fingerprint
    write_lines(folder / "samples.jsonl", own_line(instruction="Another one."))
    with pytest.raises(ValueError, match=r"samples.jsonl was changed while it was in use"):
        opened[0]
    assert opened.fingerprint != open_dataset(folder).fingerprint


def test_omnigen_lines(folder: Path) -> None:
    tag = "<img><|image_{}|></img>".format
    write_lines(
        folder / "train.jsonl",
        {
            "task_type": "image_edit",
            "instruction": f"{tag(1)} The umbrella should be red.",
            "input_images": ["pictures/red.png", "pictures/green.png"],
            "output_image": "pictures/blue.png",
        },
        {
            "task_type": "text_to_image",
            "instruction": "A cat.",
            "input_images": [],
            "output_image": "pictures/red.png",
        },
        {
            "task_type": "subject_driven",
            "instruction": f"A dog as in {tag(1)}.",
            "input_images": ["pictures/red.png"],
            "output_images": ["pictures/blue.png"],
        },
    )
    edit, text, subject = open_dataset(folder)
    assert colour_of(edit.source) == COLOURS["red"]
    assert [colour_of(image) for image in edit.references] == [COLOURS["green"]]
    assert edit.instruction == "The umbrella should be red."
    assert edit.tagged_instruction == f"{tag(1)} The umbrella should be red."
    assert (text.source, text.references, text.mode) == (None, (), "generate")
    assert subject.source is None and colour_of(subject.references[0]) == COLOURS["red"]
    assert subject.instruction == "A dog as in image 1." and subject.mode == "generate"


def test_image_tags_become_words() -> None:
    words = plain_instruction("<img><|image_1|></img> wears <img><|image_2|></img>.")
    assert words == "image 1 wears image 2."


def test_musubi_jsonl(folder: Path) -> None:
    write_lines(
        folder / "meta.jsonl",
        {
            "image_path": "pictures/blue.png",
            "caption": "Make it blue.",
            "control_path_0": "pictures/red.png",
            "control_path_1": "pictures/green.png",
        },
    )
    sample = open_dataset(folder)[0]
    assert colour_of(sample.source) == COLOURS["red"]
    assert [colour_of(image) for image in sample.references] == [COLOURS["green"]]
    assert sample.instruction == "Make it blue."


def test_ai_toolkit_folders(tmp_path: Path) -> None:
    picture(tmp_path / "target" / "cat.png", "blue")
    (tmp_path / "target" / "cat.txt").write_text("make it blue\n")
    picture(tmp_path / "control" / "cat.jpg", "red")
    picture(tmp_path / "control_2" / "cat.png", "green")
    sample = open_dataset(tmp_path)[0]
    assert (sample.instruction, sample.id, sample.task) == ("make it blue", "cat", "edit")
    assert sample.source is not None and sample.source.getpixel((0, 0))[0] > 200
    assert [colour_of(image) for image in sample.references] == [COLOURS["green"]]


def test_musubi_numbered_controls_and_a_target_whose_name_ends_in_a_number(tmp_path: Path) -> None:
    for stem in ("cat", "cat_1"):
        picture(tmp_path / "images" / f"{stem}.png", "blue")
        (tmp_path / "images" / f"{stem}.txt").write_text(f"edit {stem}")
    for number, colour in ((0, "red"), (2, "green"), (10, "grey")):
        picture(tmp_path / "control" / f"cat_{number}.png", colour)
    picture(tmp_path / "control" / "cat_1.png", "blue")
    cat, numbered = open_dataset(tmp_path)
    assert colour_of(cat.source) == COLOURS["red"]
    assert [colour_of(image) for image in cat.references] == [COLOURS["green"], COLOURS["grey"]]
    assert colour_of(numbered.source) == COLOURS["blue"] and numbered.references == ()


def test_folder_faults_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no dataset folder"):
        open_dataset(tmp_path / "none")
    with pytest.raises(ValueError, match=r"holds no dataset: no .tar shards, no .jsonl file and no pictures"):
        open_dataset(tmp_path)
    picture(tmp_path / "cat.png", "red")
    with pytest.raises(FileNotFoundError, match=r"cat.png has no caption: write the instruction into"):
        open_dataset(tmp_path)[0]
    (tmp_path / "cat.txt").write_text("")
    with pytest.raises(ValueError, match=r"cat.txt is empty"):
        open_dataset(tmp_path)[0]
    (tmp_path / "cat.txt").write_text("a cat")
    assert open_dataset(tmp_path)[0].mode == "generate"
    (tmp_path / "control").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"cat.png has no control picture in control: expected cat.png or cat_0"
    ):
        open_dataset(tmp_path)[0]
    (tmp_path / "control_1").mkdir()
    picture(tmp_path / "control_1" / "cat.png", "green")
    with pytest.raises(
        FileNotFoundError, match=r"cat.png has no control picture in control: expected cat.png"
    ):
        open_dataset(tmp_path)[0]  # the reference must not become the source
    picture(tmp_path / "control" / "cat.png", "blue")
    whole = open_dataset(tmp_path)[0]
    assert [colour_of(whole.source), colour_of(whole.references[0])] == [COLOURS["blue"], COLOURS["green"]]
    (tmp_path / "samples.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"samples.jsonl holds no sample"):
        open_dataset(tmp_path)


def test_captions_of_other_editors(tmp_path: Path) -> None:
    picture(tmp_path / "target" / "a.png", "red")
    caption = tmp_path / "target" / "a.txt"
    caption.write_text("Make it red.", encoding="utf-8-sig")
    assert open_dataset(tmp_path)[0].instruction == "Make it red."
    caption.write_bytes("Café".encode("cp1252"))
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text .* Save it as UTF-8\."):
        open_dataset(tmp_path)[0]


def test_a_line_that_begins_with_a_mark_or_is_no_utf8(folder: Path) -> None:
    lines = folder / "samples.jsonl"
    lines.write_text(json.dumps(own_line()) + "\n", encoding="utf-8-sig")
    assert open_dataset(folder)[0].instruction == "Replace it."
    lines.write_bytes(b'{"instruction": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"samples\.jsonl line 1 is not UTF-8 text"):
        open_dataset(folder)[0]


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "png"), ("I", "tif")])
def test_a_depth_map_of_16_bits_keeps_its_greys(folder: Path, mode: str, suffix: str) -> None:
    ramp = Image.new(mode, (4, 1))
    for place, value in enumerate((0, 257 * 100, 257 * 200, 65_535)):
        ramp.putpixel((place, 0), value)
    ramp.save(folder / "pictures" / f"depth.{suffix}")
    write_lines(
        folder / "samples.jsonl",
        own_line(references=[f"pictures/depth.{suffix}"], mask=f"pictures/depth.{suffix}"),
    )
    sample = open_dataset(folder)[0]
    assert [sample.references[0].getpixel((x, 0))[0] for x in range(4)] == [0, 100, 200, 255]
    assert sample.mask is not None and [sample.mask.getpixel((x, 0)) for x in range(4)] == [0, 100, 200, 255]


def test_a_picture_of_floating_point_numbers_is_refused(folder: Path) -> None:
    Image.new("F", (2, 2), 0.5).save(folder / "pictures" / "float.tif")
    write_lines(folder / "samples.jsonl", own_line(references=["pictures/float.tif"]))
    with pytest.raises(ValueError, match=r"float\.tif holds floating point numbers"):
        open_dataset(folder)[0]


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (5, 4), COLOURS[colour]).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(2):
        with tarfile.open(tmp_path / f"shard-{number}.tar", "w") as tar:
            for key in ("a", "b", "c"):
                name = f"{number}{key}"
                words = {"instruction": f"edit {name}", "task": "add"}
                add_member(tar, f"{name}.json", json.dumps(words).encode())
                add_member(tar, f"{name}.source.png", png("red"))
                add_member(tar, f"{name}.ref_0.png", png("green"))
                add_member(tar, f"{name}.ref_1.png", png("grey"))
                add_member(tar, f"{name}.target.png", png("blue"))
    return tmp_path


def test_shards_of_others_are_read_without_an_index(shards: Path) -> None:
    opened = open_dataset(shards)
    assert [opened.record(place).id for place in range(6)] == ["0a", "0b", "0c", "1a", "1b", "1c"]
    sample = opened[4]
    assert (sample.instruction, sample.task) == ("edit 1b", "add")
    assert [colour_of(image) for image in (sample.source, *sample.references, sample.target)] == [
        COLOURS[name] for name in ("red", "green", "grey", "blue")
    ]


def test_damaged_and_incomplete_shards_are_named(shards: Path) -> None:
    with tarfile.open(shards / "shard-2.tar", "w") as tar:
        add_member(tar, "x.target.png", png("red"))
        add_member(tar, "y.txt", b"words only")
        add_member(tar, "z.target.png", png("red"))
        add_member(tar, "z.json", b"{instruction: none}")
    opened = open_dataset(shards)
    with pytest.raises(ValueError, match=r"shard-2.tar sample x has no instruction"):
        opened.record(6)
    with pytest.raises(ValueError, match=r"shard-2.tar sample y has no target picture, only txt"):
        opened.record(7)
    with pytest.raises(ValueError, match=r"shard-2.tar sample z: its json member is not JSON"):
        opened.record(8)
    (shards / "shard-3.tar").write_bytes(b"\x01" * 600)
    with pytest.raises(ValueError, match=r"shard-3.tar is not a complete tar file"):
        open_dataset(shards)


def test_memory_of_the_line_index_stays_flat(tmp_path: Path) -> None:
    def peak(lines: int) -> int:
        path = tmp_path / "samples.jsonl"
        path.write_bytes(b'{"target":"a.png","instruction":"x"}\n' * lines)
        tracemalloc.start()
        index = LineIndex(path)
        assert json.loads(index.line(lines - 1))["target"] == "a.png"
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    assert peak(200_000) - peak(1000) < 100_000

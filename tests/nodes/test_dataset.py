"""The dataset nodes in the real host: writing, resuming, opening, looking, and where they may read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.host


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's input and output folders, empty, for one test."""
    import folder_paths

    for name in ("input", "output", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return tmp_path


def make(**changes: object):
    from pack.nodes.dataset import StickerDataset

    options = {"name": "mine", "size": 32, "count": 6, "tasks": "all", "seed": 1, "processes": 1} | changes
    return StickerDataset.execute(**options).args[0]


def preview(dataset, first: int = 0, count: int = 3):
    from pack.nodes.dataset import DatasetPreview

    return DatasetPreview.PREPARE_CLASS_CLONE(None).execute(dataset, first, count)


def test_stickers_are_written_below_output_and_shown(folders: Path) -> None:
    dataset = make()
    assert dataset.folder == folders / "output" / "dreamomni" / "datasets" / "mine"
    assert len(dataset) == 6
    sheet, text = preview(dataset, 4, 5).args
    assert sheet.shape[0] == 1 and sheet.shape[3] == 3 and 0 <= float(sheet.min()) <= float(sheet.max()) <= 1
    lines = text.split("\n")
    assert len(lines) == 2 and lines[0].startswith("4\t") and dataset[4].instruction in lines[0]


def test_running_again_adds_samples_and_loading_finds_them(folders: Path) -> None:
    from pack.nodes.dataset import LoadDataset, StickerDataset

    before = StickerDataset.fingerprint_inputs("mine", count=3)
    make(count=3)
    assert StickerDataset.fingerprint_inputs("mine", count=3) == before
    make(count=3)
    assert StickerDataset.fingerprint_inputs("mine", count=3) == before
    make(count=5)
    assert StickerDataset.fingerprint_inputs("mine", count=3) != before
    assert "mine" in LoadDataset.GET_SCHEMA().inputs[0].options
    loaded = LoadDataset.execute("mine").args[0]
    assert [sample.id for sample in loaded] == [f"{index:08d}" for index in range(5)]


def test_what_others_change_is_written_again(folders: Path) -> None:
    from pack.nodes.dataset import StickerDataset

    def state() -> str:
        return StickerDataset.fingerprint_inputs("mine", count=3, stickers_folder="cuts")

    cut = folders / "input" / "cuts" / "cat.png"
    cut.parent.mkdir()
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(cut)
    before = state()
    dataset = make(count=3, stickers_folder="cuts")
    made = state()
    assert made == before
    for path in dataset.folder.iterdir():
        path.unlink()
    deleted = state()
    assert deleted not in (before, "")
    make(count=3, stickers_folder="cuts")
    assert state() == deleted
    cut.with_name("dog.png").write_bytes(cut.read_bytes())
    assert state() != deleted
    assert StickerDataset.fingerprint_inputs(None, count=3) == StickerDataset.fingerprint_inputs(None)
    assert StickerDataset.fingerprint_inputs("../mine", count=3) == ""


@pytest.mark.parametrize("size", [(3000, 1501), (333, 1000), (192, 50), (7, 11)])
def test_a_picture_is_brought_to_its_size_on_the_sheet_once(size: tuple[int, int]) -> None:
    """What was made smaller before would be blurred a second time."""
    from pack.nodes.dataset import sheet_row
    from pack.training.contact_sheet import contact_sheet, fitted
    from pack.training.dataset import EditSample

    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    target = Image.fromarray(noise)
    sample = EditSample(
        source=None, references=(), instruction="x", task="generate", target=target, mask=None, id="0"
    )
    row = sheet_row(0, sample)
    shown = fitted(target, 192)
    assert max(row.pictures[0][1].size) == max(shown.size) == 192, "no photo is kept whole"
    sheet, expected = np.asarray(contact_sheet([row])), np.asarray(shown)
    height, width = expected.shape[:2]
    inner = expected[1:-1, 1:-1]  # a frame is drawn around it
    places = (sheet[:, 13 : 13 + width - 2] == inner[0]).all(axis=(1, 2)).nonzero()[0]
    assert any(np.array_equal(sheet[top : top + height - 2, 13 : 13 + width - 2], inner) for top in places)


def test_tasks_by_group_and_by_name(folders: Path) -> None:
    drawn = make(tasks="drag, segment", count=20)
    assert {drawn.record(index).task for index in range(20)} <= {"move", "scale", "rotate", "segment"}
    with pytest.raises(ValueError, match=r"there is no task 'flying'; use all, a group \(edit, drag, fill"):
        make(name="other", tasks="flying")


def test_progress_previews_and_cancel(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pack.nodes import dataset as nodes

    import comfy.model_management as management

    shown: list[tuple[int, object]] = []

    def reporter(total: int):
        def report(done: int, picture: object) -> None:
            shown.append((done, picture))
            if done == 4 and total == 8:
                raise management.InterruptProcessingException

        return report

    monkeypatch.setattr(nodes, "progress_reporter", reporter)
    monkeypatch.setattr(nodes, "PREVIEW_SECONDS", 0.0)
    monkeypatch.setattr(nodes, "part_size", lambda size: 3)
    with pytest.raises(management.InterruptProcessingException):
        make(count=8)
    assert [done for done, _ in shown] == [0, 1, 2, 3, 4]
    assert all(picture.size == (512, 256) for _, picture in shown)
    shown.clear()
    make(count=9)
    assert shown[0][0] == 3 and shown[-1][0] == 9


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", "/etc", "a\\b", "x" * 90, "end."])
def test_names_that_are_no_single_folder(folders: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be a dataset's name: use letters, digits"):
        make(name=name)


def test_folders_of_stickers_stay_inside_the_input_folder(folders: Path) -> None:
    (folders / "input" / "cuts").mkdir()
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (8, 8, 30, 30))
    image.save(folders / "input" / "cuts" / "red box.png")
    dataset = make(stickers_folder="cuts", tasks="text", count=12)
    assert any("red box" in dataset.record(index).instruction for index in range(12))
    for outside in ("../output", "/etc", "cuts/../.."):
        with pytest.raises(ValueError, match=r"lies outside ComfyUI's input folder"):
            make(name="b", stickers_folder=outside)
    with pytest.raises(
        FileNotFoundError,
        match=r"backgrounds_folder: there is no folder .* folders in .*: "
        "cuts",
    ):
        make(name="b", backgrounds_folder="photos")


def test_a_dataset_of_ones_own_is_checked_when_it_is_opened(folders: Path) -> None:
    from pack.nodes.dataset import LoadDataset

    place = folders / "input" / "dreamomni" / "datasets" / "own"
    place.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"there is no dataset 'none' in .*found: own"):
        LoadDataset.execute("none")
    with pytest.raises(ValueError, match=r"own holds no dataset"):
        LoadDataset.execute("own")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(place / "a.png")
    lines = [{"target": "a.png", "instruction": "x"}, {"target": "b.png", "instruction": "x"}]
    (place / "data.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(FileNotFoundError, match=r"data.jsonl line 2, target b.png: there is no file"):
        LoadDataset.execute("own")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(place / "b.png")
    before = LoadDataset.fingerprint_inputs("own")
    assert len(LoadDataset.execute("own").args[0]) == 2
    (place / "data.jsonl").write_text(json.dumps(lines[0]))
    assert LoadDataset.fingerprint_inputs("own") != before


def test_pictures_of_kinds_that_are_not_read_are_told(
    folders: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from pack.nodes.dataset import LoadDataset

    place = folders / "input" / "dreamomni" / "datasets" / "photos"
    for name in ("target/a.HEIC", "target/b.heic", "control/b.gif", "control/b.txt", "raw.dng"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"")
    unread = r"pictures are not read: 1 \.gif, 2 \.heic\. Save them as PNG or JPEG\."
    with pytest.raises(ValueError, match=rf"holds no dataset: .*{unread}"):
        LoadDataset.execute("photos")
    for name in ("target/b.png", "control/b.png"):
        Image.new("RGB", (8, 8)).save(place / name)
    (place / "target" / "b.txt").write_text("Make it blue.")
    with caplog.at_level("INFO", logger="dreamomni"):
        assert len(LoadDataset.execute("photos").args[0]) == 1
        for name in ("target/a.HEIC", "target/b.heic", "control/b.gif"):
            (place / name).unlink()
        LoadDataset.execute("photos")
    assert re.fullmatch(rf"samples: 1\. Left out, as these kinds of {unread}", caplog.messages[0])
    assert caplog.messages[1:] == ["samples: 1."]


def test_every_dataset_that_is_offered_is_opened(folders: Path) -> None:
    from pack.nodes.dataset import LoadDataset

    names = ["a+b", "cats (1)", "own.jsonl", "tom's", "猫" * 40]
    for root in ("output", "input"):
        place = folders / root / "dreamomni" / "datasets"
        for name in (*(names[:3] if root == "output" else names[3:]), ".ipynb_checkpoints"):
            folder = place if name == "own.jsonl" else place / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(folder / "a.png")
            line = {"target": "a.png", "instruction": f"{name} in {root}"}
            (folder / "own.jsonl").write_text(json.dumps(line))
    assert LoadDataset.GET_SCHEMA().inputs[0].options == names
    for name in names:
        place = "output" if name in names[:3] else "input"
        assert LoadDataset.execute(name).args[0][0].instruction == f"{name} in {place}"
    for other in (".ipynb_checkpoints", "a.png", "../datasets/a+b", "", str(folders)):
        with pytest.raises(FileNotFoundError, match=r"there is no dataset .* found: a\+b, cats"):
            LoadDataset.execute(other)


def test_a_name_of_two_datasets_is_refused(folders: Path) -> None:
    from pack.nodes.dataset import LoadDataset

    places = [folders / root / "dreamomni" / "datasets" / "stickers" for root in ("output", "input")]
    states = []
    for place in places:
        place.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place / "a.png")
        (place / "own.jsonl").write_text(json.dumps({"target": "a.png", "instruction": "mine"}))
        states.append(LoadDataset.fingerprint_inputs("stickers"))
    assert LoadDataset.GET_SCHEMA().inputs[0].options == ["stickers"]
    with pytest.raises(ValueError, match=r"two datasets are called 'stickers'.*Rename one") as error:
        LoadDataset.execute("stickers")
    assert all(str(place) in str(error.value) for place in places)
    (places[1] / "own.jsonl").unlink()
    states.append(LoadDataset.fingerprint_inputs("stickers"))
    assert len(set(states)) == 3


def test_a_first_sample_beyond_the_end(folders: Path) -> None:
    with pytest.raises(ValueError, match=r"first is 6, but the dataset has the samples 0 to 5"):
        preview(make(), 6)


def test_every_sample_of_the_generate_workflow_has_references() -> None:
    """Task LoRA applies the LoRA only where there are references, so nothing else is worth teaching it."""
    from pack.training.synthesis.config import recipe_for, tasks_from_words
    from pack.training.synthesis.samples import Synthesizer

    graph = json.loads((Path(__file__).parents[2] / "workflows" / "train-generate-lora.json").read_text())
    (node,) = (node for node in graph["nodes"] if node["type"] == "DreamOmniStickerDataset")
    _, size, _, tasks, seed, *_ = node["widgets_values"]
    made = Synthesizer(recipe_for(size, size, seed=seed, tasks=tasks_from_words(tasks)))
    plans = [made.plan(index) for index in range(60)]
    assert all(plan.source is None and plan.references for plan in plans)
    assert {plan.task for plan in plans} == {"reference_generation", "control_segmentation"}

"""Whole datasets: the same bytes for any number of processes, resume after a kill, full disks, stickers."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pack.dit import whole_files
from pack.training.dataset import open_dataset
from pack.training.drawn import DrawnSamples, DrawnStore
from pack.training.encode import pixels_of
from pack.training.synthesis import worker, writers
from pack.training.synthesis.config import recipe_for
from pack.training.synthesis.generate import Job, config_from_json, dataset_lock, generate, job_from_json
from pack.training.synthesis.samples import Synthesizer
from pack.training.synthesis.writers import FolderWriter, ShardWriter


def job(folder: Path, count: int = 12, **options: object) -> Job:
    settings: dict = {"part_size": 4, "config": recipe_for(32, 32, seed=2)} | options
    return Job(folder=folder, count=count, **settings)


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_picture_is_on_the_disk_before_the_list_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    flush, replace = whole_files.flush_to_disk, Path.replace
    for module in (writers, whole_files):
        monkeypatch.setattr(module, "flush_to_disk", lambda path: (steps.append(path.name), flush(path)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (steps.append("in place"), replace(path, to)))
    made = Synthesizer(recipe_for(32, 32, seed=2))
    FolderWriter(tmp_path).write(0, (made.sample(index) for index in range(2)))
    files = [path.name for path in (tmp_path / "pictures" / "000000").iterdir()]
    assert steps[-1] == "in place" and steps.count("in place") == 1
    assert set(files) <= set(steps[:-2])
    assert steps[-2].startswith(".partial-"), "the list itself, after all that it names"


def test_shards_are_the_same_bytes_for_any_number_of_processes(tmp_path: Path) -> None:
    counts: list[int] = []
    generate(job(tmp_path / "one"), 1)
    generate(job(tmp_path / "two"), 2, lambda done, sample: counts.append(done))
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert counts[-1] == 12 and counts == sorted(counts)
    opened = open_dataset(tmp_path / "one")
    assert len(opened) == 12
    expected = Synthesizer(recipe_for(32, 32, seed=2)).sample(7)
    sample = opened[7]
    assert (sample.instruction, sample.task, sample.id) == (
        expected.plan.instruction,
        expected.plan.task,
        "00000007",
    )
    assert np.array_equal(np.asarray(sample.target), expected.target)
    assert len(sample.references) == len(expected.references)
    assert sample.scene == json.loads(json.dumps(expected.scene))


def test_folder_and_shards_hold_the_same_samples(tmp_path: Path) -> None:
    generate(job(tmp_path / "folder", format="folder"))
    generate(job(tmp_path / "shards"))
    folder, shards = open_dataset(tmp_path / "folder"), open_dataset(tmp_path / "shards")
    for one, two in zip(folder, shards, strict=True):
        assert (one.id, one.task, one.instruction, one.scene) == (
            two.id,
            two.task,
            two.instruction,
            two.scene,
        )
        assert one.target.tobytes() == two.target.tobytes()
        assert (one.mask is None) == (two.mask is None)
        assert [image.tobytes() for image in one.references] == [image.tobytes() for image in two.references]


def test_webdataset_itself_reads_the_shards(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    generate(job(tmp_path / "shards", 4))
    path = tmp_path / "shards" / "shard-000000.tar"
    rows = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("pil"))
    assert [row["__key__"] for row in rows] == [f"{index:08d}" for index in range(4)]
    assert rows[0]["json"]["instruction"] and rows[0]["target.png"].size == (32, 32)


@pytest.mark.parametrize("form", ["shards", "folder"])
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, form: str) -> None:
    order = job(tmp_path / "killed", 24, format=form)
    generate(job(tmp_path / "whole", 24, format=form))
    generate(job(tmp_path / "killed", 4, format=form))
    process = subprocess.Popen(
        [sys.executable, worker.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    # More than it can write before it is killed; what goes beyond the order is removed afterwards.
    long = job(tmp_path / "killed", 40_000, format=form)
    process.stdin.write(json.dumps({"job": long.to_json(), "parts": [*range(1, 10_000)]}) + "\n")
    process.stdin.flush()
    for _ in range(6):
        process.stdout.readline()
    process.kill()
    assert process.wait() == -9
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("s*-00000[01].*")}
    assert finished
    done: list[int] = []
    generate(order, 1, lambda count, sample: done.append(count))
    assert done[0] >= 8
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")


def test_the_count_may_grow_and_shrink(tmp_path: Path) -> None:
    generate(job(tmp_path / "a", 6, format="folder"))
    generate(job(tmp_path / "a", 10, format="folder"))
    generate(job(tmp_path / "b", 10, format="folder"))
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    generate(job(tmp_path / "a", 3, format="folder"))
    assert len(open_dataset(tmp_path / "a")) == 3


def test_running_again_changes_no_file(tmp_path: Path) -> None:
    generate(job(tmp_path / "a", 6))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    generate(job(tmp_path / "a", 6))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()} == before


def test_what_was_changed_by_hand_stays(tmp_path: Path) -> None:
    generate(job(tmp_path / "a", 7, format="folder"))
    first, second = sorted((tmp_path / "a").glob("samples-*.jsonl"))
    lines = first.read_text().splitlines()
    mine = [lines[0].replace('"instruction":"', '"instruction":"Please: '), *lines[2:]]
    first.write_text("\n".join(mine) + "\n")
    (tmp_path / "a" / "pictures" / ".DS_Store").write_bytes(b"finder")
    (tmp_path / "a" / "samples-old copy.jsonl").write_text(second.read_text())
    generate(job(tmp_path / "a", 7, format="folder"))
    assert first.read_text().splitlines() == mine
    assert (tmp_path / "a" / "pictures" / ".DS_Store").is_file()


def test_growth_that_was_cut_off_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def full(partial: Path, final: Path) -> Path:
        if final.suffix == ".tar":
            raise OSError(5, "the disk went away")
        return replace(partial, final)

    folder = tmp_path / "a"
    generate(job(folder, 3))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="went away"):
            generate(job(folder, 4))
    assert len(open_dataset(folder)) == 3 and open_dataset(folder)[2].instruction
    generate(job(folder, 4))
    generate(job(tmp_path / "b", 4))
    assert hashes(folder) == hashes(tmp_path / "b")


def test_other_settings_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    generate(job(tmp_path / "a", 4))
    before = hashes(tmp_path / "a")
    with pytest.raises(ValueError, match=r"made with other settings \(seed\). Choose another name"):
        generate(job(tmp_path / "a", 4, config=recipe_for(32, 32, seed=3)))
    with pytest.raises(ValueError, match=r"made with other settings \(format, part_size\)"):
        generate(job(tmp_path / "a", 4, format="folder", part_size=2))
    assert hashes(tmp_path / "a") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"mine is not empty and holds no dataset of this pack"):
        generate(job(tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_dataset_grows_only_with_the_tasks_it_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = tmp_path / "a", importlib.util.find_spec
    hidden = lambda name: None if name in ("cv2", "skimage") else found(name)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", hidden)
        generate(job(folder, 4))
    with pytest.raises(ValueError, match=r"made with other settings \(usable_tasks"):
        generate(job(folder, 8))
    generate(job(tmp_path / "b", 4))
    with monkeypatch.context() as patch:
        patch.setattr("pack.training.synthesis.generate.edge_detector", lambda: "another")
        with pytest.raises(ValueError, match=r"made with other settings \(edge_detector\)"):
            generate(job(tmp_path / "b", 8))


def test_a_dataset_of_an_older_version_opens_and_does_not_grow(tmp_path: Path) -> None:
    generate(job(tmp_path / "a", 4))
    path = tmp_path / "a" / "dataset.json"
    old = json.loads(path.read_text())
    path.write_text(json.dumps(old | {"version": old["version"] - 1}))
    assert len(open_dataset(tmp_path / "a")) == 4
    with pytest.raises(ValueError, match=r"made with other settings \(version\)"):
        generate(job(tmp_path / "a", 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, r"count must be at least 1, got 0"),
        ({"part_size": 0}, r"part_size must be at least 1, got 0"),
        ({"format": "zip"}, r"there is no format 'zip'; allowed are shards, folder"),
    ],
)
def test_jobs_that_cannot_be(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        job(tmp_path, **changes)


def test_a_full_disk_leaves_finished_parts_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    synthesizer = Synthesizer(recipe_for(32, 32, seed=2))

    def on_full_disk(path: Path) -> Path:
        partial = path.with_name(".partial-full")
        partial.symlink_to(full)
        return partial

    def part(first: int) -> list:
        return [synthesizer.sample(index) for index in range(first, first + 4)]

    shards = tmp_path / "shards"
    generate(job(shards, 4))
    before = hashes(shards)
    with monkeypatch.context() as patch:
        patch.setattr(whole_files, "temporary_beside", on_full_disk)
        with pytest.raises(OSError, match=r"the disk is full while writing .* All finished parts are intact"):
            ShardWriter(shards).write(1, iter(part(4)))
    assert hashes(shards) == before and len(open_dataset(shards)) == 4

    folder = tmp_path / "folder"
    generate(job(folder, 4, format="folder"))
    before = hashes(folder)
    (folder / "pictures" / "000001").mkdir()
    (folder / "pictures" / "000001" / "00000005.target.png").symlink_to(full)
    with pytest.raises(OSError, match=r"the disk is full"):
        FolderWriter(folder).write(1, iter(part(4)))
    assert hashes(folder) == before and len(open_dataset(folder)) == 4


def test_a_stop_by_the_user_ends_workers_and_keeps_finished_parts(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def report(done: int, sample: object) -> None:
        if done >= 9:
            raise Stop

    with pytest.raises(Stop):
        generate(job(tmp_path / "a", 400), 2, report)
    assert not [path for path in (tmp_path / "a").iterdir() if ".partial" in path.name]
    generate(job(tmp_path / "a", 12))
    generate(job(tmp_path / "b", 12))
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_a_worker_tells_its_error(tmp_path: Path) -> None:
    config = recipe_for(32, 32, tasks=("recolour",))
    import dataclasses

    poor = dataclasses.replace(config, colours=("red",))
    with pytest.raises(ValueError, match=r"no recolour could be made"):
        generate(job(tmp_path / "a", config=poor), 2)


@pytest.mark.parametrize("form", ["shards", "folder"])
def test_two_that_write_one_dataset_are_refused(tmp_path: Path, form: str) -> None:
    order, told = job(tmp_path / "a", format=form), []

    def second(done: int, sample: object) -> None:
        if done == 6:  # in the middle of the second part
            with pytest.raises(
                BlockingIOError, match="another process is writing the dataset 'a'; wait"
            ) as error:
                generate(order)
            told.append(error)

    generate(order, 1, second)
    assert len(told) == 1
    generate(job(tmp_path / "b", format=form))
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert len(open_dataset(tmp_path / "a")) == 12
    generate(order)


def test_a_folder_with_nothing_but_a_lock_is_empty(tmp_path: Path) -> None:
    dataset_lock(tmp_path / "a").release()
    assert len(open_dataset(generate(job(tmp_path / "a", 4)))) == 4


def test_a_dataset_whose_first_file_was_cut_off_is_begun_again(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    whole_files.temporary_beside(folder / "dataset.json")
    (folder / "dataset.json.partial").write_text("{")
    generate(job(folder, 4))
    generate(job(tmp_path / "b", 4))
    assert hashes(folder) == hashes(tmp_path / "b")


def test_what_a_killed_process_left_goes_when_the_dataset_goes_on(tmp_path: Path) -> None:
    """Under the names of today and of earlier versions."""
    folder = tmp_path / "a"
    generate(job(folder, 4))
    before = hashes(folder)
    whole_files.temporary_beside(folder / "shard-000001.tar")
    (folder / "shard-000001.tar.partial").write_bytes(b"half")
    generate(job(folder, 4))
    assert hashes(folder) == before


def test_jobs_survive_json(tmp_path: Path) -> None:
    order = job(tmp_path, config=recipe_for(48, 40, seed=9, tasks=("add", "remove")))
    assert job_from_json(json.loads(json.dumps(order.to_json()))) == order
    data = json.loads(json.dumps(order.to_json()))["config"]
    assert config_from_json(data).fingerprint() == order.config.fingerprint()


def test_a_begun_dataset_without_samples_takes_other_settings(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, sample: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        generate(job(tmp_path / "a", 4), 1, stop)
    other = {"config": recipe_for(32, 32, seed=3), "format": "folder"}
    generate(job(tmp_path / "a", 4, **other))
    generate(job(tmp_path / "b", 4, **other))
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_samples_drawn_while_training_equal_the_written_ones(tmp_path: Path) -> None:
    order = job(tmp_path / "a")
    written, store = (
        open_dataset(generate(order)),
        DrawnStore(DrawnSamples(config=order.config, count=order.count)),
    )
    for index, sample in enumerate(written):
        drawn = store.read(index)
        assert (drawn.id, drawn.task, drawn.instruction) == (sample.id, sample.task, sample.instruction)
        assert drawn.has_source == (sample.source is not None)
        pictures = [*([sample.source] if sample.source else []), *sample.references]
        assert len(drawn.references) == len(pictures)
        for tensor, picture in zip(
            (drawn.target, *drawn.references), (sample.target, *pictures), strict=True
        ):
            assert torch.equal(tensor, pixels_of(picture))
        assert (drawn.mask is None) == (sample.mask is None)
        if drawn.mask is not None:
            assert np.array_equal(drawn.mask[0].numpy() > 0, np.asarray(sample.mask) > 0)
    store.close()
    with pytest.raises(IndexError, match=r"there are 12 samples, got number 12"):
        store.entries[12]


def test_a_worker_starts_without_torch() -> None:
    code = (
        "import importlib, runpy, sys; worker = runpy.run_path(sys.argv[1]); "
        "runpy.run_path(str(worker['LOADER']))['load_pack'](worker['PACK'], sys.argv[1]); "
        "importlib.import_module(worker['PACK'] + '.training.synthesis.generate'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(worker.__file__)]).returncode == 0

"""Files and folders that are whole or absent, and what stays of an older one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from pack.dit.whole_files import (
    clear_partial_files,
    copy_finished,
    temporary_beside,
    whole_file,
    whole_folder,
    write_text,
)


class Killed(BaseException):
    """Ends everything, as a signal would."""


def test_a_file_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, steps = tmp_path / "new" / "notes.json", []
    fsync, replace = os.fsync, Path.replace

    def flushed(handle: int) -> None:
        fsync(handle)
        steps.append(("on the disk", os.fstat(handle).st_size, path.exists()))

    def put(partial: Path, target: Path) -> Path:
        steps.append(("in place", partial.stat().st_size, path.exists()))
        return replace(partial, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", put)
    write_text(path, "new")
    assert steps == [("on the disk", 3, False), ("in place", 3, False)]
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [Killed, PermissionError])
@pytest.mark.parametrize("older", [None, "old"])
def test_an_error_leaves_neither_a_new_file_nor_half_of_one(
    tmp_path: Path, error: type[BaseException], older: str | None
) -> None:
    path = tmp_path / "notes.json"
    if older is not None:
        path.write_text(older)
    before = list(tmp_path.iterdir())
    with pytest.raises(error), whole_file(path) as partial:
        partial.write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == before
    assert older is None or path.read_text() == older


def test_a_file_that_is_gone_when_the_block_ends_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    write_text(path, "old")
    with pytest.raises(FileNotFoundError), whole_file(path) as partial:
        partial.unlink()
    assert path.read_text() == "old"


def test_what_a_crash_leaves_is_cleared_under_its_new_and_its_old_name(tmp_path: Path) -> None:
    temporary_beside(tmp_path / "shard-000000.tar")
    (tmp_path / "shard-000000.tar.partial").touch()
    (tmp_path / "shard-000000.tar").touch()
    (tmp_path / ".partial-folder").mkdir()
    clear_partial_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".partial-folder", "shard-000000.tar"]
    copy_finished(tmp_path, tmp_path.with_name("copy"))
    assert [path.name for path in tmp_path.with_name("copy").iterdir()] == ["shard-000000.tar"]


def refusing(monkeypatch: pytest.MonkeyPatch, *refused: int) -> None:
    """Windows answers so where a file to be replaced or removed is mapped: `refused` are the replacements."""
    replace, calls = Path.replace, iter(range(9))

    def once(path: Path, target: Path) -> Path:
        if next(calls) in refused:
            raise PermissionError("[WinError 5] Access is denied")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", once)


@pytest.mark.parametrize("still_held", [False, True])
def test_a_file_that_a_program_has_mapped_is_renamed_out_of_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, still_held: bool
) -> None:
    path, unlink = tmp_path / "mine.safetensors", Path.unlink
    path.write_text("old")

    def held(left: Path, missing_ok: bool = False) -> None:
        if still_held and left.exists() and left.read_text() == "old":
            raise PermissionError("[WinError 5] Access is denied")
        unlink(left, missing_ok)

    with monkeypatch.context() as patch:
        refusing(patch, 0)
        patch.setattr(Path, "unlink", held)
        write_text(path, "new")
    assert path.read_text() == "new"
    assert [left.read_text() for left in tmp_path.glob(".partial-*")] == ["old"] * still_held
    with monkeypatch.context() as patch:
        refusing(patch, 0)
        write_text(path, "newer")
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "newer"


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ((0, 1), r"mine\.safetensors could not be replaced .*WinError 5.*restart it.*as it was"),
        ((0, 2), "WinError 5"),
    ],
)
def test_a_file_that_cannot_be_renamed_either_is_left_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: tuple[int, ...], message: str
) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_text("old")
    refusing(monkeypatch, *refused)
    with pytest.raises(PermissionError, match=message):
        write_text(path, "new")
    assert [(left, left.read_text()) for left in tmp_path.iterdir()] == [(path, "old")]


@pytest.mark.parametrize("error", [Killed, PermissionError])
@pytest.mark.parametrize("moves", range(6))
def test_what_users_put_into_a_folder_outlives_any_stop_while_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int, error: type[BaseException]
) -> None:
    """The folder is moved aside, the new one in its place, then what only the older had: five renames."""
    folder = tmp_path / "mine"
    own = ("vae/ae.safetensors", "loras/edit.safetensors", "vlm/mine/notes.txt")
    for name in (*own, "dit.safetensors", "dit-1.safetensors", "vlm/config.json", "vlm/model-1.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")

    def fill() -> None:
        ours = ["dit-1.safetensors", "vlm/model-1.safetensors"]
        with whole_folder(folder, keep=True, ours=ours) as partial:
            (partial / "vlm").mkdir(parents=True)
            for name in ("dit.safetensors", "vlm/config.json"):
                (partial / name).write_text("new")

    rename, left = Path.rename, iter(range(moves))

    def stopping(path: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise error
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stopping)
        with suppress(error):
            fill()
    for name in own:
        assert [path.read_text() for path in tmp_path.glob(f"*/{name}")] == ["old"]
    fill()
    found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == dict.fromkeys(own, "old") | {"dit.safetensors": "new", "vlm/config.json": "new"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


def test_what_users_put_beside_our_files_stays_when_their_folder_is_brought_no_more(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for name in ("vlm/config.json", "vlm/notes.txt", "vae/config.json", "old/ours.txt", "old/mine.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")
    (tmp_path / "elsewhere").mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with whole_folder(folder, keep=True, ours=["vlm/config.json", "vae/config.json", "old"]) as partial:
        partial.mkdir()
    assert sorted(path.name for path in folder.rglob("*")) == ["linked", "notes.txt", "vlm"]
    assert (folder / "linked").is_symlink()


def test_a_folder_that_cannot_take_the_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = tmp_path / "vlm", Path.rename
    (folder / "old").mkdir(parents=True)

    def refuse(path: Path, target: Path) -> Path:
        if path.name == ".partial-vlm":
            raise PermissionError("in use")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError, match="in use"), whole_folder(folder) as partial:
        partial.mkdir()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["old", "vlm"]

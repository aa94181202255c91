"""The checks that need no ComfyUI to run: form, types."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from .places import PACK_FOLDER, ROOT, SetupError, comfyui_dir, environment_dir, environment_program

GIT_NEEDED = "the type check asks git for the source files; install git and use a clone"


def check() -> int:
    """ruff, its formatter and ty; 0 if all are content."""
    ruff = environment_program("ruff")
    results = [
        subprocess.run([ruff, "check", "-q", "."], cwd=ROOT).returncode,
        subprocess.run([ruff, "format", "-q", "--check", "."], cwd=ROOT).returncode,
        check_types(),
    ]
    return int(any(results))


def check_types() -> int:
    """ty on a copy in a folder with the pack's name.

    ty takes the folder's name for the package's, and a checkout may be called anything, `main` for example,
    which is a module of ComfyUI's.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PACK_FOLDER
        for name in source_files():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
        settings = (ROOT / "pyproject.toml").read_text()
        for name, place in ((".venv", environment_dir()), (".comfyui", comfyui_dir())):
            settings = settings.replace(f'"{name}"', json.dumps(str(place)))
        (copy / "pyproject.toml").write_text(settings)
        return subprocess.run([environment_program("ty"), "check"], cwd=copy).returncode


def source_files() -> list[str]:
    """The Python files that git tracks or would, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except OSError as err:
        raise SetupError(GIT_NEEDED) from err
    except subprocess.CalledProcessError as err:
        raise SetupError(f"{GIT_NEEDED}. git says: {err.stderr.strip()}") from err
    return [name for name in listed.splitlines() if (ROOT / name).is_file()]

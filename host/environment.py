"""The virtual environment that the host, the pack and the tests share."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .comfyui import ensure_comfyui
from .places import PINNED_COMFYUI, ROOT, SetupError, comfyui_dir, environment_dir, environment_program

OLDEST_PYTHON = (3, 11)
CONSTRAINTS = ROOT / "constraints.txt"
REQUIREMENTS = (ROOT / "requirements.txt", ROOT / "tests" / "requirements.txt")


def ensure_environment() -> Path:
    """Make or update the environment and the host; return its Python. Does nothing the second time."""
    python = environment_program("python")
    if not python.exists():
        create_environment()
    if subprocess.run([python, "-c", "import pip"], capture_output=True).returncode:
        subprocess.run([python, "-m", "ensurepip"], stdout=subprocess.DEVNULL)
    ensure_comfyui(python)
    files = [*REQUIREMENTS, comfyui_dir() / "requirements.txt"]
    constraints = constraints_for_host()
    stamp = environment_dir() / "dreamomni.stamp"
    wanted = fingerprint([*(path.read_text() for path in files), constraints])
    if not stamp.is_file() or stamp.read_text() != wanted:
        install(python, files, constraints)
        stamp.write_text(wanted)
    return python


def fingerprint(texts: list[str]) -> str:
    """One hash of everything that decides what is installed."""
    return hashlib.sha256("\0".join([sys.version, *texts]).encode()).hexdigest()


def create_environment() -> None:
    """An empty virtual environment with pip."""
    if sys.version_info < OLDEST_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(f"Python 3.11 or newer is needed, this is {found}; run dev.py with a newer one")
    print(f"Making {environment_dir().name} ...", flush=True)
    # Without --clear an environment whose making was interrupted would be kept as it is.
    result = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", environment_dir()], capture_output=True, text=True
    )
    if result.returncode:
        raise SetupError(
            f"could not make a virtual environment; on Debian and Ubuntu: sudo apt-get install python3-venv\n"
            f"{result.stdout}{result.stderr}"
        )


def constraints_for_host() -> str:
    """The frozen versions; another host than the pinned one decides about the packages it names itself."""
    lines = CONSTRAINTS.read_text().splitlines()
    if comfyui_dir() == PINNED_COMFYUI:
        return "\n".join(lines)
    own = {package_name(line) for line in (comfyui_dir() / "requirements.txt").read_text().splitlines()}
    kept = [line for line in lines if package_name(line) not in own and not line.startswith("comfyui-")]
    return "\n".join(kept)


def package_name(line: str) -> str:
    """`package` of a requirement line such as `package>=1.0`, normalised as registries do."""
    match = re.match(r"[A-Za-z0-9._-]+", line.strip())
    return re.sub(r"[-_.]+", "-", match.group()).lower() if match else ""


def install(python: Path, files: list[Path], constraints: str) -> None:
    """Install the requirement files under the frozen versions, with uv where it can be had."""
    print("Installing packages (several GB the first time) ...", flush=True)
    frozen = environment_dir() / "constraints.txt"
    frozen.write_text(constraints)
    command = [*installer(python), "-q"]
    for file in files:
        command += ["-r", file]
    if subprocess.run([*command, "-c", frozen]).returncode:
        raise SetupError("installing the packages failed; the lines above say why")


def installer(python: Path) -> list[str | Path]:
    """`uv pip install` from PATH or from the environment itself, else `pip install`."""
    on_path = shutil.which("uv")
    if on_path and works(on_path):
        return [on_path, "pip", "install", "--python", python]
    pinned = re.search(r"^uv==.*$", CONSTRAINTS.read_text(), re.MULTILINE)
    pip: list[str | Path] = [python, "-m", "pip", "install"]
    if pinned and subprocess.run([*pip, "-q", pinned.group()], capture_output=True).returncode == 0:
        return [python, "-m", "uv", "pip", "install", "--python", python]
    return pip


def works(program: str) -> bool:
    """Whether `program --version` runs; a version manager's stub may be on PATH without the program."""
    return subprocess.run([program, "--version"], capture_output=True).returncode == 0


def child_environment() -> dict[str, str]:
    """Environment variables for the programs we start: the chosen host, one thread per process."""
    threads = {name: os.environ.get(name, "1") for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**os.environ, **threads, "COMFYUI_DIR": str(comfyui_dir()), "PYTHONUNBUFFERED": "1"}

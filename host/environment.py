"""The virtual environment that the host, the pack and the tests share."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from .comfyui import NEWER, ensure_comfyui
from .places import (
    PINNED_COMFYUI,
    ROOT,
    SetupError,
    comfyui_dir,
    environment_dir,
    environment_program,
    require_clone,
    required_comfyui,
)

OLDEST_PYTHON = (3, 11)
CONSTRAINTS = ROOT / "constraints.txt"
ENDING_SECONDS = 150
"""Longer than a training process takes for its last checkpoint."""
REQUIREMENTS = (ROOT / "requirements.txt", ROOT / "tests" / "requirements.txt")


def ensure_environment() -> Path:
    """Make or update the environment and the host; return its Python. Does nothing the second time."""
    require_clone()
    python = environment_program("python")
    if not python.exists():
        create_environment()
    if not runs(python, "-c", "import pip") and not runs(python, "-m", "ensurepip"):
        create_environment()  # Debian makes half an environment when python3-venv is missing
    ensure_comfyui(python)
    files = [*REQUIREMENTS, required_comfyui() / "requirements.txt"]
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
    host = required_comfyui()
    if host == PINNED_COMFYUI:
        return "\n".join(lines)
    own = {package_name(line) for line in (host / "requirements.txt").read_text().splitlines()}
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
    wanted: list[str | Path] = ["-q", "-c", frozen]
    for file in files:
        wanted += ["-r", file]
    first, pip = installer(python), pip_install(python)
    if subprocess.run([*first, *wanted]).returncode == 0:
        return
    # uv does not read pip's settings, such as the address of a mirror.
    if first == pip or subprocess.run([*pip, *wanted]).returncode:
        raise SetupError("installing the packages failed; the lines above say why")


def pip_install(python: Path) -> list[str | Path]:
    """The environment's own `pip install`."""
    return [python, "-m", "pip", "install"]


def installer(python: Path) -> list[str | Path]:
    """`uv pip install` from PATH or from the environment itself, else `pip install`."""
    on_path = shutil.which("uv")
    if on_path and works(on_path):
        return [on_path, "pip", "install", "--python", python]
    pinned = re.search(r"^uv==.*$", CONSTRAINTS.read_text(), re.MULTILINE)
    pip = pip_install(python)
    if pinned and subprocess.run([*pip, "-q", pinned.group()], capture_output=True).returncode == 0:
        return [python, "-m", "uv", "pip", "install", "--python", python]
    return pip


def works(program: str) -> bool:
    """Whether `program --version` runs; a version manager's stub may be on PATH without the program."""
    return runs(program, "--version")


def runs(*command: str | Path) -> bool:
    """Whether a program ends well; what it says is not shown."""
    return subprocess.run(command, capture_output=True).returncode == 0


def child_environment() -> dict[str, str]:
    """Environment variables for the programs we start: the chosen host, one thread per process."""
    threads = {name: os.environ.get(name, "1") for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    chosen = comfyui_dir()
    host = NEWER.variables if chosen == NEWER.folder else {"COMFYUI_DIR": str(chosen)}
    return {**os.environ, **threads, **host, "PYTHONUNBUFFERED": "1"}


def run_child(
    command: Sequence[str | Path], folder: Path | None = None, variables: Mapping[str, str] | None = None
) -> int:
    """Exit code of a program of ours; when we are asked to end, so is it, with time to put things away.

    `variables` are put over the environment that all our programs get.
    """
    process = subprocess.Popen(command, cwd=folder, env=child_environment() | dict(variables or {}))
    try:
        return process.wait()
    except SystemExit:  # Ctrl+C reaches it by itself, this does not
        if os.name == "posix":
            process.send_signal(signal.SIGINT)
        raise
    finally:
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDING_SECONDS)
        if process.poll() is None:
            process.kill()

"""A real ComfyUI server with the pack linked into it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from http.client import HTTPException
from pathlib import Path
from types import TracebackType

from .client import Client
from .environment import child_environment
from .places import PACK_FOLDER, ROOT, SetupError, comfyui_dir, environment_program

START_SECONDS = 180
STOP_SECONDS = 15


def link_folder(target: Path, link: Path) -> None:
    """Make `link` lead to the folder `target`: a symbolic link, on Windows without that right a junction."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() or link.exists():
        if link.resolve() == target.resolve():
            return
        link.unlink()
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError:
        if sys.platform != "win32":
            raise
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target)], check=True, capture_output=True)


def prepare_base(base: Path) -> None:
    """The folders ComfyUI expects under --base-directory, the pack linked, the first-run dialog off."""
    for name in ("custom_nodes", "input", "models", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link_folder(ROOT, base / "custom_nodes" / PACK_FOLDER)
    settings = base / "user" / "default" / "comfy.settings.json"
    if not settings.is_file():
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}))


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def require_free_port(port: int) -> None:
    """Raise SetupError if somebody listens on the port: it would answer in the place of what is started."""
    if not 0 < port < 65536:
        raise SetupError(f"there is no port {port}; choose one from 1 to 65535 with --port")
    with socket.socket() as caller:
        caller.settimeout(1)
        taken = caller.connect_ex(("127.0.0.1", port)) == 0
    try:
        with socket.socket() as probe:
            if os.name == "posix":
                # Else what was closed a moment ago still counts; on Windows it would share with a listener.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except OSError:
        taken = True
    if taken:
        raise SetupError(f"port {port} is in use, maybe by another ComfyUI; choose another with --port")


class Server:
    """ComfyUI as a process of its own, with `base` as its base directory. Use it in a `with` statement."""

    def __init__(
        self, base: Path, *, cpu: bool = True, port: int | None = None, output: Path | None = None
    ) -> None:
        self.base = base
        self.log = base / "server.log"
        self.output = output or base / "output"
        self.url = f"http://127.0.0.1:{port or free_port()}"
        self.client = Client(self.url)
        self.arguments = ["--cpu"] if cpu else []
        self.arguments += ["--output-directory", str(output)] if output else []
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait for its answer.

        SetupError if the port is in use, or with the end of the log if no answer comes.
        """
        port = self.url.rsplit(":", 1)[1]
        require_free_port(int(port))
        prepare_base(self.base)
        command = [environment_program("python"), "-s", comfyui_dir() / "main.py", "--listen", "127.0.0.1"]
        command += ["--port", port, "--base-directory", str(self.base)]
        command += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes", "--disable-auto-launch"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *self.arguments],
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_environment(),
            )
        answers = False
        try:
            answers = self.is_up_in_time(self.process)
        finally:
            if not answers:
                self.stop()
        if not answers:
            raise SetupError(f"ComfyUI did not start; the end of {self.log}:\n{self.log_tail()}")

    def is_up_in_time(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the first answer; False if the process ended or took too long."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and process.poll() is None:
            try:
                self.client.get("/system_stats")
            except (OSError, HTTPException, ValueError):  # nobody yet, or something that is no ComfyUI
                time.sleep(0.2)
            else:
                return True
        return False

    def log_tail(self, lines: int = 40) -> str:
        """The last lines the server wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """End the process, by force if it does not go."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


def has_gpu() -> bool:
    """Whether the environment's torch sees an accelerator that ComfyUI uses by itself."""
    code = "import sys, torch; sys.exit(not (torch.cuda.is_available() or torch.backends.mps.is_available()))"
    return subprocess.run([environment_program("python"), "-c", code], capture_output=True).returncode == 0

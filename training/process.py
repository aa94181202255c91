"""The training process: reads a run folder, trains, and says what happens as JSON lines."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .events import Event, event_line
from .families import load_family
from .memory import is_out_of_memory, measured_plan
from .metrics import MetricsFile
from .run_file import CANCEL, HEARTBEAT, MEMORY_RAN_OUT, RunFile, read_run_file, run_lock
from .session import Session
from .team import Team
from .trainer import DivergedError, RunFolder, Trainer

log = logging.getLogger("dreamomni")

EXIT_OUT_OF_MEMORY = 75
EXIT_REFUSED = 65
EXIT_DIVERGED = 66
HEARTBEAT_LIMIT = 60.0
SECOND_LOOK = 10.0
"""Seconds after which an old heartbeat counts: where a computer slept, the owner wakes up and beats first."""
USER_ERRORS = (ValueError, OSError, ImportError, NotImplementedError)


def chosen_device(name: str, rank: int) -> torch.device:
    """The device of this process; ValueError when the run asks for CUDA and there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                "this run wants a CUDA device and PyTorch finds none; check the driver with nvidia-smi. "
                "Started from ComfyUI: restart ComfyUI, which then looks for the device anew. Started with "
                "`dev.py train-small`: add --device cpu"
            )
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device(name)


class Talk:
    """Events to the diary on disk and, line by line, to whoever started the process.

    A full disk or a listener who is gone costs events and never the run: a checkpoint is worth more.
    """

    def __init__(self, folder: Path, is_main: bool) -> None:
        self._file = MetricsFile(folder) if is_main else None
        self._disk_failed = False

    def __call__(self, event: Event) -> None:
        """Send one event with the time of day."""
        if self._file is None:
            return
        timed = event.copy()
        timed["time"] = round(time.time(), 3)
        self._keep(self._file, timed)
        try:
            sys.stdout.write(event_line(timed))
            sys.stdout.flush()
        except OSError:  # ComfyUI died: its heartbeat, which grows old, ends the run with a checkpoint
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (libraries print too, until the process ends)

    def _keep(self, diary: MetricsFile, event: Event) -> None:
        try:
            diary.append(event)
        except OSError as error:
            if not self._disk_failed:
                log.warning("the diary cannot be written, the run goes on without it: %s", error)
            self._disk_failed = True
        else:
            self._disk_failed = False

    def close(self) -> None:
        """Close the diary."""
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError as error:  # what a full disk still holds back
            log.warning("the end of the diary is lost: %s", error)


class Owner:
    """Whoever started the process; alive as long as the heartbeat file is touched."""

    def __init__(self, heartbeat: Path) -> None:
        self._heartbeat = heartbeat
        self._suspected: tuple[float, float] | None = None

    def is_gone(self) -> bool:
        """Whether the heartbeat is missing, or too old at two looks with SECOND_LOOK between them."""
        try:
            beat = self._heartbeat.stat().st_mtime
        except FileNotFoundError:
            return True
        if time.time() - beat <= HEARTBEAT_LIMIT:
            self._suspected = None
            return False
        now = time.monotonic()
        if self._suspected is None or self._suspected[0] != beat:
            self._suspected = beat, now
        return now - self._suspected[1] > SECOND_LOOK


def cancel_watch(folder: Path, watch_parent: bool) -> Callable[[], bool]:
    """A function that tells whether to stop: cancel file, SIGTERM, or a parent that is gone."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    owner = Owner(folder / HEARTBEAT)

    def cancelled() -> bool:
        return bool(asked) or (folder / CANCEL).exists() or (watch_parent and owner.is_gone())

    return cancelled


def train(folder: Path, run: RunFile, team: Team, talk: Talk) -> int:
    """Load the network and train; the exit code."""
    place = RunFolder(folder=folder, cache=Path(run.cache))
    session = None
    try:
        session = Session(run.config, load_family(run.config.family), chosen_device(run.device, team.rank))
        talk({"event": "plan", "step": 0, "text": memory_plan(session, place)})
        cancelled = cancel_watch(folder, run.watch_parent)
        Trainer(session, place, team, talk, cancelled, run.base_hashes).run()
    except DivergedError as error:
        talk({"event": "error", "step": step_of(session), "message": str(error)})
        return EXIT_DIVERGED
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        (folder / MEMORY_RAN_OUT).touch()
        talk({"event": "out_of_memory", "step": step_of(session), "message": str(error)[:500]})
        return EXIT_OUT_OF_MEMORY
    return 0


def step_of(session: Session | None) -> int:
    """How far a run came; 0 where it was not even loaded."""
    return session.step if session is not None else 0


def memory_plan(session: Session, place: RunFolder) -> str:
    """The plan for the largest sample of any stage, in words."""
    tokens = 0
    for resolution in {stage.resolution for stage in session.config.stages}:
        samples = place.open_samples(resolution)
        samples.close()
        tokens = max(tokens, session.family.largest_sample(samples, session.config))
    return measured_plan(session, tokens)


def main(folder: Path) -> int:
    """Train the run in `folder`; 0 when it finished, was cancelled or stopped early."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    run = read_run_file(folder)
    team = Team.joined(cpu=run.device == "cpu")
    lock = None
    talk = Talk(folder, team.is_main)
    try:
        lock = run_lock(folder) if team.is_main else None
        return train(folder, run, team, talk)
    except USER_ERRORS as error:
        log.exception("training stopped")
        talk({"event": "error", "step": 0, "message": str(error)})
        return EXIT_REFUSED
    finally:
        talk.close()
        if lock is not None:
            lock.release()

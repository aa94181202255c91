"""Starts the training process, reads what it says, cancels it, and starts it again with less memory."""

from __future__ import annotations

import dataclasses
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import IO

from ..dit.whole_files import PARTIAL
from .checkpoint import checkpoint_steps
from .config import RunConfig
from .encode import read_manifest
from .events import Event, Heard, Ladder, event_of
from .families import load_family
from .interpreter import same_python
from .ladder import laddered, remember_rung
from .memory import next_rung
from .metrics import MetricsFile
from .process import EXIT_OUT_OF_MEMORY, chosen_device
from .run_file import CANCEL, HEARTBEAT, LOG, MEMORY_RAN_OUT, RunFile
from .trainer import CHECKPOINTS, EXPORTS, RunFolder

WORKER = Path(__file__).with_name("worker.py")
IDLE_SECONDS = 0.5
CANCEL_SECONDS = 120.0
RANKS_SECONDS = 35.0
"""How long a launcher may take to end its processes: it kills those that are left after 30 seconds."""
BEAT_SECONDS = 5.0
MAX_RESTARTS = 3
TAIL_CHARACTERS = 5000
STOPPED_ITSELF = (
    "the training process stopped at step {step} without being asked from here: it was told to end, or heard "
    "nothing of ComfyUI for a minute. Queue the run again: it goes on from there."
)
LOG_START = "=== process started "
CRASH = "Fatal Python error"


class TrainingError(RuntimeError):
    """The training process failed; the message holds its last words."""


class Worker:
    """One training process; use as a context manager so that it never outlives its owner."""

    def __init__(
        self,
        folder: Path,
        num_processes: int = 1,
        environment: Mapping[str, str] | None = None,
        on_cpu: bool = False,
    ) -> None:
        self.folder, self.num_processes, self.on_cpu = folder, num_processes, on_cpu
        self.python, inherited = same_python()
        self.environment = {**inherited, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.process: subprocess.Popen[str] | None = None

    def command(self) -> list[str]:
        """The command line: this interpreter, with a launcher in front for several processes."""
        number, launcher = str(self.num_processes), []
        if self.num_processes > 1 and self.on_cpu:
            # `accelerate launch --cpu` starts one process, whatever number it is given.
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", number]
        elif self.num_processes > 1:
            launcher = ["-m", "accelerate.commands.launch", "--num_processes", number, "--multi_gpu"]
            launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
            launcher += ["--main_process_port", "0"]
        return [*self.python, *launcher, str(WORKER), str(self.folder)]

    def __enter__(self) -> Worker:
        self.folder.mkdir(parents=True, exist_ok=True)
        for mark in (CANCEL, MEMORY_RAN_OUT):
            (self.folder / mark).unlink(missing_ok=True)
        self.beat()
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(f"{LOG_START}{time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            log.flush()
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=self.environment,
                start_new_session=os.name != "nt",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        assert self.process.stdout is not None
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()
        threading.Thread(target=self._beat, args=(self.process,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put(None)

    def _beat(self, process: subprocess.Popen[str]) -> None:
        """Also while the owner is busy for minutes, as with decoding a sample on a CPU."""
        while process.poll() is None:
            self.beat()
            time.sleep(BEAT_SECONDS)

    def beat(self) -> None:
        """Tell the process that its owner is alive."""
        (self.folder / HEARTBEAT).touch()

    def events(self) -> Iterator[Event | None]:
        """Events as they come; None at least twice a second while there is nothing new."""
        while True:
            self.beat()
            try:
                line = self._lines.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                yield None
                continue
            if line is None:
                return
            event = event_of(line)
            if event is not None:
                yield event

    def wait(self) -> int:
        """The exit code, once the process is gone."""
        assert self.process is not None
        return self.process.wait()

    def cancel(self) -> None:
        """Ask for a checkpoint and an end; kill the process group when that comes to a halt.

        A large checkpoint takes minutes: the time begins anew whenever something more of it is written.
        """
        (self.folder / CANCEL).touch()
        written, limit = half_written(self.folder), time.monotonic() + CANCEL_SECONDS
        while self.process is not None and self.process.poll() is None:
            self.beat()
            before, written = written, half_written(self.folder)
            if written != before:
                limit = time.monotonic() + CANCEL_SECONDS
            elif time.monotonic() > limit:
                self.stop()
                return
            time.sleep(0.05)

    def stop(self) -> None:
        """Kill the process and its children."""
        assert self.process is not None
        if os.name == "nt":
            tree = ["taskkill", "/T", "/F", "/PID", str(self.process.pid)]
            subprocess.run(tree, capture_output=True, check=False)
            self.process.kill()
        else:
            if self.num_processes > 1:
                self.end_ranks()
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end_ranks(self) -> None:
        """Have the launcher end its processes: each has a session of its own, out of our signals' reach."""
        assert self.process is not None
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(RANKS_SECONDS)


def half_written(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of all that a run is writing but has not finished."""
    found = {}
    for place in (CHECKPOINTS, EXPORTS):
        with suppress(FileNotFoundError):  # finished while we look
            for partial in (folder / place).glob(f"{PARTIAL}*"):
                for path in (partial, *partial.rglob("*")):
                    status = path.stat()
                    found[path] = (status.st_size, status.st_mtime_ns)
    return found


def log_tail(folder: Path) -> str:
    """The end of what the newest process wrote to stderr."""
    path = folder / LOG
    if not path.is_file():
        return ""
    _, mark, written = path.read_text(encoding="utf-8", errors="replace").rpartition(LOG_START)
    lines = (written.partition("\n")[2] if mark else written).splitlines(keepends=True)
    # Python ends the report of a crash with a list of all libraries, longer than all that matters.
    text = "".join(line for line in lines if not line.startswith("Extension modules:"))
    tail = text[-TAIL_CHARACTERS:]
    crashes = [line for line in lines if line.startswith(CRASH)]
    # It begins with what happened, and the stacks of a dozen threads come after that.
    return tail if not crashes or crashes[-1] in tail else f"{crashes[-1]}...\n{tail}"


def crash_words(code: int, folder: Path) -> str:
    """How a process ended that did not say so itself, its last line, and from where the run goes on."""
    lines = log_tail(folder).strip().splitlines()
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
        how = f"was killed by signal {-code} ({name})"
        if name == "SIGKILL":
            how += ", which is what the system does when memory runs out"
    else:
        how = f"ended with code {code}" + (f": {lines[-1]}" if lines else "")
    steps = checkpoint_steps(folder / CHECKPOINTS)
    kept = f"from step {steps[-1]}, its last checkpoint" if steps else "from the start: no checkpoint yet"
    return f"the training process {how}. ComfyUI is not touched; queue the run again and it goes on {kept}."


def run_once(run: RunFile, folder: Path, heard: Heard, processes: int = 1) -> int:
    """Train until the process ends; its exit code. What `heard` raises cancels the run first."""
    if run.device == "auto":  # processes meet in another way on a CPU, so it is known before they start
        run = dataclasses.replace(run, device=chosen_device("auto", rank=0).type)
    run.write(folder)
    with Worker(folder, processes, on_cpu=run.device == "cpu") as worker:
        done = False
        try:
            for event in worker.events():
                heard(event)
            done = True
        finally:
            if not done:
                worker.cancel()
        return worker.wait()


def has_references(run: RunFile, config: RunConfig, folder: Path) -> bool:
    """Whether any encoded sample has a picture whose size `config.reference_resolution` may decide."""
    manifest = RunFolder(folder=folder, cache=Path(run.cache)).manifest(config.stages[-1].resolution)
    if not manifest.is_file():  # drawn while training, at sizes of their own
        return False
    follows = load_family(config.family).encode_plan(config).source_follows_target
    return any(len(entry.references) > (follows and entry.has_source) for entry in read_manifest(manifest))


def ladder_event(folder: Path, restart: int, gave_up: str) -> Ladder:
    """What memory was given up, at the step from which the run goes on."""
    step = (checkpoint_steps(folder / CHECKPOINTS) or [0])[-1]
    return {"event": "ladder", "step": step, "restart": restart, "message": f"out of memory: {gave_up}"}


def write_down(folder: Path, event: Event) -> None:
    """Add an event to the run's diary, which no process of the run has open now."""
    with closing(MetricsFile(folder)) as diary:
        diary.append(event)


def run_with_ladder(
    run: RunFile,
    folder: Path,
    *,
    encode: Callable[[RunConfig], None],
    heard: Heard,
    start: Callable[..., int] = run_once,
    processes: int = 1,
) -> RunConfig:
    """Train; when memory runs out, give up the next thing and go on from the last checkpoint, thrice at most.

    `encode` fills the cache for a config before each start. Returns the config of the start that ended well;
    raises TrainingError with the last words of the process otherwise.
    """
    spoken: list[str] = []

    def listen(event: Event | None) -> None:
        if event is not None and event["event"] in ("error", "out_of_memory"):
            spoken.append(event.get("message", ""))
        if event is not None and event["event"] == "cancelled":  # not by us: our cancel leaves `start`
            spoken.append(STOPPED_ITSELF.format(step=event["step"]))
        heard(event)

    config = laddered(run.config, folder)
    for attempt in range(MAX_RESTARTS + 1):
        encode(config)
        spoken.clear()
        code = start(dataclasses.replace(run, config=config), folder, listen, processes)
        if code == 0 and not spoken:
            return config
        # A launcher of several processes has an exit code of its own; any of them may have run out.
        ran_out = code == EXIT_OUT_OF_MEMORY or (folder / MEMORY_RAN_OUT).is_file()
        goes_on = ran_out and attempt < MAX_RESTARTS
        rung = next_rung(config, has_references(run, config, folder)) if goes_on else None
        if rung is None:
            words = spoken[-1] if spoken else crash_words(code, folder)
            raise TrainingError(f"{words}\n\nEnd of {folder / LOG}:\n{log_tail(folder)}")
        config, gave_up = rung
        remember_rung(folder, config, gave_up)
        event = ladder_event(folder, attempt + 1, gave_up)
        write_down(folder, event)
        heard(event)
    raise AssertionError("the loop returns or raises")

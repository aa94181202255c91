"""Runs the worker processes of a dataset and gathers what they tell."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from ..interpreter import same_python
from .generate import Job

WORKER = Path(__file__).with_name("worker.py")
POLL = 0.25
"""Seconds between looks at the user's wish to stop."""

THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def start_worker(job: Job, parts: list[int]) -> subprocess.Popen[str]:
    """One worker for some parts, with one thread of its own."""
    python, environment = same_python()
    process = subprocess.Popen(
        [*python, str(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, **dict.fromkeys(THREAD_LIMITS, "1")},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"job": job.to_json(), "parts": parts}) + "\n")
    process.stdin.close()
    return process


def listen(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    """Pass a worker's lines on, and None when it has ended."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def raise_failure(line: dict[str, str]) -> None:
    """The worker's own error in this process."""
    if line["kind"] == "ValueError":
        raise ValueError(line["error"])
    raise OSError(line["error"])


def run_processes(job: Job, todo: list[int], count: int, report: Callable[[int], None]) -> None:
    """Share `todo` among `count` workers; `report` gets the number of samples made and may raise to stop.

    All workers have ended when this returns or raises. Raises what a worker raised, or RuntimeError with the
    end of its output if one died.
    """
    lines: queue.Queue[str | None] = queue.Queue()
    workers = [start_worker(job, todo[number::count]) for number in range(count)]
    listeners = [threading.Thread(target=listen, args=(worker, lines), daemon=True) for worker in workers]
    try:
        for listener in listeners:
            listener.start()
        made, running = 0, count
        while running:
            try:
                line = lines.get(timeout=POLL)
            except queue.Empty:
                report(made)
                continue
            if line is None:
                running -= 1
                continue
            told = json.loads(line)
            if "error" in told:
                raise_failure(told)
            made += told["samples"]
            report(made)
    finally:
        stop(workers)
    for worker in workers:
        if worker.returncode:
            assert worker.stderr is not None
            raise RuntimeError(f"a worker ended with code {worker.returncode}: {worker.stderr.read()[-800:]}")


def stop(workers: list[subprocess.Popen[str]]) -> None:
    """End the workers that still run and wait for all; what they were writing stays unfinished."""
    for worker in workers:
        if worker.poll() is None and worker.stdout is not None and not worker.stdout.closed:
            try:
                worker.wait(timeout=POLL)
            except subprocess.TimeoutExpired:
                worker.terminate()
    for worker in workers:
        worker.wait()

"""Processes that answer to nothing are ended, with all that a launcher has started for them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from pack.training import launch
from pack.training.launch import Worker

HANGS = """
import os, signal, sys, time
from pathlib import Path
# As the training process does, which looks between two steps whether it was asked.
signal.signal(signal.SIGTERM, lambda number, frame: None)
(Path(sys.argv[1]) / f"rank-{os.environ['RANK']}").write_text(str(os.getpid()))
while True:
    time.sleep(1)
"""


def is_alive(pid: int) -> bool:
    """Whether a process of that number runs; a dead one that nobody has waited for does not."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_no_process_of_several_that_hang_outlives_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "hangs.py"
    script.write_text(HANGS)
    monkeypatch.setattr(launch, "WORKER", script)
    monkeypatch.setattr(launch, "CANCEL_SECONDS", 0.2)
    folder = tmp_path / "run"
    with Worker(folder, 2, {"OMP_NUM_THREADS": "1"}, on_cpu=True) as worker:
        while len(told := [path.read_text() for path in folder.glob("rank-*")]) < 2 or not all(told):
            assert worker.process.poll() is None, (folder / "worker.log").read_text()[-1500:]
            time.sleep(0.2)
        ranks = [int(text) for text in told]
        assert all(os.getpgid(rank) != worker.process.pid for rank in ranks)
        worker.cancel()
    assert worker.process.returncode is not None
    assert not any(is_alive(rank) for rank in ranks)

"""Where training runs lie and what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ..training.checkpoint import checkpoint_steps
from ..training.config import check_run_name
from ..training.trainer import CHECKPOINTS

RUNS, CACHE = ("dreamomni", "training"), ("dreamomni", "training-cache")
CONTINUE, FRESH = "continue if it exists", "new run only"


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What travels on a DREAMOMNI_RUN wire: where a run lies; everything else is read from its folder."""

    folder: Path


def runs_root() -> Path:
    """Folder of all runs, below ComfyUI's output."""
    return Path(folder_paths.get_output_directory(), *RUNS)


def cache_root() -> Path:
    """Folder of what all runs have encoded, below ComfyUI's output."""
    return Path(folder_paths.get_output_directory(), *CACHE)


def resumable_runs() -> list[str]:
    """Names of runs with a checkpoint, newest first."""
    root = runs_root()
    if not root.is_dir():
        return []
    found = [entry for entry in root.iterdir() if checkpoint_steps(entry / CHECKPOINTS)]
    return [
        entry.name for entry in sorted(found, key=lambda e: (e / CHECKPOINTS).stat().st_mtime, reverse=True)
    ]


def resume_choices() -> list[str]:
    """What the resume widget offers."""
    return [CONTINUE, FRESH, *resumable_runs()]


def chosen_name(run_name: str, resume: str) -> str:
    """The run to start or continue; ValueError for a name that is none or is taken."""
    name = check_run_name(run_name if resume in (CONTINUE, FRESH) else resume)
    steps = checkpoint_steps(runs_root() / name / CHECKPOINTS)
    if resume == FRESH and steps:
        raise ValueError(
            f"a run called {name!r} exists and stands at step {steps[-1]}; choose {CONTINUE!r} to go on with "
            "it, or another run_name"
        )
    if resume not in (CONTINUE, FRESH) and not steps:
        raise ValueError(f"no run called {name!r} can be continued; there are: {', '.join(resumable_runs())}")
    return name

"""What a finished run leaves in ComfyUI's model folders."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import folder_paths

from ..dit.dreamomni.storage import CONFIG, read_json
from ..dit.whole_files import copy_finished, whole_file, write_text
from ..training.checkpoint import checkpoint_steps
from ..training.config import check_run_name
from ..training.files import whole_folder, write_json
from ..training.trainer import CHECKPOINTS, EXPORTS
from .fingerprints import UNKNOWN
from .own_writes import OWN_WRITES
from .training_folders import CONTINUE, FRESH, TrainingRun, runs_root

log = logging.getLogger("dreamomni")
PUBLISHED = "published.json"
"""In the folder of a run: the files that it has written into its folder of models so far.

An earlier version told the names at its top alone; a folder among them is the run's as a whole.
"""


def best_export(folder: Path) -> Path:
    """The export with the lowest held-out loss, else the last one; FileNotFoundError when there is none."""
    for name in ("best.safetensors", "best", "last.safetensors", "last"):
        if (folder / EXPORTS / name).exists():
            return folder / EXPORTS / name
    raise FileNotFoundError(f"the run {folder.name!r} has saved no weights yet")


def publish_lora(run: TrainingRun) -> str:
    """Copy the finished LoRA into models/loras; its name as LoRA loaders list it."""
    name = lora_name(run.folder.name)
    target = published_folder("loras", name)
    source = best_export(run.folder)
    try:
        copy_file(source, target)
    except PermissionError as error:
        raise PermissionError(f"{error} The run is finished, its LoRA is kept as {source}.") from error
    OWN_WRITES.wrote(target)
    return name


def lora_name(run: str) -> str:
    """Where a run leaves its LoRA, below models/loras and as LoRA loaders list it."""
    return str(Path("dreamomni") / f"{run}.safetensors")


def published_folder(key: str, name: str) -> Path:
    """models/<key>/<name>, where a run of that name leaves its result."""
    return Path(folder_paths.get_folder_paths(key)[0]) / name


def require_free(key: str, name: str, run: str | None = None) -> None:
    """Raise ValueError when a new run would put its result in the place of somebody else's model.

    `name` is that result's place below models/<key>; the run is called the same unless `run` is given.
    """
    target = published_folder(key, name)
    if target.exists() and not checkpoint_steps(runs_root() / (run or name) / CHECKPOINTS):
        raise ValueError(
            f"models/{key}/{name} exists and no run of that name made it; choose another run_name, or move "
            "it away"
        )


def publish_folder(run: TrainingRun, key: str, make: Callable[[Path], object]) -> str:
    """Have `make` write the new folder that becomes models/<key>/<run name>; that name.

    What users have put into an older one or its subfolders stays. What the run has written there itself goes:
    weights that are cut into other files this time would else be found beside the new ones.
    """
    target, record = published_folder(key, run.folder.name), run.folder / PUBLISHED
    ours: list[str] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else []
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(target, keep=True, ours=ours) as partial:
        make(partial)
        files = [path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file()]
        write_json(record, sorted({*files, *(name for name in ours if not (partial / name).is_dir())}))
    OWN_WRITES.wrote(target)
    return target.name


def publish_export(run: TrainingRun, key: str) -> str:
    """Copy an exported folder to models/<key>/<run name>; that name."""
    return publish_folder(run, key, lambda folder: copy_finished(best_export(run.folder), folder))


def publish_network(run: TrainingRun) -> str:
    """Copy an exported DreamOmni folder to models/dreamomni/<run name>; that name."""
    older = published_folder("dreamomni", run.folder.name)

    def make(folder: Path) -> None:
        copy_finished(best_export(run.folder), folder)
        keep_vae_name(older, folder)

    return publish_folder(run, "dreamomni", make)


def result_state(key: str, run_name: str | None, resume: str | None = CONTINUE) -> str:
    """Changes when others delete or replace the result of a training node below models/<key>."""
    name = run_name if resume in (CONTINUE, FRESH) else resume
    try:
        result = check_run_name(name or "")
    except ValueError:  # linked, or no name, which is told when the node runs
        return UNKNOWN
    return str(OWN_WRITES.changes(published_folder(key, lora_name(result) if key == "loras" else result)))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file so that the target is never half there."""
    with whole_file(target) as partial:
        shutil.copyfile(source, partial)


def keep_vae_name(older: Path, newer: Path) -> None:
    """Where the newer folder brings no VAE, its config.json names the one that the older's does."""
    if not (older / CONFIG).is_file():
        return
    told = read_json(newer / CONFIG)
    if (newer / told["vae"]).exists():
        return
    try:
        name = read_json(older / CONFIG).get("vae", told["vae"])
    except ValueError as error:  # nothing could open that folder; the new one is whole
        log.warning("%s; it is written anew. If it named a VAE, name it again.", error)
        return
    if name != told["vae"]:
        write_text(newer / CONFIG, json.dumps(told | {"vae": name}, indent=2))

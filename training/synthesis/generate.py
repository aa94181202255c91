"""Writes a whole synthetic dataset: parts in parallel, resumable, one recipe for each folder."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ...dit.whole_files import OLD_SUFFIX, PARTIAL, clear_partial_files, write_text
from ..datasets.shards import INDEX_SUFFIX
from ..locks import folder_lock
from .config import SynthesisConfig
from .edges import edge_detector
from .samples import Sample, Synthesizer
from .scene import to_json
from .writers import FORMATS, WRITERS, FolderWriter

log = logging.getLogger("dreamomni")

MANIFEST = "dataset.json"
LOCK = ".lock"
VERSION = 4
"""Raised when the same recipe gives other pictures than before."""

Report = Callable[[int, Sample | None], None]
"""Called with the number of finished samples and, where one is at hand, the last one; may raise to stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A dataset to be written."""

    folder: Path
    config: SynthesisConfig
    count: int
    format: str = "shards"
    part_size: int = 256
    """Samples of one shard, the unit that is lost by a crash."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if self.part_size < 1:
            raise ValueError(f"part_size must be at least 1, got {self.part_size}")
        if self.format not in FORMATS:
            raise ValueError(f"there is no format {self.format!r}; allowed are {', '.join(FORMATS)}")

    @property
    def parts(self) -> int:
        """How many parts the dataset has."""
        return -(-self.count // self.part_size)

    def indices(self, part: int) -> range:
        """The samples of a part."""
        return range(part * self.part_size, min((part + 1) * self.part_size, self.count))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, for the worker processes."""
        return to_json(self) | {"folder": str(self.folder)}


def config_from_json(data: dict[str, Any]) -> SynthesisConfig:
    """The recipe that `to_json` wrote."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
    }
    values["tasks"] = tuple((task, weight) for task, weight in data["tasks"])
    return SynthesisConfig(**values)


def job_from_json(data: dict[str, Any]) -> Job:
    """The job that `Job.to_json` wrote."""
    values: dict[str, Any] = dict(data)
    values["folder"], values["config"] = Path(data["folder"]), config_from_json(data["config"])
    return Job(**values)


def manifest_of(job: Job, material: str, tasks: Collection[str]) -> dict[str, Any]:
    """What must be equal for a folder to be continued; the count may grow.

    `tasks` are those that can be made here: with `all` they depend on what is installed.
    """
    edges = {"edge_detector": edge_detector()} if "control_canny" in tasks else {}
    return {
        "version": VERSION,
        "format": job.format,
        "part_size": job.part_size,
        "material": material,
        "usable_tasks": list(tasks),
        **edges,
        "recipe": to_json(job.config),
    }


def require_own_folder(folder: Path) -> None:
    """Raise ValueError for a folder that holds something else than a dataset of this pack."""
    if (folder / MANIFEST).is_file() or not folder.is_dir():
        return
    # A process that was killed while it wrote the manifest, the first file, left half of it.
    left = {LOCK, MANIFEST + OLD_SUFFIX}
    if any(entry.name not in left and not entry.name.startswith(PARTIAL) for entry in folder.iterdir()):
        raise ValueError(
            f"{folder} is not empty and holds no dataset of this pack. Choose another name or empty it."
        )


def dataset_lock(folder: Path) -> FileLock:
    """The acquired lock of a dataset; BlockingIOError when another process writes in this folder."""
    return folder_lock(folder, LOCK, "writing the dataset")


def prepare(job: Job, material: str, tasks: Collection[str]) -> list[int]:
    """Make or check the folder, clear what a killed run left; returns the parts that are still to do.

    `material` is the fingerprint of the user's stickers and photos, `tasks` are those that can be made.
    Raises ValueError if the folder holds another dataset.
    """
    manifest, path = manifest_of(job, material, tasks), job.folder / MANIFEST
    require_own_folder(job.folder)
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if found is not None and has_parts(job.folder):
        require_same(found, manifest, job.folder)
    if found != manifest:
        # Equal ones are left alone: a changed file would make ComfyUI run all that follows again.
        write_text(path, json.dumps(manifest, indent=1))
    drop_beyond(job)
    clear_leftovers(job.folder)
    writer = WRITERS[job.format](job.folder)
    return [part for part in range(job.parts) if not is_complete(writer.final(part), job.indices(part))]


def require_same(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """Raise ValueError, naming what differs, unless both manifests agree."""
    if found == wanted:
        return
    recipe, other = found.get("recipe", {}), wanted["recipe"]
    names = [name for name in wanted if name != "recipe" and found.get(name) != wanted[name]]
    names += [name for name in other if recipe.get(name) != other[name]]
    raise ValueError(
        f"{folder} holds a dataset made with other settings ({', '.join(names) or 'an older version'}). "
        "Choose another name, or use the old settings to go on with it."
    )


def is_complete(final: Path, indices: range) -> bool:
    """Whether a part is finished up to its last sample; a shorter last part of an earlier run is not.

    Lines that the user took out of the middle of a list stay out.
    """
    if not final.is_file():
        return False
    if final.suffix == ".tar":
        index = final.with_name(final.name + INDEX_SUFFIX)
        return index.is_file() and index.stat().st_size == 8 * len(indices)
    return last_id(final) == f"{indices[-1]:08d}"


def last_id(lines: Path) -> str | None:
    """The id of the last sample of a list, None where that line cannot be read."""
    try:
        last = json.loads(lines.read_text(encoding="utf-8").rstrip().rpartition("\n")[2])
    except ValueError:
        return None
    return last.get("id") if isinstance(last, dict) else None


def part_number(path: Path) -> int | None:
    """The number of the part that a file or a picture folder belongs to; None for somebody else's."""
    digits = path.stem.rpartition("-")[2]
    return int(digits) if digits.isascii() and digits.isdecimal() else None


def finished_parts(folder: Path, form: str) -> dict[int, Path]:
    """Number -> file of the parts of one format that are written."""
    found = folder.glob(WRITERS[form](folder).final(0).name.replace("000000", "*"))
    numbered = ((part_number(path), path) for path in found)
    return {number: path for number, path in numbered if number is not None}


def has_parts(folder: Path) -> bool:
    """Whether a part of any format is finished."""
    return any(finished_parts(folder, form) for form in FORMATS)


def drop_beyond(job: Job) -> None:
    """Remove parts of an earlier, larger run, so that the folder holds `count` samples."""
    for number, final in finished_parts(job.folder, job.format).items():
        if number >= job.parts:
            final.unlink()


def clear_leftovers(folder: Path) -> None:
    """Remove what belongs to no finished part: half files, lone indices and lone picture folders."""
    clear_partial_files(folder)
    for index in folder.glob(f"*{INDEX_SUFFIX}"):
        if not index.with_name(index.name.removesuffix(INDEX_SUFFIX)).is_file():
            index.unlink()
    for place in folder.glob("pictures/*/"):
        number = part_number(place)
        if number is not None and not FolderWriter(folder).final(number).is_file():
            shutil.rmtree(place)


def write_part(job: Job, synthesizer: Synthesizer, part: int, report: Report, done: int) -> int:
    """Draw and write one part; returns the number of finished samples, `done` before it."""

    def samples() -> Iterator[Sample]:
        for place, index in enumerate(job.indices(part)):
            sample = synthesizer.sample(index)
            yield sample
            report(done + place + 1, sample)

    WRITERS[job.format](job.folder).write(part, samples())
    return done + len(job.indices(part))


def generate(job: Job, processes: int = 1, report: Report = lambda done, sample: None) -> Path:
    """Write the dataset, or what is missing of it, and return its folder.

    The bytes do not depend on the number of processes. Raises ValueError for a folder of another dataset,
    BlockingIOError while another process writes it and OSError, with all finished parts intact, if the disk
    is full.
    """
    synthesizer = Synthesizer(job.config)
    if not has_parts(job.folder):
        synthesizer.library.check_stickers(lambda: report(0, None))
    require_own_folder(job.folder)  # nothing is put into somebody else's, not even a lock
    with dataset_lock(job.folder):
        write_missing(job, synthesizer, processes, report)
    return job.folder


def write_missing(job: Job, synthesizer: Synthesizer, processes: int, report: Report) -> None:
    """Write the parts that are not there yet; the folder's lock is held."""
    todo = prepare(job, synthesizer.library.fingerprint(), synthesizer.weights)
    finished = job.count - sum(len(job.indices(part)) for part in todo)
    if todo:
        log.info("writing %d of %d samples to %s", job.count - finished, job.count, job.folder)
    report(finished, None)
    if processes > 1 and len(todo) > 1:
        from .processes import run_processes

        try:
            run_processes(job, todo, min(processes, len(todo)), lambda count: report(finished + count, None))
        finally:
            clear_leftovers(job.folder)
        return
    for part in todo:
        finished = write_part(job, synthesizer, part, report, finished)

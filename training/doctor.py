"""Looks a dataset over before any heavy work: what would waste a night is said in a second."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from ..dit.references import MAX_REFERENCES
from .dataset import EditDataset, EditSample
from .encode import chosen_indices

SMALLEST_SIDE = 32
LARGEST_ASPECT = 8.0
SHOWN = 3


@dataclass(slots=True)
class Diagnosis:
    """`faults` stop a run, `warnings` do not; each is a sentence with the samples it is about."""

    samples: int = 0
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Everything found, as lines."""
        lines = [f"{self.samples} samples looked over"]
        lines += [f"fault: {words}" for words in self.faults] + [f"note: {words}" for words in self.warnings]
        return "\n".join(lines)

    def require_healthy(self) -> None:
        """Raise ValueError when a fault was found."""
        if self.faults:
            raise ValueError("the dataset cannot be trained on:\n" + "\n".join(self.faults))


def pixels_hash(image: Image.Image) -> str:
    """Equal for equal pixels."""
    return hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()


def named(ids: list[str]) -> str:
    """The first few ids and how many more."""
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more


def examine(dataset: EditDataset, task: str, report: Callable[[int, int], None]) -> Diagnosis:
    """Read every sample of the task once; `report(done, total)` may raise to cancel."""
    chosen = chosen_indices(dataset, task, lambda: report(0, len(dataset)))
    found: dict[str, list[str]] = defaultdict(list)
    targets: dict[str, list[str]] = defaultdict(list)
    sources: dict[str, list[str]] = defaultdict(list)
    ids: Counter[str] = Counter()
    for done, index in enumerate(chosen):
        report(done, len(chosen))
        try:
            sample = dataset[index]
        except (OSError, ValueError) as error:
            found["unreadable"].append(f"{dataset.record(index).id} ({error})")
            continue
        ids[sample.id] += 1
        target = pixels_hash(sample.target)
        targets[target].append(sample.id)
        if sample.source is not None:
            sources[pixels_hash(sample.source)].append(sample.id)
        examine_sample(sample, target, found)
    found["doubled id"] = [name for name, count in ids.items() if count > 1]
    return diagnosis(len(chosen), found, targets, sources)


def examine_sample(sample: EditSample, target: str, found: dict[str, list[str]]) -> None:
    """Note what is wrong with one sample under the name of its fault."""
    if not sample.instruction.strip():
        found["empty caption"].append(sample.id)
    pictures = [*([sample.source] if sample.source else []), *sample.references]
    hashes = [pixels_hash(picture) for picture in pictures]
    if sample.source is not None and hashes[0] == target:
        found["target is the source"].append(sample.id)
    elif target in hashes:
        found["target is a reference"].append(sample.id)
    if len(set(hashes)) < len(hashes):
        found["same picture twice"].append(sample.id)
    if len(pictures) > MAX_REFERENCES:
        found["too many pictures"].append(sample.id)
    if sample.source is not None and aspect_off(sample.source, sample.target):
        found["source shaped unlike target"].append(sample.id)
    for picture in (sample.target, *pictures):
        if min(picture.size) < SMALLEST_SIDE:
            found["too small"].append(sample.id)
        if max(picture.size) > LARGEST_ASPECT * min(picture.size):
            found["too long"].append(sample.id)


def aspect_off(source: Image.Image, target: Image.Image) -> bool:
    """Whether the first picture of an edit is shaped unlike its target: often a wrong order of pictures."""
    ratio = source.width / source.height * target.height / target.width
    return not 0.8 <= ratio <= 1.25


FAULTS = {
    "unreadable": "cannot be read: {}",
    "empty caption": "no instruction: {}. Write what the edit does, or remove the samples",
    "target is the source": "source and target are the same picture: {}. Nothing can be learnt from them",
    "doubled id": "the same id is used twice: {}",
    "too many pictures": f"more than {MAX_REFERENCES} pictures: {{}}. Leave some references out",
}
WARNINGS = {
    "target is a reference": "the target is also given as a reference: {}. The network will learn to copy",
    "same picture twice": "a picture is given twice in one sample: {}",
    "source shaped unlike target": "the source is shaped unlike the target: {}. Is their order right?",
    "too small": f"a side is under {SMALLEST_SIDE} px: {{}}",
    "too long": "longer than 8:1, will be squeezed to 4:1: {}",
}


def diagnosis(
    count: int, found: dict[str, list[str]], targets: dict[str, list[str]], sources: dict[str, list[str]]
) -> Diagnosis:
    """The sentences for what was found, with duplicates and leaks across samples."""
    result = Diagnosis(samples=count)
    for kind, words in FAULTS.items():
        if found.get(kind):
            result.faults.append(words.format(named(found[kind])))
    for kind, words in WARNINGS.items():
        if found.get(kind):
            result.warnings.append(words.format(named(found[kind])))
    doubles = [", ".join(group) for group in targets.values() if len(group) > 1]
    if doubles:
        result.warnings.append(f"equal targets, kept on one side of the validation split: {named(doubles)}")
    leaks = sorted({name for key in targets.keys() & sources.keys() for name in sources[key]})
    if leaks:
        result.warnings.append(
            f"the source of {named(leaks)} is another sample's target: training may see a held-out picture"
        )
    return result

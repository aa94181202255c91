"""Lets editors answer all held-out cases and judges them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from ..synthesis.config import SynthesisConfig
from ..synthesis.render import Canvas
from .baselines import copy_source, random_object
from .cases import CASES_PER_GROUP, GROUPS, Case, held_out_cases
from .report import judged_sheet, markdown_table
from .rules import Judge, Limits, Verdict

Editor = Callable[[Sequence[Case]], Sequence[Canvas]]
"""Answers a batch of cases with (height, width, 3) uint8 pictures of the targets' sizes."""

SHEET_ROWS = 8

EDIT_TASKS = (
    "add",
    "remove",
    "replace",
    "recolour",
    "retexture",
    "move",
    "scale",
    "rotate",
    "inpaint",
    "segment",
    "detect",
    "reference_add",
    "reference_replace",
    "reference_attribute",
    "reference_generation",
    "text_to_image",
)
"""Tasks that are judged unless others are asked for."""

STICKER_TASKS = tuple(
    task for task in EDIT_TASKS if task not in ("recolour", "retexture", "reference_attribute")
)
"""Tasks that change no colour or pattern: those need objects that are drawn, and stickers are pictures."""

ONE_GROUP = {"multi": ("several",)}
"""Tasks that do not exist for scenes with one object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What is judged, and how."""

    config: SynthesisConfig
    tasks: tuple[str, ...] = EDIT_TASKS
    cases_per_group: int = CASES_PER_GROUP
    batch_size: int = 32
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.cases_per_group < 1 or self.batch_size < 1:
            raise ValueError(
                f"cases_per_group and batch_size must be at least 1, got {self.cases_per_group} and "
                f"{self.batch_size}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Everything the judge found."""

    verdicts: dict[str, list[Verdict]]
    """Name of the method -> its verdicts."""
    sheets: dict[str, Image.Image]
    """`task-group` -> the first cases with the results of the first method."""

    @property
    def table(self) -> str:
        """The markdown table of all methods."""
        return markdown_table(self.verdicts)


def one_by_one(answer: Callable[[Case], Canvas]) -> Editor:
    """An editor from a function of one case."""
    return lambda cases: [answer(case) for case in cases]


BASELINES: dict[str, Editor] = {
    "copy the source": one_by_one(copy_source),
    "edit a random object": one_by_one(random_object),
}
"""Stand in every table; the first must score near 0, the second shows what luck is worth."""


def groups(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """(task, group) in the order of the table."""
    for task in evaluation.tasks:
        for group in ONE_GROUP.get(task, GROUPS):
            yield task, group


def evaluate(
    editors: Mapping[str, Editor],
    evaluation: Evaluation,
    report: Callable[[str, int], None] = lambda name, done: None,
    with_baselines: bool = True,
) -> Outcome:
    """Judge every editor on the same held-out cases; the baselines come last in the table.

    `report` is called with the group's name and the number of cases finished, and may raise to stop.
    """
    methods = {**editors, **(BASELINES if with_baselines else {})}
    verdicts: dict[str, list[Verdict]] = {name: [] for name in methods}
    sheets: dict[str, Image.Image] = {}
    for task, group in groups(evaluation):
        judge, done = Judge(evaluation.limits), 0
        cases = list(held_out_cases(evaluation.config, task, group, evaluation.cases_per_group))
        shown: list[tuple[Case, Canvas, Verdict]] = []
        for start in range(0, len(cases), evaluation.batch_size):
            batch = cases[start : start + evaluation.batch_size]
            for place, (name, editor) in enumerate(methods.items()):
                rows = [
                    (case, result, judge.judge(case, result))
                    for case, result in zip(batch, editor(batch), strict=True)
                ]
                verdicts[name] += [verdict for _, _, verdict in rows]
                shown += rows[: SHEET_ROWS - len(shown)] if place == 0 else []
            done += len(batch)
            report(f"{task}-{group}", done)
        sheets[f"{task}-{group}"] = judged_sheet(shown)
    return Outcome(verdicts=verdicts, sheets=sheets)

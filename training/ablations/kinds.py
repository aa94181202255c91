"""What runs are measured on: kinds of samples, by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..evaluation.cases import GROUPS
from ..recipes.small import SmallRecipe
from ..recipes.small_tasks import LORA_SINGLE_SHARE, LORA_TASKS, Weighted
from ..synthesis.config import SynthesisConfig

EDIT_TASKS: Weighted = (("add", 1.0), ("remove", 1.0), ("replace", 1.0), ("recolour", 1.0))
GENERATION_TASKS: Weighted = (("text_to_image", 4.0),)
PAIR_EDITS: Weighted = (("reference_replace", 1.0), ("reference_attribute", 1.0))
"""With two references each: two objects of the source change, each after a picture of its own."""
PAIR_SCENES: Weighted = (("reference_generation", 1.0),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of samples, and how it is called in the tables."""

    words: str
    tasks: Weighted
    references: tuple[int, int] | None = None
    """Fewest and most references; None leaves them to the recipe."""
    single_share: float | None = None
    groups: tuple[str, ...] = GROUPS
    """Judged with one object, with several, or both."""
    can_copy: bool = True
    """Whether there is a source that could be given back unchanged."""

    def synthesis(self, recipe: SmallRecipe, split: str = "train") -> SynthesisConfig:
        """The recipe of the samples."""
        config = recipe.synthesis(self.tasks, split=split)
        if self.references is not None:
            config = dataclasses.replace(config, references=self.references)
        if self.single_share is not None:
            config = dataclasses.replace(config, single_share=self.single_share)
        return config


KINDS: dict[str, Kind] = {
    "edit": Kind(words="edits", tasks=EDIT_TASKS),
    "generate": Kind(words="text-to-image", tasks=GENERATION_TASKS, can_copy=False),
    "reference": Kind(
        words="edits with references", tasks=LORA_TASKS["edit"], single_share=LORA_SINGLE_SHARE
    ),
    "sheets": Kind(
        words="scenes from references",
        tasks=LORA_TASKS["generate"],
        single_share=LORA_SINGLE_SHARE,
        can_copy=False,
    ),
    "two_edit": Kind(
        words="edits with two references",
        tasks=PAIR_EDITS,
        references=(2, 2),
        single_share=0.0,
        groups=("several",),
    ),
    "two_sheets": Kind(
        words="scenes from two references",
        tasks=PAIR_SCENES,
        references=(2, 2),
        single_share=0.0,
        groups=("several",),
        can_copy=False,
    ),
}
TAUGHT: dict[str, tuple[str, ...]] = {
    "edit": ("reference",),
    "generate": ("sheets",),
    "all": ("two_edit", "two_sheets"),
}
"""Task of a LoRA -> the kinds of samples it learns, as often each."""


def taught(recipe: SmallRecipe, adapter: str) -> SynthesisConfig:
    """The samples that a LoRA learns from, each of its kinds as often."""
    kinds = [KINDS[name] for name in TAUGHT[adapter]]
    tasks = [(task, weight / sum(dict(kind.tasks).values())) for kind in kinds for task, weight in kind.tasks]
    return dataclasses.replace(kinds[0].synthesis(recipe), tasks=tuple(tasks))

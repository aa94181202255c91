"""What references left in the last full steps of a run, noted for each pass of a step apart.

A step may run the network several times: for its conditionings together or apart, and for one of them again
with blocks replaced, as guidance by skipped layers does. Keys and values of one pass are wrong in another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..dit.reference_cache import Block
from .run_references import same_latents

MAX_OTHERS = 2
"""Passes besides a new one whose notes its conditionings keep, so that a node that replaces other blocks in
every step does not fill the memory."""


@dataclass(frozen=True, slots=True)
class Branch:
    """Which pass of a step a call of the network is; notes of one never serve another."""

    conds: tuple[Any, ...]
    """The conditionings it computes."""
    replaced: frozenset[tuple[Block, object]] = frozenset()
    """Blocks that another node has put a function in place of, and what that function runs."""


def branch_of(options: dict[str, Any]) -> Branch:
    """The pass that a call's transformer options belong to."""
    places = options.get("patches_replace", {}).get("dit", {})
    # ComfyUI says "double_block" where a block is replaced and "double" inside its attention.
    replaced = frozenset(
        ((str(kind).removesuffix("_block"), number), program_of(function))
        for (kind, number, *_), function in places.items()
    )
    return Branch(tuple(options.get("uuids") or options.get("cond_or_uncond") or ()), replaced)


def program_of(function: Any) -> object:
    """What a function runs: the same for one that its node makes anew in every step."""
    function = getattr(function, "__func__", function)
    return getattr(function, "__code__", type(function))


def blocks_of(network: Any) -> frozenset[Block]:
    """Every block of a Flux."""
    counts = {"double": len(network.double_blocks), "single": len(network.single_blocks)}
    return frozenset((kind, number) for kind, count in counts.items() for number in range(count))


@dataclass
class Noted:
    """What the references of one branch left in its last full step."""

    latents: list[Tensor]
    layers: dict[Block, tuple[Tensor, Tensor]]


@dataclass
class StepNotes:
    """The notes of one run, the latest used last."""

    blocks: frozenset[Block]
    """All blocks of the network."""
    kept: dict[Branch, Noted] = field(default_factory=dict)

    def find(self, branch: Branch, latents: list[Tensor]) -> Noted | None:
        """The notes of a branch about these latents; None if there are none or some are missing."""
        noted = self.kept.pop(branch, None)
        if noted is None:
            return None
        self.kept[branch] = noted
        return noted if self.is_complete(branch, noted) and same_latents(noted.latents, latents) else None

    def is_complete(self, branch: Branch, noted: Noted) -> bool:
        """Whether every block noted; another node's cache may have answered for some of them, or for all.

        What stands in place of a block may well compute nothing.
        """
        return self.blocks - {block for block, _ in branch.replaced} <= noted.layers.keys()

    def begin(self, branch: Branch, latents: list[Tensor]) -> Noted:
        """Empty notes for a full step, in place of the branch's last ones."""
        self.forget(branch)
        fresh = self.kept[branch] = Noted([latent.clone() for latent in latents], {})
        return fresh

    def forget(self, branch: Branch) -> None:
        """Drop the notes of a branch, and of its conditionings what was used longest ago.

        ComfyUI computes conditionings together or apart, as memory allows; so a branch takes the place of all
        that share one with it and replace the same blocks.
        """
        sharing = [known for known in self.kept if set(known.conds) & set(branch.conds)]
        others = [known for known in sharing if known.replaced != branch.replaced]
        spare = others[: max(0, len(others) - MAX_OTHERS)]
        for known in sharing:
            if known.replaced == branch.replaced or known in spare:
                del self.kept[known]

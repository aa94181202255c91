"""Which prefixes' keys and values are kept between evaluations: found by content, bounded, counted.

A prefix sees neither time nor target (layout.py), so what is kept is exact for every step, seed and size.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import OmniGenConfig
from .layout import Slot
from .prefix_entry import Entry, shared_rows, with_ancestors

log = logging.getLogger("dreamomni")
GIGABYTE = 1024**3


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSettings:
    """How the prefix is kept; travels with a MODEL."""

    enabled: bool = True
    eight_bit: bool = False
    """int8 with one scale for each token and head: half of bf16's memory."""
    max_bytes: int = 8 * GIGABYTE

    def __post_init__(self) -> None:
        if self.max_bytes < 0:
            raise ValueError(f"the cache limit must be 0 or more bytes, got {self.max_bytes}")


def bytes_per_token(config: OmniGenConfig, item_size: int, eight_bit: bool) -> int:
    """Memory of one prefix token over all layers."""
    size = config.head_dim + 4 if eight_bit else config.head_dim * item_size
    return 2 * config.num_layers * config.num_kv_heads * size


def no_room_text(tokens: int, needed: int, held: int, settings: CacheSettings, over_limit: bool) -> str:
    """What a user who wonders why a run is slow has to know, and what helps."""
    limit = f"limit {settings.max_bytes / GIGABYTE:.3g} GB" if over_limit else "no free memory for it"
    remedies = [
        *(["raise cache_limit_gb (Load OmniGen)"] if over_limit else []),
        *([] if settings.eight_bit else ["choose prefix_cache '8 bit' (Load OmniGen)"]),
        "lower max_image_size (OmniGen Encode)",
        "begin the prompt with the pictures, in order",
    ]
    return (
        f"OmniGen: the prefix of {tokens} tokens needs {needed / GIGABYTE:.2g} GB beside the "
        f"{held / GIGABYTE:.2g} GB kept, {limit}: these steps run without the cache. To be faster "
        f"{', '.join(remedies[:-1])}, or {remedies[-1]}."
    )


class PrefixCache:
    """Entries by content and context; what was longest unused goes first when room is short."""

    def __init__(self) -> None:
        self.entries: OrderedDict[tuple[Hashable, Hashable], Entry] = OrderedDict()
        self.limit: int | None = None
        """The limit of the evaluation before, under which the entries are."""
        self.run = 0
        self.prefills = 0
        """Prefix passes made so far, for reports and tests."""
        self.warned_in_run = -1

    def start_run(self) -> None:
        """A new sampling run begins; only entries of earlier runs may be dropped for its own."""
        self.run += 1

    def warn_once(self, text: str) -> None:
        """Log it, once in a run: every step comes here again."""
        if self.warned_in_run != self.run:
            self.warned_in_run = self.run
            log.warning(text)

    def clear(self) -> None:
        """Free everything."""
        self.entries.clear()

    def hold_to(self, limit: int) -> None:
        """Where a limit is lower than the one before, drop what was longest unused until the rest fits."""
        if self.limit is not None and limit < self.limit:
            while self.entries and self.num_bytes > limit:
                self.entries.popitem(last=False)
        self.limit = limit

    def add_time(self, entry: Entry, sigma_key: int, tokens: tuple[Tensor, Tensor], limit: int) -> None:
        """Remember a time token where it fits under `limit`; the entry's oldest are forgotten for it.

        No prefix is dropped for it: it saves one row of a step, a prefix saves a whole pass.
        """
        needed = tokens[0].nbytes + tokens[1].nbytes
        while entry.times and self.num_bytes + needed > limit:
            entry.times.pop(next(iter(entry.times)))
        if self.num_bytes + needed <= limit:
            entry.add_time(sigma_key, *tokens)

    @property
    def num_bytes(self) -> int:
        """Memory of all entries, and of dropped ones whose rows others still share."""
        return sum(entry.num_bytes for entry in with_ancestors(self.entries.values()))

    def find(self, elements: tuple[int | str, ...], context: Hashable) -> Entry | None:
        """The entry of exactly this prefix in this context (weights, dtype, device, stretch, precision)."""
        entry = self.entries.get((elements, context))
        if entry is not None:
            self.entries.move_to_end((elements, context))
            entry.used_in_run = self.run
        return entry

    def holds(self, elements: tuple[int | str, ...]) -> bool:
        """Whether this prefix was written in some context, so that a run need not make room for it."""
        return any(kept == elements for kept, _ in self.entries)

    def best_parent(
        self, elements: tuple[int | str, ...], slots: tuple[Slot, ...], context: Hashable
    ) -> tuple[Entry | None, int]:
        """Who owns the last leading row in common, and how many there are; they end in no picture.

        The owner, not the entry that was found: a chain through every prompt so far would never be freed.
        """
        best, count = None, 0
        for entry in self.entries.values():
            if entry.context != context:
                continue
            rows = min(
                shared_rows(elements, entry.elements, slots),
                shared_rows(elements, entry.elements, entry.slots),
            )
            if rows > count:
                best, count = entry, rows
        while best is not None and best.parent is not None and count <= best.shared:
            best = best.parent
        return best, count

    def make_room(self, needed: int, limit: int, keep: Entry | None = None) -> bool:
        """Drop entries of earlier runs until `needed` bytes fit under `limit`; False if they never do.

        `keep`, a parent to be, and its ancestors stay and count.
        """
        kept = with_ancestors([] if keep is None else [keep])

        def fits() -> bool:
            alive = with_ancestors([*self.entries.values(), *kept])
            return sum(entry.num_bytes for entry in alive) + needed <= limit

        for key, entry in list(self.entries.items()):
            if fits():
                break
            if entry.used_in_run < self.run and entry not in kept:
                del self.entries[key]
        return fits()

    def drop_oldest(self, device: torch.device, keep: Entry | None = None) -> bool:
        """Drop the longest unused entry of earlier runs on `device`; False where there is none.

        `keep`, a parent to be, stays, and so does all that this run's entries share rows with.
        """
        running = [entry for entry in self.entries.values() if entry.used_in_run >= self.run]
        kept = with_ancestors([*running, *([] if keep is None else [keep])])
        for key, entry in self.entries.items():
            if entry.device == device and entry not in kept:
                del self.entries[key]
                return True
        return False

    def add(self, entry: Entry) -> None:
        """Keep a finished entry."""
        entry.used_in_run = self.run
        self.prefills += 1
        self.entries[(entry.elements, entry.context)] = entry


Placement = Callable[[int], torch.device | None]
"""Where that many bytes can be kept: a device, or None for nowhere."""

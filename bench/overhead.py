"""What our own code adds to a step: the cache's wrappers, its checks, and the solvers' arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from .harness import Table, measure, work_clock
from .reference_cache import scene, tiny_scene

REPEATS = 20
STEPS = 40


def milliseconds(side: Callable[[], object]) -> float:
    """Median of one call."""

    def repeated() -> None:
        for _ in range(REPEATS):
            side()

    return 1000 * statistics.median(measure({"side": repeated}, clock=work_clock())["side"]) / REPEATS


def wrapper_table() -> Table:
    """A step without references through the cache's wrappers, against the bare model."""
    stage = scene()
    sides: dict[str, Callable[[], object]] = {
        "bare model": lambda: stage.run(stage.plain, 0, 2),
        "with Reference Cache": lambda: stage.run(stage.cached, 0, 2),
    }
    times = measure(sides, 2 * stage.rounds, clock=work_clock())
    low, middle = min(times["bare model"]), statistics.median(times["bare model"])
    rows = tuple((name, min(taken) / low, statistics.median(taken) / middle) for name, taken in times.items())
    return Table("Overhead of the wrappers", ("step", "min ratio", "median ratio"), rows, "No references.")


def wrapper_milliseconds() -> float:
    """What the wrappers add to a step without references: on a network so small that little else is left."""
    stage = tiny_scene()
    sides: dict[str, Callable[[], object]] = {
        "bare": lambda: stage.run(stage.plain, 0, STEPS),
        "wrapped": lambda: stage.run(stage.cached, 0, STEPS),
    }
    times = measure(sides, 3 * stage.rounds, clock=work_clock())
    return 1000 * (min(times["wrapped"]) - min(times["bare"])) / STEPS


def parts_table() -> Table:
    """The pieces that run once a step, at the sizes of 1024x1024 and five references."""
    from ..dit.content import tensor_key
    from ..dit.reference_cache import split_ids
    from ..model_loaders.run_references import same_latents
    from ..samplers.solvers import advance

    latents = [torch.randn(1, 16, 128, 128) for _ in range(5)]
    copies = [latent.clone() for latent in latents]
    ids = torch.zeros(5 * 4096, 3)
    levels = [0.6, 0.7, 0.8]
    parts: dict[str, Callable[[], object]] = {
        "comparing 5 references with those known": lambda: same_latents(latents, copies),
        "reading the places of 5 references": lambda: split_ids(ids, [4096] * 5),
        "arithmetic of an adams-2 step": lambda: [
            advance(latents[0], latents[:2], levels[:2], 0.6, 0.5) for _ in range(2)
        ],
        "hashing a reference, once a run": lambda: tensor_key(latents[0][0]),
    }
    rows = (
        ("the cache's wrappers, without references", wrapper_milliseconds()),
        *((name, milliseconds(part)) for name, part in parts.items()),
    )
    note = "On this machine's CPU. A step of FLUX.1 at 1024x1024 takes hundreds of milliseconds on a GPU."
    return Table("Our own work per step", ("part", "ms"), rows, note)


def tables() -> Sequence[Table]:
    """Ratios of whole steps, then the parts."""
    return [wrapper_table(), parts_table()]

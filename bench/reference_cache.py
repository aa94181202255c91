"""What references cost: kept, computed in every step, and none, alternating in one process.

On a CPU the network is narrower and the pictures smaller by the same factor, so that attention has the share
of the work that it has at 1024x1024 in FLUX.1 (tokens / width are equal). On a GPU it is full size, in bf16.
Weights are random: this shows time, memory and exactness, not the quality of a picture.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .harness import Table, measure, work_clock
from .networks import POOLED_WIDTH, TEXT_WIDTH, random_flux, step_flops

COUNTS = (1, 3, 5)
EULER_STEPS, ADAMS_STEPS = 28, 12


@dataclass(frozen=True)
class Scene:
    """A model with and without the cache, and the inputs of one run."""

    plain: Any
    cached: Any
    side: int
    """Latent height and width of the result and of each reference."""
    text: int
    rounds: int

    @property
    def image_tokens(self) -> int:
        """Tokens of one picture."""
        return (self.side // 2) ** 2

    def run(self, model: Any, count: int, steps: int, solver: str = "euler", seed: int = 0) -> Tensor:
        """Samples of a whole run with `count` references."""
        import comfy.samplers

        from ..samplers.schedules import ScheduleSettings, make_sigmas
        from ..samplers.solvers import SOLVERS

        draw = torch.Generator().manual_seed(1)
        latents = [torch.randn(1, 16, self.side, self.side, generator=draw) for _ in range(count)]
        context, pooled = torch.randn(1, self.text, TEXT_WIDTH, generator=draw), torch.zeros(1, POOLED_WIDTH)
        conditioning = [[context, {"pooled_output": pooled, "reference_latents": latents}]]
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(conditioning, conditioning)
        guider.set_cfg(1.0)
        noise = torch.randn(1, 16, self.side, self.side, generator=torch.Generator().manual_seed(seed))
        sampler = comfy.samplers.KSAMPLER(SOLVERS[solver])
        sigmas = make_sigmas("beta" if "adams" in solver else "flux-dynamic", steps, ScheduleSettings())
        with torch.inference_mode():
            return guider.sample(
                noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=seed
            )

    def forget(self) -> None:
        """Empty the store, so that the next run writes."""
        from ..model_loaders.reference_store import store_of

        store_of(self.cached).entries.clear()

    def flops(self, count: int, cached: bool) -> float:
        """Work of one step."""
        network = self.plain.model.diffusion_model
        return step_flops(network, self.text, self.image_tokens, count * self.image_tokens, cached)


def pytorch_attention(attention: Any, *args: Any, **kwargs: Any) -> Tensor:
    """PyTorch's fused kernel on both sides; ComfyUI takes a slower one on the CPU."""
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*args, **kwargs)


ON_GPU = {
    "hidden": 3072,
    "heads": 24,
    "double": 19,
    "single": 38,
    "device": "cuda",
    "dtype": torch.bfloat16,
}
ON_CPU = {"hidden": 512, "heads": 4, "double": 1, "single": 1, "device": "cpu", "dtype": torch.float32}


def scene(**settings: Any) -> Scene:
    """Full size on a GPU, a sixth of the width and of the tokens on a CPU."""
    if torch.cuda.is_available():
        return scene_of(ON_GPU, side=128, text=512, rounds=5, **settings)
    return scene_of(ON_CPU, side=52, text=85, rounds=3, **settings)


def tiny_scene() -> Scene:
    """A network that takes no time, to see what is around it."""
    size = {**ON_CPU, "hidden": 128, "heads": 1}
    return scene_of(size, side=4, text=1, rounds=3)


def scene_of(size: dict[str, Any], side: int, text: int, rounds: int, **settings: Any) -> Scene:
    """A random network and its sizes; `settings` are those of the cache."""
    from ..model_loaders.reference_cache import attach_reference_cache
    from ..model_loaders.reference_writing import CacheSettings

    model = random_flux(**size)
    model.model_options["transformer_options"]["optimized_attention_override"] = pytorch_attention
    return Scene(
        model, attach_reference_cache(model, CacheSettings(**settings), lambda _: None), side, text, rounds
    )


def ratios(times: dict[str, list[float]], base: str) -> dict[str, tuple[float, float]]:
    """(minimum, median) of every side against the base side."""
    low, middle = min(times[base]), statistics.median(times[base])
    return {name: (min(taken) / low, statistics.median(taken) / middle) for name, taken in times.items()}


def timed(stage: Scene, count: int) -> dict[str, list[float]]:
    """Seconds of one-step runs with `count` references, kept, computed and written, and without any."""

    def written() -> None:
        stage.forget()
        stage.run(stage.cached, count, 1)

    sides: dict[str, Callable[[], object]] = {
        "none": lambda: stage.run(stage.plain, 0, 1),
        "uncached": lambda: stage.run(stage.plain, count, 1),
        "written": written,
        "cached": lambda: stage.run(stage.cached, count, 1),
    }
    return measure(sides, stage.rounds, warm_up=1, clock=work_clock())


def step_table(stage: Scene, times: dict[int, dict[str, list[float]]]) -> Table:
    """One step with kept and with uncached references, against one without any."""
    rows, none = [], stage.flops(0, cached=False)
    for count, taken in times.items():
        found = ratios(taken, "none")
        for side in ("cached", "uncached"):
            expected = stage.flops(count, side == "cached") / none
            rows.append((f"{count} references, {side}", *found[side], expected))
    columns = ("step with", "min ratio", "median ratio", "ratio of FLOPs")
    return Table(
        "Reference cost per step", columns, tuple(rows), NOTE, ("step with", "min ratio"), {"times": times}
    )


def run_table(times: dict[int, dict[str, list[float]]]) -> Table:
    """Whole runs, summed from the fastest of each kind of step: a run is its steps, and the first writes."""
    rows = []
    for count, taken in times.items():
        none, step, full = (min(taken[side]) for side in ("none", "cached", "uncached"))
        write = max(0.0, min(taken["written"]) - step)
        cached = write + EULER_STEPS * step
        adams = write + ADAMS_STEPS * step
        base = EULER_STEPS * none
        rows.append((count, write / none, cached / base, EULER_STEPS * full / cached, adams / base))
    columns = (
        "references",
        "writing / step without",
        f"{EULER_STEPS} cached steps / {EULER_STEPS} without references",
        "times faster than uncached",
        f"{ADAMS_STEPS} cached steps / {EULER_STEPS} without references",
    )
    return Table("Whole runs with references", columns, tuple(rows), f"{NOTE} {WRITING_NOTE}")


def reuse_table(stage: Scene) -> Table:
    """A first step with another seed against the same step again, and how many references it computed."""
    from ..model_loaders.reference_store import store_of

    stage.run(stage.cached, 3, 1)
    written = store_of(stage.cached).written
    sides: dict[str, Callable[[], object]] = {
        "a cached step": lambda: stage.run(stage.cached, 3, 1),
        "the first step of a new seed": lambda: stage.run(stage.cached, 3, 1, seed=7),
    }
    found = ratios(measure(sides, stage.rounds + 3, warm_up=0, clock=work_clock()), "a cached step")
    again = store_of(stage.cached).written - written
    columns = ("3 references", "min ratio", "median ratio", "references computed")
    return Table(
        "References are paid once", columns, tuple((name, *found[name], again) for name in sides), NOTE
    )


def memory_table() -> Table:
    """What a reference takes and how far 8 bit move the keys and values, and the result."""
    exact = scene()
    result = exact.run(exact.cached, 1, 2)
    rows = [("bf16", *kept_memory(exact, 2.0), float("inf"), float("inf"))]
    small = scene(precision="8bit")
    near = small.run(small.cached, 1, 2)
    rows.append(("8bit", *kept_memory(small, None), kept_error(exact, small), decibels(near, result)))
    columns = (
        "precision",
        "bytes per token and layer",
        "GB per 1024x1024 reference of FLUX.1",
        "keys and values dB",
        "result dB",
    )
    return Table("Memory of kept references", columns, tuple(rows), NOTE)


def kept_memory(stage: Scene, bytes_each: float | None) -> tuple[float, float]:
    """Bytes of a token in a layer, as stored or as bf16 would be, and what FLUX.1 at full size needs."""
    from ..model_loaders.reference_store import store_of

    network = stage.plain.model.diffusion_model
    layers = len(network.double_blocks) + len(network.single_blocks)
    count = 2 * layers * stage.image_tokens * network.hidden_size
    each = bytes_each or store_of(stage.cached).num_bytes() / count
    return 2 * each * network.hidden_size, each * 2 * 57 * 4096 * 3072 / 1e9


def kept_error(exact: Scene, near: Scene) -> float:
    """dB of the 8-bit keys and values to the ones as computed."""
    from ..model_loaders.reference_store import store_of

    device = exact.plain.load_device
    parts: list[Tensor] = []
    for stage in (exact, near):
        (entry,) = store_of(stage.cached).entries.values()
        parts.append(torch.cat([part.read(device).float().flatten() for part in entry.tensors()]))
    return decibels(parts[1], parts[0])


def decibels(result: Tensor, exact: Tensor) -> float:
    """Signal power over error power."""
    return float(10 * torch.log10(exact.square().mean() / (result - exact).square().mean()))


NOTE = "Random weights: time, memory and exactness, not picture quality. CPU: processor time."
WRITING_NOTE = (
    "Cached runs include writing, without taking the LoRA off and putting it back, which a GPU pays once per "
    "run that writes a reference."
)


def tables() -> Sequence[Table]:
    """Cost of a step, of whole runs, of a second run, and memory."""
    stage = scene()
    times = {}
    for count in COUNTS:
        times[count] = timed(stage, count)
        stage.forget()
    return [step_table(stage, times), run_table(times), reuse_table(stage), memory_table()]

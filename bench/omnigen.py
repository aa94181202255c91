"""OmniGen with and without its prefix cache beside diffusers' pipeline: time, work and memory.

Random weights show time, memory and equality, not picture quality. On a CPU the network is narrow, but tokens
per picture, width, MLP and text keep the released model's proportions; on a CUDA card it has the full size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import OmniGenTransformer2DModel
from diffusers.pipelines.omnigen.processor_omnigen import OmniGenCollator
from torch import Tensor

from ..dit.omnigen.blocks import torch_attention
from ..dit.omnigen.cached import CacheUse, cached_velocity
from ..dit.omnigen.config import OmniGenConfig
from ..dit.omnigen.network import OmniGenNetwork
from ..dit.omnigen.prefix import Prefix, make_prefix
from ..dit.omnigen.prefix_cache import CacheSettings, PrefixCache
from ..dit.omnigen.prefix_entry import shared_rows
from ..dit.omnigen.prompt import image_only_prompt, tag, tokenize_prompt
from ..dit.omnigen.state_dict import to_official
from .harness import Table, measure
from .memory import PeakBytes

TEXT_SCALE, IMAGE_SCALE = 2.5, 1.6
FULL_WIDTH, FULL_TOKENS = 3072, 4096
MEMORY_LAYERS = 32
IMAGE_COUNTS = (0, 1, 2)


@dataclass(frozen=True)
class Shape:
    """A network and the grid (rows, columns) of tokens every picture has."""

    config: OmniGenConfig
    grid: tuple[int, int]
    steps: int
    device: torch.device
    dtype: torch.dtype

    @property
    def tokens(self) -> int:
        """Tokens of one picture."""
        return self.grid[0] * self.grid[1]


def narrow_config(width: int, layers: int) -> OmniGenConfig:
    """The released proportions at another width: heads of 96, MLP 8/3 of the width."""
    heads = width // 96
    return OmniGenConfig(
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        intermediate_size=width * 8 // 3,
        vocab_size=512,
        short_factor=(1.0,) * 48,
        long_factor=(1.0,) * 48,
    )


def shape_here(layers: int = 4, width: int = 192, grid: tuple[int, int] = (16, 16)) -> Shape:
    """Full size in bf16 on a CUDA card, narrow in fp32 elsewhere."""
    if torch.cuda.is_available():
        config = OmniGenConfig(short_factor=(1.0,) * 48, long_factor=(1.0,) * 48)
        return Shape(config, (64, 64), 50, torch.device("cuda"), torch.bfloat16)
    return Shape(narrow_config(width, layers), grid, 10, torch.device("cpu"), torch.float32)


@dataclass
class Case:
    """Both networks with the same weights, and one request in both forms."""

    shape: Shape
    network: OmniGenNetwork
    theirs: OmniGenTransformer2DModel
    branches: list[Prefix]
    """negative, image-only (with pictures), positive."""
    arguments: dict[str, object]
    """diffusers' arguments: cond, uncond, img_cond padded into one batch."""
    noise: Tensor


def words(shape: Shape) -> Callable[[str, bool], list[int]]:
    """Stands in for the tokenizer: about one token for each four letters, scaled to the shape."""
    density = 4 * FULL_TOKENS / shape.tokens
    return lambda text, first: [3] * max(1, round(len(text) / density))


def build_networks(shape: Shape) -> tuple[OmniGenNetwork, OmniGenTransformer2DModel]:
    """diffusers' network with random weights, and ours with the same."""
    config = shape.config
    torch.manual_seed(0)
    with shape.device:
        theirs = OmniGenTransformer2DModel(
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            intermediate_size=config.intermediate_size,
            vocab_size=config.vocab_size,
            pad_token_id=2,
            rope_scaling={
                "type": "su",
                "short_factor": list(config.short_factor),
                "long_factor": list(config.long_factor),
            },
        )
    theirs = theirs.to(shape.dtype).eval()
    network = OmniGenNetwork(config, device="meta")
    weights = to_official(theirs.state_dict())
    weights.pop("pos_embed")
    network.load_state_dict(weights, assign=True)
    return network.eval(), theirs


def build_case(shape: Shape, count: int) -> Case:
    """A request with `count` pictures of the target's size."""
    network, theirs = build_networks(shape)
    generator = torch.Generator().manual_seed(count)
    size = (1, 4, shape.grid[0] * 2, shape.grid[1] * 2)
    latents = [torch.randn(size, generator=generator).to(shape.device, shape.dtype) for _ in range(count)]
    tags = " ".join(tag(number) for number in range(1, count + 1))
    encode = words(shape)
    # The prompt is the longest text: diffusers gives every branch the positions of its first one, which is
    # wrong as soon as that one is padded.
    texts = [("n" * 200, 0), (image_only_prompt(count), count), (f"{tags} {'p' * 400}", count)]
    prefixes = [
        make_prefix(tokenize_prompt(text, [shape.tokens] * shown, encode), latents[:shown])
        for text, shown in texts
        if shown or text != ""
    ]
    branches = prefixes if count else [prefixes[0], prefixes[-1]]
    noise = torch.randn(size, generator=generator).to(shape.device, shape.dtype)
    return Case(shape, network, theirs, branches, diffusers_arguments(shape, branches), noise)


def diffusers_arguments(shape: Shape, branches: Sequence[Prefix]) -> dict[str, object]:
    """What diffusers' pipeline passes for these branches, in its order and with its padding."""
    order = [branches[-1], branches[0], *branches[1:-1]]
    inputs = [
        {
            "input_ids": list(prefix.tokens.token_ids),
            "pixel_values": [latent[0] for latent in prefix.reference_latents] or None,
            "image_sizes": [[slot.start, slot.stop] for slot in prefix.tokens.slots],
        }
        for prefix in order
    ]
    side = [shape.grid[0] * 16, shape.grid[1] * 16]
    ids, positions, mask, _, latents, slots = OmniGenCollator().process_mllm_input(
        inputs, [side] * len(order)
    )
    return {
        "input_ids": ids.to(shape.device),
        "input_img_latents": latents,
        "input_image_sizes": slots,
        "attention_mask": mask.to(shape.device),
        "position_ids": positions.to(shape.device),
    }


def combine(negative: Tensor, positive: Tensor, image_only: Tensor | None) -> Tensor:
    """The published guidance of two or three branches."""
    if image_only is None:
        return negative + TEXT_SCALE * (positive - negative)
    return negative + IMAGE_SCALE * (image_only - negative) + TEXT_SCALE * (positive - image_only)


def run_diffusers(case: Case, steps: int) -> Tensor:
    """The denoising loop of OmniGenPipeline."""
    x, count = case.noise, len(case.branches)
    for step in range(steps):
        time = torch.full((count,), step / steps, device=x.device)
        parts = case.theirs(
            hidden_states=torch.cat([x] * count), timestep=time, return_dict=False, **case.arguments
        )[0].chunk(count)
        x = x + combine(parts[1], parts[0], parts[2] if count == 3 else None) / steps
    return x


def run_ours(case: Case, steps: int, cache: PrefixCache | None, eight_bit: bool = False) -> Tensor:
    """The same loop on our network, branch by branch; without a cache every step runs the prefix again."""
    x = case.noise
    sigmas = [1 - step / steps for step in range(steps)]
    settings = CacheSettings(eight_bit=eight_bit, max_bytes=64 * 1024**3)
    place = lambda size: case.shape.device
    for sigma in sigmas:
        share = torch.tensor([sigma], device=x.device)
        if cache is None:
            parts = [case.network.velocity(x, share, prefix) for prefix in case.branches]
        else:
            use = CacheUse(cache, settings, "weights", lambda: sigmas, place)
            parts = [
                cached_velocity(case.network, x, share, prefix, use, torch_attention)
                for prefix in case.branches
            ]
        x = x - combine(parts[0], parts[-1], parts[1] if len(parts) == 3 else None) / steps
    return x


def rows_flops(config: OmniGenConfig, rows: float, keys: float) -> float:
    """Multiply-adds times two of so many rows that each look at so many keys, in all decoder layers."""
    layer = 2 * (4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size)
    return config.num_layers * rows * (layer + 4 * keys * config.hidden_size)


def cached_flops(case: Case) -> float:
    """One guided step whose prefixes are kept."""
    target, config = case.shape.tokens, case.shape.config
    return sum(rows_flops(config, target, prefix.length + 1 + target) for prefix in case.branches)


def padded_flops(case: Case) -> float:
    """One guided step of diffusers: every branch as long as the longest."""
    longest = max(prefix.length for prefix in case.branches) + 1 + case.shape.tokens
    return len(case.branches) * rows_flops(case.shape.config, longest, longest)


def prefix_flops(case: Case) -> float:
    """The prefix pass, rows the picture branches share counted once."""
    rows = sum(prefix.length for prefix in case.branches)
    _, *others, positive = case.branches
    rows -= sum(shared_rows(other.elements, positive.elements, other.tokens.slots) for other in others)
    return rows_flops(case.shape.config, rows, rows / 2)


def run_ratio(case: Case, steps: int) -> float:
    """Work of diffusers' loop over ours, prefix pass included."""
    return steps * padded_flops(case) / (steps * cached_flops(case) + prefix_flops(case))


def time_table(rounds: int = 5) -> Table:
    """Whole runs with 0, 1 and 2 pictures against diffusers' loop, and how far the results are apart."""
    shape = shape_here()
    rows = []
    for count in IMAGE_COUNTS:
        case = build_case(shape, count)
        with torch.inference_mode():
            sides = {
                "diffusers": lambda case=case: run_diffusers(case, shape.steps),
                "no cache": lambda case=case: run_ours(case, shape.steps, None),
                "prefix cache": lambda case=case: run_ours(case, shape.steps, PrefixCache()),
            }
            apart = (sides["diffusers"]() - sides["prefix cache"]()).abs().max()
            times = measure(sides, rounds, warm_up=0)
        least = {name: min(taken) for name, taken in times.items()}
        rows.append(
            (
                count,
                least["diffusers"],
                least["no cache"],
                least["prefix cache"],
                least["diffusers"] / least["prefix cache"],
                run_ratio(case, shape.steps),
                run_ratio(case, 50),
                float(apart),
            )
        )
    columns = (
        "pictures",
        "diffusers s",
        "ours, no cache s",
        "ours, cache s",
        "diffusers / cache",
        "work ratio",
        "work ratio at 50 steps",
        "largest difference",
    )
    note = (
        f"{shape.steps} Euler steps with the prefix pass in them, minimum of {rounds}; {describe(shape)}. "
        "Work ratio: decoder FLOPs of diffusers' loop over ours, its padding and our prefix pass included."
    )
    return Table("OmniGen, whole runs", columns, tuple(rows), note, chart=("pictures", "diffusers / cache"))


def step_table(rounds: int = 5) -> Table:
    """One cached guided step with n pictures against one without pictures, with the counted work beside."""
    shape = shape_here()
    cases = {count: build_case(shape, count) for count in IMAGE_COUNTS}
    caches = {count: PrefixCache() for count in IMAGE_COUNTS}
    with torch.inference_mode():
        sides = {
            str(count): lambda case=case, cache=caches[count]: run_ours(case, 1, cache)
            for count, case in cases.items()
        }
        times = measure(sides, rounds, warm_up=1)
    base, work = min(times["0"]), cached_flops(cases[0])
    rows = tuple(
        (count, min(times[str(count)]), min(times[str(count)]) / base, cached_flops(case) / work)
        for count, case in cases.items()
    )
    note = f"{describe(shape)}; without pictures there are two branches, with pictures three"
    columns = ("pictures", "min s", "time over none", "work over none")
    return Table("OmniGen, one cached step", columns, rows, note)


def memory_table() -> Table:
    """Peak of everything a guided step allocates beside the weights, cache included, with 2 pictures."""
    shape = shape_here(MEMORY_LAYERS, 96, (8, 16))
    case = build_case(shape, 2)
    sides: dict[str, Callable[[], Tensor]] = {
        "diffusers, no cache": lambda: run_diffusers(case, 1),
        "ours, no cache": lambda: run_ours(case, 1, None),
        "ours, prefix cache": lambda: run_ours(case, 2, PrefixCache()),
        "ours, 8 bit cache": lambda: run_ours(case, 2, PrefixCache(), eight_bit=True),
    }
    with torch.inference_mode():
        peaks = {name: peak_bytes(side) for name, side in sides.items()}
    base = peaks["diffusers, no cache"]
    rows = tuple((name, peak / 2**20, peak / base) for name, peak in peaks.items())
    note = f"{describe(shape)}, {shape.config.num_layers} layers as in the released model"
    return Table("OmniGen, peak memory with 2 pictures", ("side", "MiB", "ratio"), rows, note)


def peak_bytes(side: Callable[[], object]) -> int:
    """Largest sum of live allocations during the call, beside what was there before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        side()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with PeakBytes() as counted:
        side()
    return counted.peak


def describe(shape: Shape) -> str:
    """The proportions, so that nobody has to guess what was measured."""
    config = shape.config
    return (
        f"width {config.hidden_size}, {config.num_layers} layers, {shape.tokens} tokens a picture "
        f"({shape.tokens / config.hidden_size:.2f} a channel, released {FULL_TOKENS / FULL_WIDTH:.2f}), "
        f"{str(shape.dtype).removeprefix('torch.')}"
    )


def tables() -> list[Table]:
    """Time, work and memory."""
    return [time_table(), step_table(), memory_table()]

"""Sampling with the prefix kept: one pass writes it, every later evaluation runs target tokens alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import Attention
from .layout import Rows, prefix_rows, time_rows
from .network import OmniGenNetwork, pad_to_patch
from .prefix import Prefix
from .prefix_cache import CacheSettings, Placement, PrefixCache, bytes_per_token, no_room_text
from .prefix_entry import Entry, Stored, sigma_key, store


@dataclass(frozen=True, slots=True)
class CacheUse:
    """What one evaluation needs to know beside its inputs."""

    cache: PrefixCache
    settings: CacheSettings
    weights: Hashable
    """Changes whenever the weights do (LoRA, strength, another file)."""
    schedule: Callable[[], Sequence[float]]
    """Sigmas the run is going to visit; others are computed when they come up."""
    placement: Placement


class WritingMemory:
    """Collects the fresh rows of a prefix pass behind those another entry already has."""

    def __init__(self, entry: Entry, length: int, eight_bit: bool) -> None:
        self.entry, self.length, self.eight_bit = entry, length, eight_bit
        self.times: list[tuple[Tensor, Tensor]] = []

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the fresh prefix rows and the time tokens behind them; all rows to attend to."""
        fresh = self.length - self.entry.shared
        kept: list[Stored] = []
        for tensor in (key, value):
            kept.append(store(tensor[:, :, :fresh], self.eight_bit, self.entry.device))
        self.entry.layers.append((kept[0], kept[1]))
        # Copies: a view would keep the whole layer's keys and values until the pass is over.
        self.times.append((key[0, :, fresh:].clone(), value[0, :, fresh:].clone()))
        if self.entry.parent is None:
            return key, value
        shape = (1, key.shape[1], self.entry.shared, key.shape[3])
        past = (key.new_empty(shape), key.new_empty(shape))
        self.entry.parent.copy_to(layer, *past, self.entry.shared)
        return torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)


class ReadingMemory:
    """Lays a layer's kept rows before its fresh ones in a buffer all layers share.

    Rows kept in RAM for a CUDA card are copied one layer ahead on a stream of their own.
    """

    def __init__(
        self, entry: Entry, length: int, time: tuple[Tensor, Tensor] | None, num_layers: int
    ) -> None:
        self.entry, self.length, self.time, self.num_layers = entry, length, time, num_layers
        self.fresh_times: list[tuple[Tensor, Tensor]] = []
        self.buffers: list[tuple[Tensor, Tensor]] = []
        self.stream: torch.cuda.Stream | None = None
        self.ready: list[torch.cuda.Event] = []

    def allocate(self, key: Tensor) -> None:
        """Buffers for the kept and the fresh rows of one layer; two of them when layers are fetched ahead."""
        # Compiled, the lengths are symbols, to which torch cannot add a bool.
        total = self.length + int(self.time is not None) + key.shape[2]
        shape = (*key.shape[:2], total, key.shape[3])
        ahead = key.is_cuda and self.entry.device.type == "cpu"
        self.buffers = [(key.new_empty(shape), key.new_empty(shape)) for _ in range(2 if ahead else 1)]
        if ahead:
            self.stream = torch.cuda.Stream(key.device)
            self.ready = [torch.cuda.Event() for _ in self.buffers]
            self.fetch(0)

    def fetch(self, layer: int) -> None:
        """Copy one layer's kept rows into its buffer, beside the running work if there is a stream."""
        place = layer % len(self.buffers)
        if self.stream is None:
            self.entry.copy_to(layer, *self.buffers[place], self.length)
            return
        # The buffer was last read by the layer before the one now starting, which is already queued.
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            self.entry.copy_to(layer, *self.buffers[place], self.length)
            for buffer in self.buffers[place]:
                # Freed while the copy runs, its memory must not be given away yet.
                buffer.record_stream(self.stream)
            self.ready[place].record(self.stream)

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of the layer: prefix, time, target."""
        if not self.buffers:
            self.allocate(key)
        place = layer % len(self.buffers)
        keys, values = self.buffers[place]
        if self.stream is None:
            self.fetch(layer)
        else:
            torch.cuda.current_stream(key.device).wait_event(self.ready[place])
            if layer + 1 < self.num_layers:
                self.fetch(layer + 1)
        row = self.length
        if self.time is None:
            self.fresh_times.append((key[0, :, 0].clone(), value[0, :, 0].clone()))
        else:
            keys[:, :, row], values[:, :, row] = self.time[0][layer], self.time[1][layer]
            row += 1
        keys[:, :, row:], values[:, :, row:] = key, value
        return keys, values


def write_entry(
    network: OmniGenNetwork,
    prefix: Prefix,
    entry: Entry,
    like: Tensor,
    use: CacheUse,
    length: int,
    attention: Attention,
) -> None:
    """One pass of the rows the parent does not have, and of a time token for each sigma to come."""
    dtype, device = like.dtype, like.device
    schedule = sorted({sigma_key(sigma): sigma for sigma in use.schedule() if sigma > 0}.items())
    hidden = network.embed_prefix(prefix, dtype, device)[:, entry.shared :]
    rows = prefix_rows(prefix.tokens.slots, prefix.length, entry.shared, device)
    positions = torch.arange(entry.shared, prefix.length)
    if schedule:
        sigmas = torch.tensor([sigma for _, sigma in schedule], device=device)
        hidden = torch.cat((hidden, network.embed_time(sigmas, dtype)[None]), dim=1)
        rows.append(time_rows(prefix.length, prefix.length - entry.shared, len(schedule), device))
        positions = torch.cat((positions, torch.full((len(schedule),), prefix.length)))
    memory = WritingMemory(entry, prefix.length, use.settings.eight_bit)
    network.run_layers(hidden, network.rotation(positions, length, device), rows, attention, memory)
    for place, (key, _) in enumerate(schedule):
        keys = torch.stack([layer[0][:, place] for layer in memory.times])
        entry.add_time(key, keys, torch.stack([layer[1][:, place] for layer in memory.times]))


def find_or_write(
    network: OmniGenNetwork,
    prefix: Prefix,
    use: CacheUse,
    like: Tensor,
    length: int,
    attention: Attention,
) -> Entry | None:
    """The prefix's entry, written now if it is new; None if there is no room for it."""
    use.cache.hold_to(use.settings.max_bytes)
    stretched = length > network.config.original_max_position_embeddings
    context = (use.weights, like.dtype, like.device, stretched, use.settings.eight_bit)
    entry = use.cache.find(prefix.elements, context)
    if entry is not None:
        return entry
    slots = prefix.tokens.slots
    parent, shared = use.cache.best_parent(prefix.elements, slots, context)
    size = bytes_per_token(network.config, like.element_size(), use.settings.eight_bit)
    # Time tokens are kept in full precision, in 8 bit too.
    times = bytes_per_token(network.config, like.element_size(), False) * len(use.schedule())
    needed = size * (prefix.length - shared) + times
    if not use.cache.make_room(needed, use.settings.max_bytes, parent):
        # The parent holds more than the shared rows; all rows anew may be the smaller whole.
        parent, shared, needed = None, 0, size * prefix.length + times
        if not use.cache.make_room(needed, use.settings.max_bytes):
            say_no_room(use, prefix.length, needed, over_limit=True)
            return None
    device = find_place(use, needed, like.device, parent)
    if device is None:
        say_no_room(use, prefix.length, needed, over_limit=False)
        return None
    entry = Entry(prefix.elements, slots, context, parent, shared, device)
    write_entry(network, prefix, entry, like, use, length, attention)
    use.cache.add(entry)
    return entry


def find_place(
    use: CacheUse, needed: int, fastest: torch.device, parent: Entry | None
) -> torch.device | None:
    """Where the new entry goes, at the cost of earlier runs' entries; None if there is no memory for it."""
    device = use.placement(needed)
    while device != fastest and use.cache.drop_oldest(fastest, parent):
        device = use.placement(needed)  # earlier pictures held the memory that this one would read faster
    while device is None and use.cache.drop_oldest(torch.device("cpu"), parent):
        device = use.placement(needed)
    return device


def say_no_room(use: CacheUse, tokens: int, needed: int, over_limit: bool) -> None:
    """Warn that the run is slower than it could be; a limit of 0 was asked for."""
    if use.settings.max_bytes:
        held = use.cache.num_bytes
        use.cache.warn_once(no_room_text(tokens, needed, held, use.settings, over_limit))


def cached_velocity(
    network: OmniGenNetwork,
    latent: Tensor,
    sigma: Tensor,
    prefix: Prefix,
    use: CacheUse,
    attention: Attention,
) -> Tensor:
    """`network.velocity` from kept keys and values; the plain pass where they do not apply.

    latent (B, C, H, W), sigma (B), all of one value: the prefix has one time token.
    """
    value = float(sigma[0])
    one_time = len(sigma) == 1 or bool((sigma == sigma[0]).all())
    if torch.is_grad_enabled() or not (use.settings.enabled and one_time):
        return network.velocity(latent, sigma, prefix, attention)
    padded, size = pad_to_patch(latent, network.config.patch_size)
    grid = (padded.shape[-2] // network.config.patch_size, padded.shape[-1] // network.config.patch_size)
    count = grid[0] * grid[1]
    end = prefix.length + 1 + count
    entry = find_or_write(network, prefix, use, latent, end, attention)
    if entry is None:
        return network.velocity(latent, sigma, prefix, attention)
    time = entry.times.get(sigma_key(value))
    memory = ReadingMemory(entry, prefix.length, time, network.config.num_layers)
    hidden = network.embed_picture(padded, network.x_embedder)
    rows = [Rows(0, count, end)]
    if time is None:
        hidden = torch.cat((network.embed_time(sigma, latent.dtype)[:, None], hidden), dim=1)
        rows = [Rows(0, 1, prefix.length + 1), Rows(1, count + 1, end)]
    positions = torch.arange(end - hidden.shape[1], end)
    rotary = network.rotation(positions, end, latent.device)
    hidden = network.run_layers(hidden, rotary, rows, attention, memory)
    if time is None:
        keys = torch.stack([layer[0] for layer in memory.fresh_times])
        tokens = keys, torch.stack([layer[1] for layer in memory.fresh_times])
        use.cache.add_time(entry, sigma_key(value), tokens, use.settings.max_bytes)
    velocity = network.read_velocity(hidden[:, -count:], sigma, grid)
    return velocity[..., : size[0], : size[1]]

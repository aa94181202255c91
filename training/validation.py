"""Held-out loss at fixed noise and fixed sigmas, and sample pictures from fixed noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .families.base import Batch
from .samples import SampleStore
from .session import Session
from .team import Team
from .timesteps import slot_generator


def held_out_loss(
    session: Session,
    store: SampleStore,
    indices: Sequence[int],
    team: Team,
    stop_here: Callable[[], None] = lambda: None,
) -> float:
    """Mean loss of the held-out samples with the weights that would be saved; equal on every process."""
    config, device = session.config, session.device
    chosen = config.validation.sigmas if session.family.uses_sigma else config.validation.sigmas[:1]
    total = torch.zeros((), device=device)
    with torch.no_grad(), session.saved_weights(), session.autocast():
        for index in team.shard(indices):
            stop_here()
            sample = store.read(index)
            batch = session.family.collate([sample], config, device, torch.float32)
            generator = slot_generator(config.seed, 0, index, "validation")
            noise = torch.randn(sample.target.shape, generator=generator)[None].to(device)
            for number, sigma in enumerate(chosen):
                sigmas = torch.full((1,), sigma, device=device)
                # What a network draws by itself is the same each time too.
                seed = slot_generator(config.seed, number, index, "validation network").initial_seed()
                with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                    torch.manual_seed(seed)
                    total += session.family.loss(session.network, batch, noise, sigmas, config).sum()
    return team.sum(total).item() / (len(indices) * len(chosen))


def sample_latents(
    session: Session,
    store: SampleStore,
    indices: Sequence[int],
    stop_here: Callable[[], None] = lambda: None,
) -> list[dict[str, Tensor]]:
    """For each sample: `sample` (drawn from fixed noise), `target` and its references, each (C, H, W)."""
    config, family = session.config, session.family
    drawn = []
    with torch.no_grad(), session.saved_weights(), session.autocast():
        for index in indices:
            stop_here()
            sample = store.read(index)
            batch = family.collate([sample], config, session.device, torch.float32)
            batch = with_guidance(batch, config.output.sample_guidance)
            generator = slot_generator(config.seed, 0, index, "preview")
            noise = torch.randn(sample.target.shape, generator=generator)[None].to(session.device)
            sigmas = family.preview_sigmas(config, family.num_tokens(sample))
            latent = family.sample(session.network, batch, noise, sigmas, config)
            references = {f"reference_{n}": r for n, r in enumerate(sample.references, start=1)}
            drawn.append({"sample": latent[0].float().cpu(), "target": sample.target, **references})
    return drawn


def with_guidance(batch: Batch, guidance: float) -> Batch:
    """The batch with the guidance that pictures are drawn at."""
    return dataclasses.replace(batch, conditions={**batch.conditions, "guidance": guidance})

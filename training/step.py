"""One optimizer step: the samples of the step in batches of like shape, their loss and gradients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import RunConfig, StageConfig
from .families.base import CachedSample
from .samples import SampleStore, StepOrder, drawn_variant
from .session import Session
from .team import Team
from .timesteps import draw_sigma, slot_generator


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in the global batch of a step and the sample that fills it."""

    number: int
    index: int
    variant: str


def drawn_noise(config: RunConfig, step: int, slot: int, sample: CachedSample) -> Tensor:
    """Noise of the target's shape, the same for every device and every split into batches."""
    return torch.randn(sample.target.shape, generator=slot_generator(config.seed, step, slot, "noise"))


class StoppedError(Exception):
    """The run was cancelled in the middle of a step, a validation or a preview; no weight has changed."""


class StepRunner:
    """Computes the steps of one stage; `indices` are the training samples in the store.

    `stop_here` is called before every batch and may raise StoppedError.
    """

    def __init__(
        self,
        session: Session,
        store: SampleStore,
        indices: Sequence[int],
        stage: int,
        team: Team,
        stop_here: Callable[[], None] = lambda: None,
    ) -> None:
        self.session, self.store, self.team, self.stop_here = session, store, team, stop_here
        self.indices = list(indices)
        self.stage: StageConfig = session.config.stages[stage]
        shapes = [str(store.entries[index].shapes) for index in self.indices]
        seen = sum(earlier.steps * earlier.global_batch for earlier in session.config.stages[:stage])
        self.order = StepOrder(
            shapes,
            seed=session.config.seed,
            stage=stage,
            batch_size=self.stage.batch_size,
            per_step=self.stage.global_batch,
            shuffled=not store.in_order,
            first=seen if store.in_order else 0,
        )

    def slots(self, step: int, step_of_stage: int) -> list[Slot]:
        """This process's part of a step's global batch."""
        config = self.session.config
        chosen = [
            Slot(
                number,
                self.indices[position],
                drawn_variant(config.objective, slot_generator(config.seed, step, number, "dropout")),
            )
            for number, position in enumerate(self.order.batch(step_of_stage))
        ]
        return self.team.shard(chosen)

    def batches(self, slots: Sequence[Slot]) -> list[list[tuple[Slot, CachedSample]]]:
        """The slots with their samples, put together by signature, at most `batch_size` each."""
        alike: dict[Hashable, list[tuple[Slot, CachedSample]]] = defaultdict(list)
        for slot in slots:
            sample = self.store.take(slot.index, slot.variant)
            alike[self.session.family.signature(sample)].append((slot, sample))
        size = self.stage.batch_size
        return [group[at : at + size] for group in alike.values() for at in range(0, len(group), size)]

    def loss(self, step: int, group: Sequence[tuple[Slot, CachedSample]]) -> Tensor:
        """Sum of the samples' losses, divided by the global batch; a scalar with its gradient's graph."""
        session, config = self.session, self.session.config
        samples = [sample for _, sample in group]
        batch = session.family.collate(samples, config, session.device, torch.float32)
        noise = torch.stack([drawn_noise(config, step, slot.number, sample) for slot, sample in group])
        sigmas = torch.stack(
            [
                draw_sigma(
                    config.timesteps,
                    session.family.num_tokens(sample),
                    slot_generator(config.seed, step, slot.number, "sigma"),
                )
                for slot, sample in group
            ]
        )
        torch.manual_seed(slot_generator(config.seed, step, group[0][0].number, "layers").initial_seed())
        with session.autocast():
            losses = session.family.loss(
                session.network, batch, noise.to(session.device), sigmas.to(session.device), config
            )
        return losses.sum() / self.stage.global_batch

    def gradients(self, step: int, step_of_stage: int) -> tuple[float, float]:
        """Leave the step's gradient in the trainable weights; (loss, gradient norm before clipping)."""
        session = self.session
        total = torch.zeros((), device=session.device)
        for group in self.batches(self.slots(step, step_of_stage)):
            self.stop_here()
            loss = self.loss(step, group)
            loss.backward()
            total += loss.detach()
        following = self.slots(step + 1, step_of_stage + 1)
        self.store.prefetch([(slot.index, slot.variant) for slot in following])
        parameters = list(session.trainable.values())
        self.team.sum_gradients(parameters)
        limit = session.config.optimizer.clip_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        return self.team.sum(total).item(), norm.item()

    def run(self, step: int, step_of_stage: int) -> tuple[float, float, float, bool]:
        """One whole optimizer step: (loss, gradient norm, learning rate, whether weights changed)."""
        session = self.session
        rate = session.set_learning_rate(self.stage, step_of_stage)
        loss, norm = self.gradients(step, step_of_stage)
        finite = session.monitor.add(loss, norm)
        if finite:
            with session.changing():
                session.optimizer.step()
                if session.ema is not None:
                    session.ema.step(list(session.trainable.values()))
        session.optimizer.zero_grad(set_to_none=True)
        return loss, norm, rate, finite

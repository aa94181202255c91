"""One step: how samples are put together, the rate, what is computed twice, whose weights are judged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pack.training.config import MemoryConfig, OptimizerConfig, StageConfig
from pack.training.session import Session
from pack.training.team import Team
from pack.training.validation import held_out_loss, sample_latents

from tests.training.toy import ToyBlock, toy_config, toy_place, toy_trainer


def test_no_batch_is_larger_than_the_stage_says(tmp_path: Path) -> None:
    stage = StageConfig(resolution=16, batch_size=2, gradient_accumulation=2, steps=1, learning_rate=1e-2)
    trainer, _ = toy_trainer(toy_config(stages=(stage,)), toy_place(tmp_path))
    _, runner, _, _ = trainer.open_stage()
    assert [len(group) for group in runner.batches(runner.slots(0, 0))] == [2, 2]
    trainer.close()


def test_every_stage_warms_up_anew(tmp_path: Path) -> None:
    stages = tuple(
        StageConfig(resolution=16, batch_size=2, steps=5, learning_rate=rate) for rate in (1e-2, 1e-3)
    )
    config = toy_config(stages=stages, optimizer=OptimizerConfig(schedule="cosine", warmup_steps=2))
    trainer, events = toy_trainer(config, toy_place(tmp_path))
    trainer.run()
    rates = [event["learning_rate"] for event in events if event["event"] == "step"]
    assert rates[0] < rates[2] > rates[3]
    assert rates[5:] == pytest.approx([rate / 10 for rate in rates[:5]])


@pytest.mark.parametrize(("recomputes", "calls"), [(True, 2), (False, 1)])
def test_blocks_are_computed_again_only_when_asked(tmp_path: Path, recomputes: bool, calls: int) -> None:
    memory = MemoryConfig(precision="fp32", gradient_checkpointing=recomputes)
    trainer, _ = toy_trainer(toy_config(memory=memory), toy_place(tmp_path))
    _, runner, _, _ = trainer.open_stage()
    seen = []
    block = next(part for part in trainer.session.network.modules() if isinstance(part, ToyBlock))
    block.first.register_forward_hook(lambda *_: seen.append(1))
    (group,) = runner.batches(runner.slots(0, 0))
    runner.loss(0, group).backward()
    assert len(seen) == calls
    trainer.close()


def with_average_as_weights(session: Session) -> None:
    """The moving average in the weights for good, and no average any more."""
    session.ema.copy_to(list(session.trainable.values()))
    session.ema = None


def test_validation_and_pictures_take_the_weights_that_are_saved(tmp_path: Path) -> None:
    place = toy_place(tmp_path)
    trainer, _ = toy_trainer(toy_config(steps=5, optimizer=OptimizerConfig(ema_decay=0.5)), place)
    trainer.run()
    session = trainer.session
    store = place.open_samples(16)

    def judged() -> tuple[float, torch.Tensor]:
        return held_out_loss(session, store, [0, 1], Team()), sample_latents(session, store, [0])[0]["sample"]

    loss, picture = judged()
    raw = [parameter.detach().clone() for parameter in session.trainable.values()]
    average = session.ema
    session.ema = None
    raw_loss, raw_picture = judged()
    session.ema = average
    with_average_as_weights(session)
    saved_loss, saved_picture = judged()
    assert any(not torch.equal(a, b) for a, b in zip(raw, session.trainable.values(), strict=True))
    assert loss == saved_loss != raw_loss
    assert torch.equal(picture, saved_picture) and not torch.equal(picture, raw_picture)

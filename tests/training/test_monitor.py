"""What the guard against a divergence takes as a measure: losses of one scale, none that are next to 0."""

from __future__ import annotations

from pathlib import Path

import pytest
from pack.training import monitor as guard
from pack.training.checkpoint import checkpoint_steps
from pack.training.config import OutputConfig, RunConfig, StageConfig, ValidationConfig
from pack.training.monitor import GRACE_STEPS, LossMonitor
from pack.training.trainer import RunFolder, Trainer

from tests.training.toy import toy_config, toy_place, toy_trainer

STAGE_STEPS = 10


def two_stages() -> RunConfig:
    stages = tuple(
        StageConfig(resolution=side, batch_size=2, steps=STAGE_STEPS, learning_rate=1e-3) for side in (16, 32)
    )
    return toy_config(
        stages=stages,
        validation=ValidationConfig(fraction=0.0),
        output=OutputConfig(checkpoint_every=STAGE_STEPS // 2, sample_every=0),
    )


def trained(place: RunFolder, stop_at: int | None = None) -> Trainer:
    """A run whose second stage has losses ten times as large; whether it was cancelled or not."""
    trainer, _ = toy_trainer(two_stages(), place, stop_at)
    real = trainer.session.family.loss

    def larger(*arguments):
        return real(*arguments) * (10.0 if trainer.session.step >= STAGE_STEPS else 1.0)

    trainer.session.family.loss = larger
    assert trainer.run() == ("finished" if stop_at is None else "cancelled")
    return trainer


def test_a_stage_with_larger_losses_is_no_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "GRACE_STEPS", STAGE_STEPS // 2)
    place = toy_place(tmp_path / "whole", resolutions=(16, 32))
    whole = trained(place)
    assert whole.session.monitor.seen == STAGE_STEPS
    assert checkpoint_steps(place.checkpoints) == [3 * STAGE_STEPS // 2, 2 * STAGE_STEPS]
    for stop_at in (STAGE_STEPS, STAGE_STEPS + 5):
        halves = toy_place(tmp_path / str(stop_at), resolutions=(16, 32))
        trained(halves, stop_at)
        assert checkpoint_steps(halves.checkpoints)[-1] == stop_at
        assert trained(halves).session.monitor == whole.session.monitor


def test_steps_that_fail_in_a_row_are_counted_over_a_change_of_stage() -> None:
    monitor = LossMonitor()
    for loss in (1.0, float("nan"), float("nan")):
        monitor.add(loss, 1.0)
    again = monitor.begun_anew()
    assert again == LossMonitor(non_finite_in_a_row=2)
    again.add(float("nan"), 1.0)
    assert again.diverged() is not None


@pytest.mark.parametrize("usual", [2e-4, 0.015])
def test_one_bad_batch_among_losses_next_to_zero_is_no_divergence(usual: float) -> None:
    monitor = LossMonitor()
    for _ in range(4 * GRACE_STEPS):
        monitor.add(usual, 1.0)
    monitor.add(1.0, 1.0)
    assert monitor.diverged() is None and not monitor.is_suspect
    for _ in range(GRACE_STEPS):
        monitor.add(1.0, 1.0)
    assert monitor.is_suspect and "4 x its lowest" in monitor.diverged()

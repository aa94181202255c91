"""Memory that runs out while a step changes the weights: nothing torn is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pack.training.checkpoint import checkpoint_steps
from pack.training.config import OptimizerConfig

from tests.training.toy import toy_config, toy_place, toy_trainer


def starve_within_a_step(trainer, part: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out at step `at` in the first moments, or behind the new weights, or behind the average."""
    session, zeros = trainer.session, torch.zeros_like
    owner = session.ema if part == "average" else session.optimizer
    real, made = owner.step, []

    def starving_zeros(*arguments, **options):
        made.append(arguments)
        if len(made) == 3:
            raise torch.OutOfMemoryError("no room")
        return zeros(*arguments, **options)

    def starving(*arguments):
        if session.step != at:
            return real(*arguments)
        if part == "first moments":
            monkeypatch.setattr(torch, "zeros_like", starving_zeros)
        real(*arguments)
        raise torch.OutOfMemoryError("no room")

    owner.step = starving


@pytest.mark.parametrize(
    ("part", "at", "kept"),
    [("first moments", 0, []), ("weights", 0, []), ("weights", 5, [3]), ("average", 5, [3])],
)
def test_out_of_memory_within_a_step_saves_nothing_and_the_run_goes_on_from_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, at: int, kept: list[int]
) -> None:
    config = toy_config(optimizer=OptimizerConfig(ema_decay=0.9))
    whole, _ = toy_trainer(config, toy_place(tmp_path / "whole"))
    whole.run()
    place = toy_place(tmp_path / "starved")
    trainer, events = toy_trainer(config, place)
    with monkeypatch.context() as patch:
        starve_within_a_step(trainer, part, at, patch)
        with pytest.raises(torch.OutOfMemoryError):
            trainer.run()
    assert checkpoint_steps(place.checkpoints) == kept
    (note,) = [event["message"] for event in events if event["event"] == "note"]
    onward = f"from step {kept[-1]}" if kept else "from the start"
    assert note == (
        f"memory ran out while the weights were changed, so this step was not saved; the run goes on {onward}"
    )
    again, events = toy_trainer(config, place)
    assert again.run() == "finished"
    assert events[0]["step"] == (kept[-1] if kept else 0)
    for name, tensor in whole.session.trainable.items():
        assert torch.equal(tensor, again.session.trainable[name]), name
    pairs = zip(whole.session.ema.shadow_params, again.session.ema.shadow_params, strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)

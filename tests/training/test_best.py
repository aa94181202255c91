"""The best weights that a run names are there, wherever it ended and from wherever it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from pack.training.checkpoint import checkpoint_steps
from pack.training.config import OutputConfig, RunConfig, StageConfig, ValidationConfig
from pack.training.metrics import MetricsFile, read_metrics
from pack.training.report import best_held_out
from pack.training.trainer import DivergedError, RunFolder
from safetensors import safe_open

from tests.training.toy import toy_config, toy_place, toy_trainer

STAGE_STEPS, CHECKPOINT = 6, 5


def two_stages(validate_every: int) -> RunConfig:
    stages = tuple(
        StageConfig(resolution=side, batch_size=2, steps=STAGE_STEPS, learning_rate=1e-2) for side in (16, 32)
    )
    return toy_config(
        stages=stages,
        validation=ValidationConfig(fraction=0.25, every=validate_every, smallest_split=2),
        output=OutputConfig(checkpoint_every=CHECKPOINT, sample_every=0),
    )


def exported(place: RunFolder) -> int | None:
    """Step of the best weights on disk."""
    path = place.folder / "exports" / "best.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        return int(file.metadata()["dreamomni.step"])


def train(config: RunConfig, place: RunFolder, stop_at: int | None = None, fails_at: int = -1) -> list[dict]:
    """The events of a run that is cancelled at one step, or killed by an error at another."""
    trainer, events = toy_trainer(config, place, stop_at)
    real = trainer.session.family.loss

    def failing(*arguments):
        if trainer.session.step == fails_at:
            raise RuntimeError("the driver is gone")
        return real(*arguments)

    trainer.session.family.loss = failing
    try:
        trainer.run()
    except RuntimeError as error:
        assert "the driver is gone" in str(error)
    finally:
        diary = MetricsFile(place.folder)
        for event in events:
            diary.append(event)
        diary.close()
    return events


@pytest.mark.parametrize("validate_every", [4, 2], ids=["weights gone", "weights of the next stage"])
def test_a_run_that_falls_back_before_a_stage_names_no_best_that_is_gone(
    tmp_path: Path, validate_every: int
) -> None:
    config, place = two_stages(validate_every), toy_place(tmp_path, resolutions=(16, 32))
    train(config, place, fails_at=STAGE_STEPS + (validate_every == 2))
    assert checkpoint_steps(place.checkpoints) == [CHECKPOINT]
    assert exported(place) == (None if validate_every == 4 else STAGE_STEPS)

    ended = train(config, place, stop_at=CHECKPOINT)[-1]
    assert (ended["event"], ended["step"], ended["best_step"]) == ("cancelled", CHECKPOINT, None)
    words = best_held_out(read_metrics(place.folder))
    assert words == f", the best is looked for anew from step {CHECKPOINT}"
    assert exported(place) is None

    ended = train(config, place)[-1]
    assert ended["event"] == "finished" and ended["best_step"] == exported(place) > STAGE_STEPS - 1
    assert best_held_out(read_metrics(place.folder)).endswith(f" at step {exported(place)}")


@pytest.mark.parametrize("earlier_version", [False, True])
def test_a_best_that_is_there_is_kept(tmp_path: Path, earlier_version: bool) -> None:
    config, place = two_stages(4), toy_place(tmp_path, resolutions=(16, 32))
    assert train(config, place, stop_at=CHECKPOINT)[-1]["best_step"] == 4
    if earlier_version:
        (place.folder / "exports" / "best.json").unlink()
    events = train(config, place, stop_at=CHECKPOINT)
    assert events[-1]["best_step"] == exported(place) == 4
    assert "best_forgotten" not in {event["event"] for event in events}


def test_a_rewind_before_a_stage_names_no_best_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, place = two_stages(4), toy_place(tmp_path, resolutions=(16, 32))
    train(config, place, stop_at=CHECKPOINT)
    trainer, events = toy_trainer(config, place)
    monkeypatch.setattr(
        trainer.session.monitor.__class__,
        "diverged",
        lambda monitor: "the loss ran away" if trainer.session.step > STAGE_STEPS else None,
    )
    with pytest.raises(DivergedError):
        trainer.run()
    assert (trainer.session.step, trainer.session.best.step, exported(place)) == (CHECKPOINT, None, None)
    assert [event["event"] for event in events[-2:]] == ["rewound", "best_forgotten"]

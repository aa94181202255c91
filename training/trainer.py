"""The run itself: steps, validation, sample pictures, checkpoints, stopping early, rewinding, cancelling."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .cache import TensorCache, content_key
from .checkpoint import checkpoint_steps, load_newest, put_aside_damaged, save_checkpoint
from .config import RunConfig
from .config_json import changed_settings, from_json
from .drawn import DrawnEntries, DrawnStore, read_drawn
from .encode import SampleEntry, read_manifest
from .events import Emit, Outcome
from .export import BEST, announce_best, export, exported_best, remove_export
from .files import write_tensors
from .ladder import laddered
from .memory import is_out_of_memory
from .monitor import BestValue
from .samples import SampleStore, split_held_out
from .session import Session
from .step import StepRunner, StoppedError
from .team import Team
from .validation import held_out_loss, sample_latents

log = logging.getLogger("dreamomni")

CHECKPOINTS, EXPORTS, SAMPLES = "checkpoints", "exports", "samples"


class DivergedError(RuntimeError):
    """The loss ran away; the weights are back at the last checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """Where the parts of a run lie."""

    folder: Path
    cache: Path

    def manifest(self, resolution: int) -> Path:
        """List of encoded samples at a resolution."""
        return self.folder / f"samples-{resolution}.jsonl"

    def recipe(self, resolution: int) -> Path:
        """Recipe of samples that are drawn while training at a resolution, instead of a manifest."""
        return self.folder / f"recipe-{resolution}.json"

    def open_samples(self, resolution: int) -> SampleStore:
        """The samples of a resolution: drawn from the recipe if there is one, else read from the cache."""
        if self.recipe(resolution).is_file():
            return DrawnStore(read_drawn(self.recipe(resolution)))
        return SampleStore(read_manifest(self.manifest(resolution)), TensorCache(self.cache))

    @property
    def checkpoints(self) -> Path:
        """Resume states."""
        return self.folder / CHECKPOINTS


def dataset_fingerprint(entries: Sequence[SampleEntry]) -> str:
    """Hash of what the samples are made of."""
    if isinstance(entries, DrawnEntries):
        return entries.samples.fingerprint()
    return content_key(*(f"{e.id} {e.content or e.target}" for e in entries))


class Trainer:
    """Takes a session from its step to the end of its stages."""

    def __init__(
        self,
        session: Session,
        place: RunFolder,
        team: Team,
        emit: Emit,
        cancelled: Callable[[], bool],
        base_hashes: Mapping[str, str] | None = None,
    ) -> None:
        self.session, self.place, self.team = session, place, team
        self.emit = emit if team.is_main else (lambda event: None)
        self.cancelled, self.base_hashes = cancelled, dict(base_hashes or {})
        self.fingerprint = ""
        self._opened: tuple[int, SampleStore, StepRunner, list[int]] | None = None

    def run(self) -> Outcome:
        """Train to the end; `finished`, `cancelled` or `stopped` (patience ran out).

        Raises DivergedError (rewound), and RuntimeError when memory ran out (with a checkpoint, unless
        it happened while the weights were changed: then the run goes on from the one before).
        """
        session, config = self.session, self.session.config
        self.resume()
        self.emit(
            {
                "event": "started",
                "step": session.step,
                "total": config.total_steps,
                "processes": self.team.size,
            }
        )
        try:
            if session.step == 0:
                self.open_stage()
                self.preview()
            outcome = self.loop()
        except StoppedError:
            session.optimizer.zero_grad(set_to_none=True)
            outcome = "cancelled"
        except RuntimeError as error:
            if is_out_of_memory(error):
                session.optimizer.zero_grad(set_to_none=True)
                # The others wait for a gradient that will not come.
                self.save(together=False, ended_early=True)
            raise
        finally:
            self.close()
        self.save(ended_early=outcome != "finished")
        self.emit({"event": outcome, "step": session.step, "best_step": session.best.step})
        return outcome

    def loop(self) -> Outcome:
        """Steps until the end, a cancel or the end of patience."""
        session, config = self.session, self.session.config
        if self.validation_is_due() and self.validate():  # one that a cancel cut short
            return "stopped"
        while session.step < config.total_steps:
            if self.team.any(self.cancelled(), session.device):
                return "cancelled"
            self.one_step()
            if self.validation_is_due() and self.validate():
                return "stopped"
            output = config.output
            shows = output.sample_every > 0 and session.step % output.sample_every == 0
            keeps = shows or session.step % output.checkpoint_every == 0
            if keeps and not session.monitor.is_suspect:
                self.save()  # before sampling, so that a crash there loses nothing
            if shows:
                self.preview()
        return "finished"

    def open_stage(self) -> tuple[SampleStore, StepRunner, list[int], int]:
        """(store, runner, held-out indices, step of the stage) for the session's step."""
        session, config = self.session, self.session.config
        index, stage = config.stage_at(session.step)
        before = sum(earlier.steps for earlier in config.stages[:index])
        if self._opened is None or self._opened[0] != index:
            self.close()
            store = self.place.open_samples(stage.resolution)
            training, held_out = split_held_out(store.entries, config.validation)
            runner = StepRunner(session, store, training, index, self.team, self.stop_here)
            self.fingerprint = dataset_fingerprint(store.entries)
            self._opened = (index, store, runner, held_out)
            if session.best_stage != index:
                session.best_stage = index
                self.forget_losses()
            self.emit(
                {
                    "event": "stage",
                    "step": session.step,
                    "stage": index,
                    "resolution": stage.resolution,
                    "samples": len(training),
                    "held_out": len(held_out),
                }
            )
        return *self._opened[1:], session.step - before

    def forget_losses(self) -> None:
        """Measure the loss anew, for the best weights and for a divergence: its scale is another now."""
        self.session.monitor = self.session.monitor.begun_anew()
        self.forget_best()

    def forget_best(self) -> None:
        """Begin anew to look for the best weights: losses of pictures of another size are no measure."""
        self.session.best = BestValue()
        self.emit({"event": "best_forgotten", "step": self.session.step})
        if self.team.is_main:
            remove_export(self.place.folder / EXPORTS, BEST)

    def require_best(self) -> None:
        """Forget a best that an older checkpoint tells of, if a later stage has removed its weights since."""
        session = self.session
        if session.best.step is None:
            return
        step = exported_best(self.place.folder / EXPORTS, session.best.step)
        if step is None or session.config.stage_at(step)[0] != session.best_stage:
            self.forget_best()

    def stop_here(self) -> None:
        """Raise StoppedError when a run of one process is cancelled; several look between steps together."""
        if self.team.size == 1 and self.cancelled():
            raise StoppedError

    def close(self) -> None:
        """Stop reading samples."""
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None

    def one_step(self) -> None:
        """One optimizer step and its line in the diary; rewinds and raises when the loss ran away."""
        session = self.session
        _, runner, _, step_of_stage = self.open_stage()
        began = time.perf_counter()
        loss, norm, rate, finite = runner.run(session.step, step_of_stage)
        session.step += 1
        self.emit(
            {
                "event": "step" if finite else "skipped",
                "step": session.step,
                "loss": loss,
                "smoothed": session.monitor.value,
                "gradient_norm": norm,
                "learning_rate": rate,
                "seconds": time.perf_counter() - began,
                "peak_bytes": torch.cuda.max_memory_allocated() if session.device.type == "cuda" else 0,
            }
        )
        reason = session.monitor.diverged()
        if reason is not None:
            self.rewind(reason)

    def rewind(self, reason: str) -> None:
        """Go back to the last checkpoint and raise DivergedError with what to do."""
        at = self.session.step
        state, _ = load_newest(self.place.checkpoints)
        if state is not None:
            self.session.restore(state)
        else:
            self.session.step = 0
        self.emit({"event": "rewound", "step": self.session.step, "from": at, "reason": reason})
        self.require_best()
        raise DivergedError(
            f"training diverged at step {at}: {reason}. The weights are back at step {self.session.step}; "
            "queue it again with resume and a lower learning rate (a half or a tenth)."
        )

    def validation_is_due(self) -> bool:
        """Whether the held-out loss of this step is wanted and not yet known."""
        step = self.session.step
        return step > self.session.validated_step and step % self.session.config.validation.every == 0

    def validate(self) -> bool:
        """Measure the held-out loss and keep the best weights; True when patience has run out."""
        session = self.session
        store, _, held_out, _ = self.open_stage()
        if not held_out:
            return False
        loss = held_out_loss(session, store, held_out, self.team, self.stop_here)
        best = session.best.add(loss, session.step)
        session.validated_step = session.step
        self.emit({"event": "validation", "step": session.step, "loss": loss, "best": best})
        if best and self.team.is_main:
            self.export(BEST)
        return session.best.exhausted(session.config.validation.patience)

    def preview(self) -> None:
        """Draw sample pictures; a failure is reported and never ends the run."""
        session = self.session
        store, runner, held_out, _ = self.open_stage()
        chosen = (held_out or runner.indices)[: session.config.output.sample_count]
        if not chosen or not self.team.is_main:
            return
        try:
            for number, latents in enumerate(sample_latents(session, store, chosen, self.stop_here)):
                path = self.place.folder / SAMPLES / f"step-{session.step:09d}-{number}.safetensors"
                write_tensors(path, latents, {"id": store.entries[chosen[number]].id})
        except (RuntimeError, ValueError, OSError) as error:
            if not session.is_consistent:  # the weights before the moving average's could not be put back
                raise
            self.emit({"event": "sample_failed", "step": session.step, "message": str(error)[:500]})
            return
        self.emit({"event": "samples", "step": session.step, "count": len(chosen)})

    def save(self, together: bool = True, ended_early: bool = False) -> None:
        """Write a checkpoint and the current weights; a full disk is reported and the run goes on.

        Weights of a run that was `ended_early` do not replace better ones.
        """
        if self.team.is_main and not (ended_early and self.keeps_older()):
            state = self.session.state(self.fingerprint, self.base_hashes)
            try:
                path = save_checkpoint(self.place.checkpoints, state, self.session.best.step)
                self.emit({"event": "saved", "step": self.session.step, "folder": path.name})
            except OSError as error:
                self.emit({"event": "save_failed", "step": self.session.step, "message": str(error)})
            self.export("last")
        if together:
            self.team.wait()

    def keeps_older(self) -> bool:
        """Whether this state is torn, or may be going wrong and would replace a good one on disk."""
        kept = checkpoint_steps(self.place.checkpoints)
        if not self.session.is_consistent:
            why = "memory ran out while the weights were changed"
        elif self.session.monitor.is_suspect and kept:
            why = "the loss was rising"
        else:
            return False
        onward = f"from step {kept[-1]}" if kept else "from the start"
        words = f"{why}, so this step was not saved; the run goes on {onward}"
        self.emit({"event": "note", "step": self.session.step, "message": words})
        return True

    def export(self, name: str) -> None:
        """Write the weights in the form others load."""
        folder = self.place.folder / EXPORTS
        try:
            if name == BEST:
                announce_best(folder, self.session.step)
            files = export(self.session, folder, name, self.base_hashes)
        except OSError as error:
            self.emit({"event": "save_failed", "step": self.session.step, "message": str(error)})
            return
        self.emit(
            {"event": "exported", "step": self.session.step, "name": name, "files": [str(f) for f in files]}
        )

    def resume(self) -> None:
        """Continue from the newest whole checkpoint, if there is one; ValueError if all are damaged."""
        state, messages = load_newest(self.place.checkpoints)
        for message in messages:
            self.emit({"event": "note", "step": state.step if state else 0, "message": message})
        if state is None and messages:
            raise ValueError(
                f"no checkpoint of run {self.session.config.name} is whole, and it does not begin again by "
                f"itself: put back {self.place.checkpoints} from a copy, or choose another run name"
            )
        if state is None:
            return
        self.team.wait()
        if self.team.is_main:
            put_aside_damaged(self.place.checkpoints, newer_than=state.step)
        saved = from_json(RunConfig, state.data["config"])
        require_resumable(
            laddered(saved, self.place.folder), self.session.config, state.data.get("base_hashes", {})
        )
        self.fingerprint = self.last_fingerprint(state.step)
        self.require_same_material(state.data)
        self.session.restore(state)
        if same_sizes(saved, self.session):
            self.require_best()
        else:
            self.forget_losses()

    def last_fingerprint(self, step: int) -> str:
        """The fingerprint of the samples that step `step` was made with, as they are now."""
        _, stage = self.session.config.stage_at(max(0, step - 1))
        store = self.place.open_samples(stage.resolution)
        store.close()
        return dataset_fingerprint(store.entries)

    def require_same_material(self, saved: Mapping[str, Any]) -> None:
        """Raise ValueError when samples or base are not those of the checkpoint."""
        hashes = saved.get("base_hashes", {})
        changed = [
            f"the base's {role}" for role, value in hashes.items() if self.base_hashes.get(role) != value
        ]
        if saved["dataset"] and saved["dataset"] != self.fingerprint:
            changed.insert(0, "the dataset")
        if changed:
            raise ValueError(
                f"{' and '.join(changed)} changed since run {self.session.config.name!r} was started. Put "
                "back what it was to continue the run, or give a new run name to start afresh."
            )


def same_sizes(saved: RunConfig, session: Session) -> bool:
    """Whether the stage of the best loss has pictures of the size it had when `saved` was the config."""
    sides = []
    for config in (saved, session.config):
        resolution = config.stages[session.best_stage].resolution
        sides.append((resolution, config.reference_side(resolution)))
    return sides[0] == sides[1]


def require_resumable(old: RunConfig, new: RunConfig, hashed: Collection[str] = ()) -> list[str]:
    """The harmless changes between two configs; ValueError lists the others and the way out.

    Parts of the base that are `hashed` are compared by their content elsewhere: they may have been moved.
    """
    moved = {role: new.base[role] for role in hashed if role in old.base and role in new.base}
    harmless, refused = changed_settings(dataclasses.replace(old, base={**old.base, **moved}), new)
    if refused:
        raise ValueError(
            f"run {new.name!r} was started with other settings: {'; '.join(refused)}. "
            "Put them back to continue it, or give a new run name to start afresh."
        )
    return harmless

"""What a training process says while it runs: each event by its name with its fields, and as a line of JSON.

The same lines go to whoever started the process and into the diary of the run. Those who listen compare
`event["event"]` with a name; those who send write the dict out, and both are checked against this table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Literal, TypedDict, cast

Outcome = Literal["finished", "cancelled", "stopped"]
"""How a run ends that did not fail; `stopped` means that patience ran out."""


class Timed(TypedDict, total=False):
    """What a training process adds to each event when it sends it."""

    time: float
    """Seconds since 1970."""


class Moment(Timed):
    """What every event has."""

    step: int
    """Finished optimizer steps of the run."""


class Plan(Moment):
    """The network is loaded: how its memory will be used, in words."""

    event: Literal["plan"]
    text: str


class Started(Moment):
    """The run begins, or goes on from `step`: what the diary says of later steps is void."""

    event: Literal["started"]
    total: int
    processes: int


class Stage(Moment):
    """Samples of a stage are open; the numbers count them."""

    event: Literal["stage"]
    stage: int
    resolution: int
    samples: int
    held_out: int


class Step(Moment):
    """One optimizer step is over; `skipped` if its numbers were not finite and no weight has changed."""

    event: Literal["step", "skipped"]
    loss: float
    smoothed: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    peak_bytes: int


RewoundFrom = TypedDict("RewoundFrom", {"from": int})
"""A field that is called like a word of Python cannot be declared in a class."""


class Rewound(RewoundFrom, Moment):
    """The loss ran away at step `from`: weights and diary are back at `step`."""

    event: Literal["rewound"]
    reason: str


class Validation(Moment):
    """The held-out loss was measured; `best` if it is the lowest so far."""

    event: Literal["validation"]
    loss: float
    best: bool


class BestForgotten(Moment):
    """Losses are measured on other pictures from here on: the best weights are looked for anew."""

    event: Literal["best_forgotten"]


class Samples(Moment):
    """Sample pictures were drawn and lie as latents in the run's folder."""

    event: Literal["samples"]
    count: int


class Saved(Moment):
    """A checkpoint was written."""

    event: Literal["saved"]
    folder: str


class Exported(Moment):
    """Weights were written in the form others load: `name` is `best` or `last`."""

    event: Literal["exported"]
    name: str
    files: list[str]


class Note(Moment):
    """What a user should know, or a failure that does not end the run."""

    event: Literal["note", "save_failed", "sample_failed"]
    message: str


class Failure(Moment):
    """The last event of a process that failed."""

    event: Literal["error", "out_of_memory"]
    message: str


class Ladder(Moment):
    """Memory ran out, something was given up, and the run is started again for the `restart`th time."""

    event: Literal["ladder"]
    restart: int
    message: str


class End(Moment):
    """The last event of a process that did not fail."""

    event: Outcome
    best_step: int | None


Event = (
    Plan
    | Started
    | Stage
    | Step
    | Rewound
    | Validation
    | BestForgotten
    | Samples
    | Saved
    | Exported
    | Note
    | Failure
    | Ladder
    | End
)
Emit = Callable[[Event], None]
"""Sends an event."""
Heard = Callable[[Event | None], None]
"""Hears each event, and None at least twice a second while there is nothing new."""


def event_line(event: Event) -> str:
    """The line of JSON that says it; NaN and infinity, which JSON cannot hold as numbers, are text there."""
    written = {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in event.items()
    }
    return json.dumps(written) + "\n"


def event_of(line: str) -> Event | None:
    """The event of a line; None for half a line and for what a library printed."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return cast(Event, event) if isinstance(event, dict) and "event" in event else None

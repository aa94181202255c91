"""A run as a picture and as words, drawn from its diary on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .events import Event
from .metrics import read_metrics

SIZE = (960, 540)
MARGIN = (70, 30, 20, 50)  # left, top, right, bottom
PAPER, INK, GRID = (255, 255, 255), (30, 30, 30), (225, 225, 225)
RAW, SMOOTH, HELD_OUT = (190, 205, 235), (40, 90, 200), (215, 90, 30)
MARKS = {
    "out_of_memory": (200, 0, 0),
    "rewound": (200, 0, 0),
    "ladder": (200, 120, 0),
    "saved": (150, 150, 150),
}

SPOKEN = ("ladder", "rewound", "sample_failed", "save_failed", "note", "error", "out_of_memory")
"""Events that the summary tells in their own words."""
DATASET_NOTES = "dataset.json"
"""A file of the run: what the dataset doctor said before it."""

Points = Sequence[tuple[float, float]]


def finite(points: Iterable[tuple[int, float]]) -> list[tuple[float, float]]:
    """The points whose value is a finite number; a diary has the others as text."""
    return [
        (step, value) for step, value in points if isinstance(value, (int, float)) and math.isfinite(value)
    ]


def held_out_losses(events: Sequence[Event]) -> list[tuple[float, float]]:
    """(step, held-out loss) wherever that is a number."""
    return finite((event["step"], event["loss"]) for event in events if event["event"] == "validation")


def loss_chart(folder: Path) -> Image.Image:
    """Loss of each step, smoothed and held-out loss over the steps of a run; an empty frame without any."""
    events = read_metrics(folder)
    steps = [event for event in events if event["event"] == "step"]
    raw = finite((event["step"], event["loss"]) for event in steps)
    smooth = finite((event["step"], event["smoothed"]) for event in steps)
    held_out = held_out_losses(events)
    image = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(image)
    values = sorted(value for _, value in [*raw, *smooth, *held_out])
    if not values:
        draw.text((SIZE[0] // 2, SIZE[1] // 2), "no steps yet", fill=INK, anchor="mm")
        return image
    top = values[min(len(values) - 1, int(len(values) * 0.99))] * 1.05 or 1.0
    last = max(step for step, _ in [*raw, *held_out])
    first = min(step for step, _ in [*raw, *held_out])

    def place(point: tuple[float, float]) -> tuple[float, float]:
        width, height = SIZE[0] - MARGIN[0] - MARGIN[2], SIZE[1] - MARGIN[1] - MARGIN[3]
        share = (point[0] - first) / (last - first) if last > first else 0.5
        return MARGIN[0] + share * width, MARGIN[1] + (1 - min(point[1] / top, 1.0)) * height

    draw_grid(draw, place, (first, last), top)
    draw_marks(draw, place, events)
    for points, colour, thickness in ((raw, RAW, 1), (smooth, SMOOTH, 2), (held_out, HELD_OUT, 2)):
        draw_line(draw, [place(point) for point in points], colour, thickness)
    for number, (words, colour) in enumerate(
        (("loss of a step", RAW), ("smoothed", SMOOTH), ("held out", HELD_OUT))
    ):
        draw.text((MARGIN[0] + 10 + 130 * number, 8), words, fill=colour, font=ImageFont.load_default(14))
    return image


def words_picture(words: str) -> Image.Image:
    """A small picture that says something in place of one that is not there."""
    image = Image.new("RGB", (256, 128), PAPER)
    ImageDraw.Draw(image).text((128, 64), words, fill=INK, anchor="mm")
    return image


def draw_line(draw: ImageDraw.ImageDraw, points: Points, colour: tuple[int, int, int], width: int) -> None:
    """A line through points, or a dot for a single one."""
    if len(points) == 1:
        x, y = points[0]
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    elif points:
        draw.line(list(points), fill=colour, width=width, joint="curve")


def draw_grid(draw: ImageDraw.ImageDraw, place: Any, steps: tuple[float, float], top: float) -> None:
    """Axes with five numbers each."""
    font = ImageFont.load_default(13)
    for number in range(5):
        value = top * number / 4
        x, y = place((steps[0], value))
        draw.line((MARGIN[0], y, SIZE[0] - MARGIN[2], y), fill=GRID)
        draw.text((MARGIN[0] - 8, y), f"{value:.3g}", fill=INK, anchor="rm", font=font)
        step = steps[0] + (steps[1] - steps[0]) * number / 4
        x, _ = place((step, 0))
        draw.text((x, SIZE[1] - MARGIN[3] + 16), f"{step:.0f}", fill=INK, anchor="mm", font=font)
    draw.text((SIZE[0] // 2, SIZE[1] - 12), "optimizer step", fill=INK, anchor="mm", font=font)


def draw_marks(draw: ImageDraw.ImageDraw, place: Any, events: Sequence[Event]) -> None:
    """A short line at the bottom where something happened."""
    for event in events:
        colour = MARKS.get(event["event"])
        if colour is not None and event.get("step"):
            x, y = place((event["step"], 0))
            draw.line((x, y - 8, x, y), fill=colour, width=2)


def run_summary(folder: Path, notes: str = "") -> str:
    """The run in words: how far, how fast, how good, what happened, `notes`, and last the last event."""
    events = read_metrics(folder)
    steps = [event for event in events if event["event"] == "step"]
    total = next((e["total"] for e in reversed(events) if e["event"] == "started"), 0)
    lines = [f"run {folder.name}: step {steps[-1]['step'] if steps else 0} of {total}"]
    if steps:
        last = steps[-1]
        recent = sorted(event["seconds"] for event in steps[-50:])
        pace = recent[len(recent) // 2]
        lines.append(f"loss {last['loss']:.4g}, smoothed {last['smoothed']:.4g}")
        lines.append(
            f"learning rate {last['learning_rate']:.3g}, gradient norm {last['gradient_norm']:.3g}, "
            f"{pace:.2f} s a step, {max(0, total - last['step']) * pace / 60:.0f} min to go"
        )
        if last.get("peak_bytes"):
            lines.append(f"peak memory {last['peak_bytes'] / 2**30:.2f} GiB")
    held_out = held_out_losses(events)
    if held_out:
        lines.append(f"held-out loss {held_out[-1][1]:.4g}{best_held_out(events)}")
    else:
        lines.append(f"no held-out loss: {why_no_held_out_loss(events)}")
    for event in events:
        if event["event"] in SPOKEN:
            words = event.get("message") or event.get("reason", "")
            lines.append(f"step {event.get('step', 0)}, {event['event'].replace('_', ' ')}: {words}")
    plans = [event["text"] for event in events if event["event"] == "plan"]
    lines += [*plans[-1:], *notes.splitlines()]
    ending = events[-1]["event"] if events else "not started"
    lines.append(f"last event: {ending.replace('_', ' ')}")
    return "\n".join(lines)


def dataset_notes(folder: Path) -> str:
    """What the dataset doctor said before the run."""
    path = folder / DATASET_NOTES
    return json.loads(path.read_text(encoding="utf-8"))["text"] if path.is_file() else ""


def best_held_out(events: Sequence[Event]) -> str:
    """The loss of the best weights that are kept, or since when there are none; nothing if there never were.

    It need not be the lowest: the best is looked for anew when pictures get another size.
    """
    words = ""
    for event in events:
        if event["event"] == "best_forgotten":
            words = f", the best is looked for anew from step {event['step']}"
        elif event["event"] == "validation" and event.get("best"):
            words = f", best {event['loss']:.4g} at step {event['step']}"
    return words


def why_no_held_out_loss(events: Sequence[Event]) -> str:
    """Why a run has no held-out loss that is a number."""
    if any(event["event"] == "validation" for event in events):
        return "what was measured is not a number"
    stages = [event for event in events if event["event"] == "stage"]
    if stages and not stages[-1].get("held_out"):
        return "fewer than four samples could be held out"
    return "none measured yet"


def sample_strips(folder: Path) -> list[Path]:
    """Decoded sample pictures of the first and of the newest drawing, in order."""
    files = sorted((folder / "samples").glob("step-*.png"))
    steps = sorted({file.name.rsplit("-", 1)[0] for file in files})
    wanted = {steps[0], steps[-1]} if steps else set()
    return [file for file in files if file.name.rsplit("-", 1)[0] in wanted]

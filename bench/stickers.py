"""Pairs per second of the sticker pipeline, how they grow with processes, and the memory of the reader.

A pair is a whole sample: instruction, source, references, target, mask and scene description, written to
shards. The reader is measured on files with as many lines as the dataset has samples; the pictures are one.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import tracemalloc
from pathlib import Path

from PIL import Image

from ..training.dataset import open_dataset
from ..training.synthesis.config import recipe_for
from ..training.synthesis.generate import Job, generate
from ..training.synthesis.samples import Synthesizer
from ..training.synthesis.writers import sample_pictures
from .harness import Table

SIZES = {64: 300, 512: 30, 1024: 12}
"""Picture size -> samples measured."""

PROCESS_SIZE, PROCESS_SAMPLES = 512, 96
LINES = (10**3, 10**4, 10**5, 10**6)


def drawing() -> Table:
    """Pairs per second of one core, drawn and encoded."""
    rows = []
    for size, count in SIZES.items():
        synthesizer = Synthesizer(recipe_for(size, size, seed=7))
        synthesizer.sample(0)
        start = time.process_time()
        samples = [synthesizer.sample(index) for index in range(count)]
        drawn = time.process_time() - start
        written = sum(sum(map(len, sample_pictures(sample).values())) for sample in samples)
        total = time.process_time() - start
        rows.append((f"{size} px", count / drawn, count / total, written / count / 1024))
    return Table(
        name="sticker pairs per second per core",
        columns=("size", "drawn", "drawn and encoded", "kB per pair"),
        rows=tuple(rows),
        note="Seconds of processor time, so other programs on the machine do not count.",
        chart=("size", "drawn and encoded"),
    )


def processes() -> Table:
    """Wall-clock pairs per second with more and more processes."""
    rows, single = [], 0.0
    counts = [1]
    while counts[-1] * 2 <= (os.cpu_count() or 1):
        counts.append(counts[-1] * 2)
    config = recipe_for(PROCESS_SIZE, PROCESS_SIZE, seed=7)
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            job = Job(folder=Path(folder) / "data", config=config, count=PROCESS_SAMPLES, part_size=6)
            start = time.perf_counter()
            generate(job, count)
            speed = PROCESS_SAMPLES / (time.perf_counter() - start)
        single = single or speed
        rows.append((count, speed, speed / single))
    return Table(
        name=f"sticker pairs per second at {PROCESS_SIZE} px by processes",
        columns=("processes", "pairs per second", "times one process"),
        rows=tuple(rows),
        note=f"Wall clock with writing, {os.cpu_count()} cores.",
    )


def reader() -> Table:
    """Memory and time of opening and reading datasets of growing length."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        Image.new("RGB", (64, 64)).save(place / "a.png")
        words = {"task": "add", "instruction": "Add a red star.", "source": "a.png", "target": "a.png"}
        line = json.dumps(words | {"references": [], "mask": None}) + "\n"
        for count in LINES:
            with (place / "samples.jsonl").open("w") as file:
                for _ in range(count // 1000):
                    file.write(line * 1000)
            start = time.perf_counter()
            dataset = open_dataset(place)
            opened = time.perf_counter() - start
            start = time.perf_counter()
            for index in range(0, count, count // 100):
                dataset[index]
            each = (time.perf_counter() - start) / 100
            # Measured apart from the times, which tracing would falsify.
            tracemalloc.start()
            dataset = open_dataset(place)
            for index in range(0, count, count // 20):
                dataset[index]
            held, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            rows.append((count, held / 1024, peak / 1024, opened, each * 1000))
    return Table(
        name="memory of the dataset reader",
        columns=("samples", "held kB", "peak kB", "seconds to open", "ms per sample"),
        rows=tuple(rows),
        note="Memory of Python objects while samples all over the dataset are read.",
    )


def tables() -> list[Table]:
    """All measurements."""
    return [drawing(), processes(), reader()]

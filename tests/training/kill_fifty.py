"""Kills a training process at fifty random moments, checks what is left each time, prints the last step."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

from pack.training.checkpoint import load_newest
from pack.training.config import OutputConfig, ValidationConfig

from tests.training.toy import toy_config, toy_place, toy_trainer


def tell_steps(writer: int, event: dict) -> None:
    if event["event"] == "step":
        os.write(writer, b"x")


def main() -> None:
    place = toy_place(Path(sys.argv[2]), count=4)
    every = 1
    config = toy_config(
        steps=100_000,
        output=OutputConfig(checkpoint_every=every, sample_every=0),
        validation=ValidationConfig(fraction=0.0),
    )
    trainer, _ = toy_trainer(config, place)
    chance, reached = random.Random(3), 0
    for _ in range(50):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # trains on, telling each finished step, until it is killed
            os.close(reader)
            trainer.emit = partial(tell_steps, writer)
            try:
                trainer.run()
            finally:
                os._exit(1)
        os.close(writer)
        told = len(os.read(reader, 1))
        time.sleep(chance.random() * 0.1)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child ended by itself"
        while data := os.read(reader, 65536):
            told += len(data)
        os.close(reader)
        newest, messages = load_newest(place.checkpoints)
        assert messages == []
        kept = newest.step if newest else 0
        assert kept >= reached + told - every, "more than one interval was lost"
        reached = kept
    sys.stdout.write(f"{reached}\n")

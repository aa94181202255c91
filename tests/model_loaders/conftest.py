"""ComfyUI collects garbage at every model switch, which takes most of a second beside a full test process."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="package")
def quick_collections() -> Iterator[None]:
    """Leave what was imported before out of every collection."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()

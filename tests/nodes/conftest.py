"""A tiny OmniGen on disk and as ComfyUI loads it, once for the tests of a file."""

from __future__ import annotations

import pytest
from omnigen_sampling import load
from tiny_omnigen import tiny_config, write_official


@pytest.fixture(scope="module")
def omnigen_folder(tmp_path_factory):
    return write_official(tmp_path_factory.mktemp("omnigen"), tiny_config())


@pytest.fixture(scope="module")
def loaded_omnigen(omnigen_folder):
    return load(omnigen_folder)

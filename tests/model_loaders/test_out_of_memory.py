"""Errors that say a device is full, told from others."""

from __future__ import annotations

import pytest
from full_device import KINDS, full_error

pytestmark = pytest.mark.host


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_device_is_known(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pack.model_loaders.out_of_memory import raise_unless_out_of_memory

    raise_unless_out_of_memory(full_error(kind, monkeypatch))


@pytest.mark.parametrize("kind", KINDS)
def test_other_errors_stay_errors(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pack.model_loaders.out_of_memory import raise_unless_out_of_memory

    full_error(kind, monkeypatch)
    other = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError) as caught:
        raise_unless_out_of_memory(other)
    assert caught.value is other


def test_an_older_comfyui_knows_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    from pack.model_loaders.out_of_memory import raise_unless_out_of_memory

    import comfy.model_management as management

    monkeypatch.delattr(management, "is_oom", raising=False)
    raise_unless_out_of_memory(management.OOM_EXCEPTION("CUDA out of memory"))
    with pytest.raises(RuntimeError, match="shapes"):
        raise_unless_out_of_memory(RuntimeError("shapes"))

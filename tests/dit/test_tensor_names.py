"""The fault report of a file whose tensors are not the network's."""

from __future__ import annotations

from pack.dit.tensor_names import LISTED, tensor_faults


def test_no_faults() -> None:
    assert tensor_faults({"a": (1, 2)}, {"a": (1, 2)}) is None


def test_every_kind_is_counted_and_named() -> None:
    report = tensor_faults({"a": (1,), "c": (3,)}, {"a": (2,), "b": (2,)})
    assert report == "1 missing: b; 1 unexpected: c; 1 of another shape: a (1,) instead of (2,)"


def test_a_long_list_is_cut() -> None:
    report = tensor_faults({}, {str(number): (1,) for number in range(LISTED + 1)})
    assert report == f"{LISTED + 1} missing: 0, 1, 2, 3, 4, 5 ..."

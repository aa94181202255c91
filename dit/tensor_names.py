"""Whether a file's tensors are those of a network, and if not, which are at fault."""

from __future__ import annotations

from collections.abc import Mapping

SCALES = (".scale_weight", ".weight_scale")
"""Endings of the scales that belong to fp8 weights, in both spellings."""
INPUT_SCALES = (".scale_input", ".input_scale")
"""For networks that also compute in fp8; ours compute in bf16 and have no use for them."""
LISTED = 6
"""Names of each kind of fault that a message spells out."""


def tensor_faults(
    shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> str | None:
    """Missing, unexpected and misshapen tensors in words for a message; None if there are none."""
    faults = {
        "missing": [name for name in expected if name not in shapes],
        "unexpected": [name for name in shapes if name not in expected],
        "of another shape": [
            f"{name} {shapes[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    lines = [
        f"{len(names)} {what}: {', '.join(names[:LISTED])}{' ...' if len(names) > LISTED else ''}"
        for what, names in faults.items()
        if names
    ]
    return "; ".join(lines) or None

"""Words that no widget offers, as a prompt through the API may bring them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.host


@pytest.mark.parametrize(
    ("node", "name", "wrong"),
    [
        ("ReferenceSet", "task", "Edit"),
        ("ReferenceSet", "resize", "stretch"),
        ("ReferenceConditioning", "latent_size", "published"),
        ("PositionEncoding", "encoding", "offset+index"),
        ("DragPrompt", "operation", "turn"),
        ("OmniGenEncode", "output_size", "huge"),
        ("OmniGenEncode", "prompt_style", "tag"),
        ("TrainLoRA", "family", "vlm"),
        ("TrainDreamOmni", "config", "huge"),
        ("TrainVLM", "method", "Full"),
        ("TrainVAE", "downscale", "16"),
    ],
)
def test_a_word_that_is_not_offered_is_an_error_with_those_that_are(
    output_dir: Path, node: str, name: str, wrong: str
) -> None:
    from pack.nodes import NODES

    (kind,) = (kind for kind in NODES if kind.GET_SCHEMA().node_id == f"DreamOmni{node}")
    schema = kind.GET_SCHEMA()
    (widget,) = (entry for entry in schema.inputs if entry.id == name)
    inputs = {entry.id: getattr(entry, "default", None) for entry in schema.inputs if not entry.optional}
    inputs |= {"task": "edit", "resize": "none"} if node == "ReferenceSet" else {}
    told = f"{name} is '{wrong}'; choose one of {', '.join(widget.options)}"
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        kind.execute(**inputs | {name: wrong})

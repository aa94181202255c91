"""A saved VLM's settings under the names transformers 4 reads too."""

from __future__ import annotations

import json

from pack.training.families.vlm import keep_old_names


def test_rope_settings_are_written_twice(tmp_path) -> None:
    path = tmp_path / "config.json"
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    path.write_text(json.dumps({"model_type": "qwen2_vl", "text_config": {"rope_parameters": rope}}))
    keep_old_names(tmp_path)
    text = json.loads(path.read_text())["text_config"]
    assert text["rope_parameters"] == rope
    assert text["rope_scaling"] == {"type": "mrope", "mrope_section": [4, 6, 6]}
    assert text["rope_theta"] == 10000.0


def test_settings_of_transformers_4_stay_as_they_are(tmp_path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"rope_scaling": {"mrope_section": [1, 1, 2]}, "rope_theta": 5.0}))
    before = path.read_bytes()
    keep_old_names(tmp_path)
    assert path.read_bytes() == before

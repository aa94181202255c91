"""The pack's own wire types; the names are part of shared workflows."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "DreamOmni"

References = io.Custom("DREAMOMNI_REFERENCES")
Vlm = io.Custom("DREAMOMNI_VLM")
Processor = io.Custom("DREAMOMNI_PROCESSOR")
Dataset = io.Custom("DREAMOMNI_DATASET")
Run = io.Custom("DREAMOMNI_RUN")

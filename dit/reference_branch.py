"""What the reference tokens of a FLUX-shaped network are modulated by when they see only themselves.

With the exact reference mask each reference attends to itself alone, and its modulation may depend on nothing
that changes between steps, seeds or prompts. Training and inference read the same values. All of them are
chosen, not published: a reference is clean, so its time is 0; guidance is the value Kontext is sampled at;
the pooled text is zero. A LoRA trained this way leaves the reference branch to the base weights.
"""

from __future__ import annotations

REFERENCE_SIGMA = 0.0
REFERENCE_GUIDANCE = 2.5
REFERENCE_POOLED = 0.0

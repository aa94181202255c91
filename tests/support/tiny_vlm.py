"""A tiny VLM folder whose replies are known, beside the random ones of the benchmarks."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
from pack.bench.random_vlm import SPECIAL_IDS, TEXT, build_model, tokenizer_folder, write_vlm

__all__ = ["SCRIPTED_PROMPT", "build_model", "script_reply", "write_scripted_vlm", "write_vlm"]

# Single tokens of the Qwen vocabulary, none twice: the model below finds its next word by its last one.
SCRIPT = ("<", "edit", ">", "Put", " the", " bag", " on", " a", " chair", ".", "</", "ed", "it", ">\n")
SCRIPTED_PROMPT = "Put the bag on a chair."


def script_reply(
    model: torch.nn.Module, vocabulary: dict[str, int], pieces: tuple[str, ...] = SCRIPT
) -> None:
    """Make `model` always answer `pieces`: each word's embedding points at the next word's score."""
    spelled = [vocabulary[piece.replace(" ", "\u0120").replace("\n", "\u010a")] for piece in pieces]
    chain = [vocabulary["\u010a"], *spelled, SPECIAL_IDS["eos_token_id"]]
    assert len(set(chain)) == len(chain) <= TEXT["hidden_size"]
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        for axis, (word, following) in enumerate(itertools.pairwise(chain)):
            model.model.language_model.embed_tokens.weight[word, axis] = 1
            model.lm_head.weight[following, axis] = 1
        for block in model.model.language_model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()


def write_scripted_vlm(folder: Path, pieces: tuple[str, ...] = SCRIPT) -> Path:
    """A tiny Qwen2.5-VL folder whose every reply is `pieces`."""
    vocabulary = json.loads((tokenizer_folder() / "vocab.json").read_text())
    model = build_model("qwen2_5_vl")
    script_reply(model, vocabulary, pieces)
    return write_vlm(folder, model=model)

"""FLUX.1's weights in Black Forest Labs' layout and in diffusers', and what stands before their names.

ComfyUI has such a table too, but it is one for LoRAs: newer versions list names of other trainers and of
other networks there, which no weight file has.
"""

from __future__ import annotations

from collections.abc import Iterable

PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.")
"""What stands before FLUX.1's weight names in whole checkpoints and in files of other programs."""
MARKS = ("double_blocks.0.img_attn.", "transformer_blocks.0.attn.add_q_proj.")

OUTER = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
FINAL_MODULATION = ("final_layer.adaLN_modulation.1", "norm_out.linear")
"""The one layer whose halves, shift and scale, are swapped between the layouts."""
DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
DOUBLE_SPLIT = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
DOUBLE_NORMS = {
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
}
SINGLE = {"modulation.lin": "norm.linear", "linear2": "proj_out"}
SINGLE_SPLIT = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}
SINGLE_NORMS = {"norm.query_norm.scale": "attn.norm_q.weight", "norm.key_norm.scale": "attn.norm_k.weight"}


def flux_prefix(names: Iterable[str]) -> str | None:
    """What stands before the names of FLUX.1's weights; None if these are not among them."""
    names = list(names)
    for prefix in PREFIXES:
        marks = tuple(prefix + mark for mark in MARKS)
        if any(name.startswith(marks) for name in names):
            return prefix
    return None


def bare_names(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Name as FLUX.1 was released -> stored name; what does not begin with the prefix is left out."""
    return {released_name(name.removeprefix(prefix)): name for name in names if name.startswith(prefix)}


def released_name(name: str) -> str:
    """Black Forest Labs' name of a weight; in files saved by newer ComfyUI a norm's scale is a weight."""
    if name.startswith(("double_blocks.", "single_blocks.")) and name.endswith("_norm.weight"):
        return name.removesuffix("weight") + "scale"
    return name


def diffusers_sources(num_double: int, num_single: int) -> dict[str, tuple[str, ...]]:
    """Every weight of a network in BFL's layout -> diffusers' weights whose rows it holds, in their order."""
    found = renamed("", "", one_each(OUTER | dict([FINAL_MODULATION])), {})
    for number in range(num_double):
        blocks = f"double_blocks.{number}.", f"transformer_blocks.{number}."
        found |= renamed(*blocks, one_each(DOUBLE) | DOUBLE_SPLIT, DOUBLE_NORMS)
    for number in range(num_single):
        blocks = f"single_blocks.{number}.", f"single_transformer_blocks.{number}."
        found |= renamed(*blocks, one_each(SINGLE) | SINGLE_SPLIT, SINGLE_NORMS)
    return found


def one_each(modules: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """The values as tuples of one."""
    return {module: (source,) for module, source in modules.items()}


def renamed(
    block: str, source_block: str, modules: dict[str, tuple[str, ...]], norms: dict[str, str]
) -> dict[str, tuple[str, ...]]:
    """Weight and bias of each module, and the scale of each norm -> their sources, in full names."""
    found = {
        f"{block}{module}.{part}": tuple(f"{source_block}{source}.{part}" for source in sources)
        for module, sources in modules.items()
        for part in ("weight", "bias")
    }
    return found | {block + norm: (source_block + source,) for norm, source in norms.items()}

"""Loading a vision language model and asking it: for a prompt, or for its hidden states."""

from __future__ import annotations

from comfy_api.latest import io

from ..dit.references import ReferenceSet
from ..model_loaders.paths import model_folder, model_folder_names, register_folders
from ..model_loaders.vlm import PRECISIONS, LoadedVLM, load_vlm
from ..vlm import encoder
from ..vlm.chat import TEMPLATES
from .schema import node_input, node_schema
from .types import CATEGORY, References, Vlm

register_folders()

LAYER_LIMIT = 256
TOKEN_LIMIT = 131072


class LoadVLM(io.ComfyNode):
    """Opens a Qwen2-VL or Qwen2.5-VL folder from models/vlm."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniLoadVLM",
            display_name="Load VLM",
            category=f"{CATEGORY}/load",
            description="Opens a Qwen2-VL or Qwen2.5-VL folder, DreamOmni2's vlm-model among them. "
            "The weights are read when the model is first asked; ComfyUI frees them when it needs to.",
            search_aliases=["qwen", "qwen2.5-vl", "vision language model", "prompt"],
            inputs=[
                node_input(
                    io.Combo,
                    "vlm_name",
                    options=model_folder_names("vlm"),
                    tooltip="A folder in models/vlm: config.json, *.safetensors, tokenizer, processor.",
                ),
                node_input(
                    io.Combo,
                    "precision",
                    options=list(PRECISIONS),
                    default="auto",
                    tooltip="auto: bf16 where the card computes in it, else bf16 weights computed in fp32. "
                    "fp16 usually overflows in these models and then stops with an error.",
                ),
            ],
            outputs=[Vlm.Output("vlm", display_name="vlm", tooltip="The model, for the VLM nodes.")],
        )

    @classmethod
    def execute(cls, vlm_name: str, precision: str) -> io.NodeOutput:
        return io.NodeOutput(load_vlm(model_folder("vlm", vlm_name), precision))


class VLMEncode(io.ComfyNode):
    """Prompt and pictures as the hidden states DreamOmni's transformer is conditioned on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniVLMEncode",
            display_name="VLM Encode",
            category=f"{CATEGORY}/conditioning",
            description="Reads prompt and pictures with the VLM and gives its hidden states as conditioning "
            "for a DreamOmni model, with the attention mask and the picture each token belongs to.",
            search_aliases=["dreamomni text encode", "hidden states", "conditioning"],
            inputs=[
                node_input(Vlm, "vlm", tooltip="From Load VLM or Load DreamOmni."),
                node_input(
                    io.String,
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What the picture shows, or what to change. Empty for the negative side.",
                ),
                node_input(
                    References,
                    "references",
                    optional=True,
                    tooltip="Pictures the VLM reads before the prompt, from Reference Images.",
                ),
                node_input(
                    io.Int,
                    "layer",
                    default=encoder.DEFAULT_LAYER,
                    min=-LAYER_LIMIT,
                    max=LAYER_LIMIT,
                    optional=True,
                    advanced=True,
                    tooltip="Which layer's states to use: -1 the last, 0 the embeddings. "
                    "Must be the one the model was trained with; the paper does not name it.",
                ),
                node_input(
                    io.Int,
                    "max_tokens",
                    default=encoder.DEFAULT_MAX_TOKENS,
                    min=16,
                    max=TOKEN_LIMIT,
                    optional=True,
                    advanced=True,
                    tooltip="Longest prompt with pictures, in tokens; a longer one is an error, never cut.",
                ),
                node_input(
                    io.Combo,
                    "template",
                    options=list(TEMPLATES),
                    default=encoder.DEFAULT_TEMPLATE,
                    optional=True,
                    advanced=True,
                    tooltip="chat: the VLM's chat turn around the prompt. plain: pictures and prompt only. "
                    "Must be the one the model was trained with; the paper does not name it.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning", display_name="conditioning", tooltip="For a DreamOmni MODEL only."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        vlm: LoadedVLM,
        prompt: str,
        references: ReferenceSet | None = None,
        layer: int = encoder.DEFAULT_LAYER,
        max_tokens: int = encoder.DEFAULT_MAX_TOKENS,
        template: str = encoder.DEFAULT_TEMPLATE,
    ) -> io.NodeOutput:
        images = references.images if references is not None else ()
        features = vlm.hidden_states(prompt, images, layer, max_tokens, template)
        extras = {"attention_mask": features.attention_mask, "dreamomni_image_index": features.image_index}
        return io.NodeOutput([[features.tokens, extras]])


NODES = [LoadVLM, VLMEncode]

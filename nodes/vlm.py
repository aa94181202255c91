"""Loading a vision language model and asking it: for a prompt, or for its hidden states."""

from __future__ import annotations

import time
from collections.abc import Callable

from comfy_api.latest import io

from ..dit.references import ReferenceSet, Task
from ..model_loaders.encode_cache import FEATURES
from ..model_loaders.paths import model_folder, model_folder_names
from ..model_loaders.vlm import PRECISIONS, LoadedVLM, load_vlm
from ..vlm import encoder
from ..vlm.chat import TEMPLATES
from ..vlm.generate import Reply, TokenStream
from ..vlm.reply import parse_reply
from ..vlm.rewrite import DEFAULT_MAX_NEW_TOKENS, ReplyCache, RewriteRequest, ask
from .fingerprints import model_folder_state
from .notes import show_live_text, show_note
from .pictures import in_bucket
from .progress import progress_reporter
from .schema import node_input, node_schema
from .types import CATEGORY, References, Vlm

LAYER_LIMIT = 256
REPLY_LIMIT = 32768
SECONDS_PER_TEXT = 0.2
# Lives as long as the process, so that a changed seed or an unloaded model does not cost a second rewrite.
REPLIES = ReplyCache()
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
                    "fp8, int8: a little more than half of that memory. nf4: under half, needs bitsandbytes. "
                    "fp16 usually overflows in these models and then stops with an error.",
                ),
            ],
            outputs=[Vlm.Output("vlm", display_name="vlm", tooltip="The model, for the VLM nodes.")],
        )

    @classmethod
    def fingerprint_inputs(cls, vlm_name: str | None = None, **_: object) -> str:
        return model_folder_state("vlm", vlm_name)

    @classmethod
    def execute(cls, vlm_name: str, precision: str) -> io.NodeOutput:
        return io.NodeOutput(load_vlm(model_folder("vlm", vlm_name), precision))


def own_words() -> list[io.Input]:
    """Inputs for those who write the prompt themselves."""
    return [
        node_input(
            io.Boolean,
            "rewrite",
            default=True,
            optional=True,
            label_on="VLM",
            label_off="bypass",
            tooltip="Off: the instruction goes on as it is, and the VLM is not loaded.",
        ),
        node_input(
            io.String,
            "edited_prompt",
            multiline=True,
            default="",
            optional=True,
            tooltip="Not empty: this text is the prompt, and the VLM is not asked. "
            "Paste a rewritten prompt here to change it by hand.",
        ),
    ]


class RewritePrompt(io.ComfyNode):
    """The instruction as the prompt DreamOmni2 was trained on, written by its VLM."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniRewritePrompt",
            display_name="Rewrite Prompt",
            category=f"{CATEGORY}/prompt",
            description="Lets DreamOmni2's VLM look at the pictures and write the prompt its transformer was "
            "trained on. Edit the result in edited_prompt, or turn rewrite off to use your own words.",
            search_aliases=["dreamomni2 vlm", "prompt enhance", "translate instruction", "qwen"],
            inputs=[
                node_input(
                    Vlm,
                    "vlm",
                    optional=True,
                    lazy=True,
                    tooltip="From Load VLM: DreamOmni2's vlm-model. Not needed when rewrite is off.",
                ),
                node_input(References, "references", tooltip="Pictures and task, from Reference Images."),
                node_input(
                    io.String,
                    "instruction",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    placeholder="Make the bag in the first image look like the dress in the second image.",
                    tooltip="What to do, in your words: the first image, the second image, ...",
                ),
                node_input(
                    io.Int,
                    "max_new_tokens",
                    default=DEFAULT_MAX_NEW_TOKENS,
                    min=16,
                    max=REPLY_LIMIT,
                    tooltip="Longest reply, in tokens. A reply that reaches it is an error, never cut short.",
                ),
                *own_words(),
            ],
            outputs=[
                io.String.Output("prompt", display_name="prompt", tooltip="For the text encoder."),
                io.String.Output(
                    "raw_reply", display_name="raw reply", tooltip="The VLM's reply, tags and all."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def check_lazy_status(
        cls,
        references: ReferenceSet,
        rewrite: bool = True,
        edited_prompt: str = "",
        **inputs: object,
    ) -> list[str]:
        """The VLM is wanted only when it will be asked and a link waits; without a link `execute` says so."""
        asked = passed_through("", references, rewrite, edited_prompt) is None
        # ComfyUI gives None for a link that waits, nothing at all for an input that is not connected.
        waits = "vlm" in inputs and inputs["vlm"] is None
        return ["vlm"] if asked and waits else []

    @classmethod
    def execute(
        cls,
        references: ReferenceSet,
        instruction: str,
        max_new_tokens: int,
        vlm: LoadedVLM | None = None,
        rewrite: bool = True,
        edited_prompt: str = "",
    ) -> io.NodeOutput:
        passed = passed_through(instruction, references, rewrite, edited_prompt)
        if passed is not None:
            prompt, note = passed
            show_note(cls, note)
            show_live_text(cls, "")
            return io.NodeOutput(prompt, f"[{note}]")
        reply = ask_vlm(cls, vlm, references, instruction, max_new_tokens)
        return io.NodeOutput(parse_reply(reply.text, reply.complete), reply.text)


def reading_inputs() -> list[io.Input]:
    """Inputs that say how the VLM is read; a model wants what it was trained with."""
    return [
        node_input(
            io.Int,
            "layer",
            default=encoder.DEFAULT_LAYER,
            min=-LAYER_LIMIT,
            max=LAYER_LIMIT,
            optional=True,
            advanced=True,
            tooltip="Which layer's states to use: -1 the last, 0 the embeddings. "
            "Must be the one the model was trained with; the default is our choice.",
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
            "Must be the one the model was trained with; the default is our choice.",
        ),
    ]


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
                *reading_inputs(),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning", display_name="conditioning", tooltip="For a DreamOmni MODEL only."
                )
            ],
            hidden=[io.Hidden.unique_id],
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
        known = FEATURES.computed, FEATURES.reused
        features = vlm.hidden_states(prompt, images, layer, max_tokens, template, FEATURES)
        computed, reused = FEATURES.computed - known[0], FEATURES.reused - known[1]
        show_note(cls, f"{computed} computed, {reused} reused, {FEATURES.size(vlm) / 2**20:.0f} MB kept")
        extras = {"attention_mask": features.attention_mask, "dreamomni_image_index": features.image_index}
        return io.NodeOutput([[features.tokens, extras]])


def passed_through(
    instruction: str, references: ReferenceSet, rewrite: bool, edited_prompt: str
) -> tuple[str, str] | None:
    """(prompt, why) where the VLM has nothing to do, None where it is to be asked."""
    if edited_prompt.strip():
        return edited_prompt, "edited_prompt is used; the VLM was not asked."
    if not rewrite:
        return instruction, "Rewriting is off: the instruction is used as it is."
    if not references.images:
        edit = " There is nothing to edit: connect image_1." if references.task is Task.EDIT else ""
        return instruction, f"No pictures: the instruction is used as it is.{edit}"
    return None


def ask_vlm(
    node: type[io.ComfyNode],
    vlm: LoadedVLM | None,
    references: ReferenceSet,
    instruction: str,
    max_new_tokens: int,
) -> Reply:
    """The VLM's reply, with progress, cancelling and the text so far on the node."""
    if vlm is None:
        raise ValueError("no VLM is connected; connect Load VLM, or turn rewrite off.")
    # Before the reply too: without one an earlier note, such as that rewriting is off, would stay.
    show_note(node, with_batch("The VLM is asked.", references))
    request = RewriteRequest(
        instruction=instruction,
        task=references.task.value,
        images=[in_bucket(image[:1], vlm.picture_side) for image in references.images],
        content_key=references.content_key(),
        max_new_tokens=max_new_tokens,
    )
    reply = ask(vlm, request, REPLIES, live_text(node, max_new_tokens))
    show_live_text(node, reply.text)
    show_note(node, with_batch(f"Written by the VLM: {reply.num_tokens} tokens.", references))
    return reply


def with_batch(note: str, references: ReferenceSet) -> str:
    """The note, and which picture of a batch was looked at."""
    count = references.batch_size
    return note if count == 1 else f"{note} image_1 is a batch of {count}: the prompt is made for its first."


def live_text(node: type[io.ComfyNode], max_new_tokens: int) -> Callable[[TokenStream], None]:
    """A callback that moves the node's bar with every token and shows the text a few times per second."""
    report = progress_reporter(max_new_tokens)
    shown_at = time.monotonic()

    def on_token(stream: TokenStream) -> None:
        nonlocal shown_at
        report(len(stream.tokens), None)
        if time.monotonic() - shown_at >= SECONDS_PER_TEXT:
            shown_at = time.monotonic()
            show_live_text(node, stream.text())

    return on_token


NODES = [LoadVLM, RewritePrompt, VLMEncode]

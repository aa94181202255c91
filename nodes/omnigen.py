"""OmniGen in the graph: a folder becomes a MODEL, words and pictures become its conditionings."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..dit.omnigen.prefix_cache import GIGABYTE, CacheSettings
from ..dit.omnigen.prompt import NEGATIVE_PROMPT
from ..dit.references import ReferenceSet
from ..model_loaders.omnigen import WEIGHT_DTYPES, load_omnigen
from ..model_loaders.omnigen_encode import EncodeRequest, OutputSize, PromptStyle, encode_request
from ..model_loaders.omnigen_processor import OmniGenProcessor
from ..model_loaders.paths import model_folder, model_folder_names
from .choices import chosen
from .fingerprints import model_folder_state
from .schema import node_input, node_schema
from .types import CATEGORY, Processor, References

CACHE_MODES = ("on", "8 bit", "off")


class LoadOmniGen(io.ComfyNode):
    """Opens an OmniGen folder from models/omnigen."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniLoadOmniGen",
            display_name="Load OmniGen",
            category=f"{CATEGORY}/load",
            description="Loads OmniGen v1 from models/omnigen as a MODEL for any sampler.",
            search_aliases=["omnigen v1", "phi3 image"],
            inputs=[
                node_input(
                    io.Combo,
                    "model_name",
                    options=model_folder_names("omnigen"),
                    tooltip="A folder in models/omnigen: the official one (model.safetensors, config.json, "
                    "tokenizer.json) or diffusers' (transformer, tokenizer).",
                ),
                node_input(
                    io.Combo,
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip="How the weights are kept. default follows the file and the card; fp8 halves the "
                    "memory. fp16 is not offered: OmniGen overflows in it.",
                ),
                *cache_inputs(),
            ],
            outputs=[
                io.Model.Output("model", display_name="MODEL", tooltip="OmniGen, for KSampler or guiders."),
                Processor.Output(
                    "processor", display_name="PROCESSOR", tooltip="Tokenizer, for OmniGen Encode."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str | None = None, **_: object) -> str:
        return model_folder_state("omnigen", model_name)

    @classmethod
    def execute(
        cls,
        model_name: str,
        weight_dtype: str,
        prefix_cache: str = "on",
        cache_limit_gb: float = 8.0,
    ) -> io.NodeOutput:
        """MODEL and processor of the folder."""
        if prefix_cache not in CACHE_MODES:
            raise ValueError(f"prefix_cache {prefix_cache!r}: allowed are {', '.join(CACHE_MODES)}")
        cache = CacheSettings(
            enabled=prefix_cache != "off",
            eight_bit=prefix_cache == "8 bit",
            max_bytes=int(cache_limit_gb * GIGABYTE),
        )
        return io.NodeOutput(*load_omnigen(model_folder("omnigen", model_name), weight_dtype, cache))


class OmniGenEncode(io.ComfyNode):
    """Turns words with picture tags into the conditionings OmniGen's guidance needs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamOmniOmniGenEncode",
            display_name="OmniGen Encode",
            category=f"{CATEGORY}/conditioning",
            description="Words with picture tags, and the pictures, as OmniGen's three conditionings.",
            search_aliases=["omnigen prompt", "omnigen references"],
            inputs=[
                node_input(Processor, "processor", tooltip="From Load OmniGen."),
                node_input(io.Vae, "vae", tooltip="The SDXL VAE; encodes the pictures."),
                node_input(
                    io.String,
                    "prompt",
                    multiline=True,
                    dynamic_prompts=False,
                    default="",
                    placeholder="<img><|image_1|></img> Put a red hat on the man.",
                    tooltip="What to make. Name picture 1 as <img><|image_1|></img>, picture 2 as "
                    "<img><|image_2|></img>; for edits put the tag before the instruction.",
                ),
                node_input(
                    io.String,
                    "negative_prompt",
                    multiline=True,
                    dynamic_prompts=False,
                    default=NEGATIVE_PROMPT,
                    tooltip="What guidance leads away from; the default is the authors'.",
                ),
                node_input(
                    io.Int,
                    "max_image_size",
                    default=1024,
                    min=64,
                    max=3072,
                    step=16,
                    tooltip="Pictures with a longer side are shrunk to it. Smaller is faster.",
                ),
                node_input(
                    References, "references", optional=True, tooltip="Up to 5 pictures, resize rule 'none'."
                ),
                *size_inputs(),
            ],
            outputs=[
                io.Conditioning.Output("positive", display_name="positive", tooltip="Words and pictures."),
                io.Conditioning.Output("negative", display_name="negative", tooltip="The negative prompt."),
                io.Conditioning.Output(
                    "image_only",
                    display_name="image only",
                    tooltip="Pictures without words: cond2 of DualCFGGuider. The negative without pictures.",
                ),
                io.Latent.Output("latent", display_name="latent", tooltip="Empty, at the result's size."),
            ],
        )

    @classmethod
    def execute(
        cls,
        processor: OmniGenProcessor,
        vae: Any,
        prompt: str,
        negative_prompt: str,
        max_image_size: int,
        references: ReferenceSet | None = None,
        output_size: str = OutputSize.AUTO.value,
        width: int = 1024,
        height: int = 1024,
        prompt_style: str = PromptStyle.TAGS.value,
    ) -> io.NodeOutput:
        """The three conditionings and the empty latent."""
        request = EncodeRequest(
            prompt=prompt,
            negative_prompt=negative_prompt,
            max_image_size=max_image_size,
            prompt_style=chosen(PromptStyle, "prompt_style", prompt_style),
            output_size=chosen(OutputSize, "output_size", output_size),
            width=width,
            height=height,
        )
        made = encode_request(processor, vae, request, references)
        return io.NodeOutput(made.positive, made.negative, made.image_only, {"samples": made.latent})


def cache_inputs() -> list[io.Input]:
    """The loader's optional inputs: what is kept of words and pictures between steps."""
    return [
        node_input(
            io.Combo,
            "prefix_cache",
            options=list(CACHE_MODES),
            default=CACHE_MODES[0],
            optional=True,
            advanced=True,
            tooltip="Words and pictures run once instead of every step; the result is the same. 8 bit halves "
            "the memory it takes and rounds a little.",
        ),
        node_input(
            io.Float,
            "cache_limit_gb",
            default=8.0,
            min=0.0,
            max=256.0,
            step=0.5,
            round=0.1,
            optional=True,
            advanced=True,
            tooltip="The cache never takes more. Without room on the card it waits in RAM; past the limit "
            "the steps run without it.",
        ),
    ]


def size_inputs() -> list[io.Input]:
    """The encode node's optional inputs: the result's size and how pictures are named."""
    side = {"default": 1024, "min": 16, "max": 3072, "step": 16, "optional": True}
    return [
        node_input(
            io.Combo,
            "output_size",
            options=[choice.value for choice in OutputSize],
            default=OutputSize.AUTO.value,
            optional=True,
            tooltip="Size of the result. auto: an edit keeps the size of picture 1, everything else takes "
            "width and height.",
        ),
        node_input(io.Int, "width", tooltip="Width of the result in pixels.", **side),
        node_input(io.Int, "height", tooltip="Height of the result in pixels.", **side),
        node_input(
            io.Combo,
            "prompt_style",
            options=[style.value for style in PromptStyle],
            default=PromptStyle.TAGS.value,
            optional=True,
            tooltip="tags: as written. mentions: 'image 1' becomes its tag. few-shot: the pictures are "
            "example pairs (input, output) and one last input.",
        ),
    ]


NODES = [LoadOmniGen, OmniGenEncode]

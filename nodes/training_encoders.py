"""The user's own CLIP, VAE, VLM and processor as the encoders that fill the training cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import comfy.latent_formats

from ..model_loaders.dreamomni_model import latent_format
from ..training.answers import AnswerEncoder, no_latent
from ..training.cache import content_key
from ..training.config import RunConfig
from ..training.encode import PictureEncoder, PromptEncoder, pixels_of
from ..training.families import load_family
from ..training.families.base import EncodePlan
from ..vlm.chat import rewrite_request
from ..vlm.reply import ReplyFormatError, parse_reply
from ..vlm.rewrite import DEFAULT_MAX_NEW_TOKENS
from .pictures import image_of, in_bucket
from .progress import check_cancelled

PROBE_SIZE = 64
TEACH_LONGER = (
    "Teach the translator for more steps (joint preset: translator_steps) and queue again; the run goes on. "
    "In another preset connect another translator to vlm, or nothing."
)


def picture_of(image: Tensor) -> Image.Image:
    """A picture of an IMAGE (1, H, W, 3) or (H, W, 3)."""
    plain = image[0] if image.ndim == 4 else image
    return Image.fromarray((plain.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def tensors_key(kind: str, tensors: Sequence[Tensor]) -> str:
    """Identity of an encoder by what it answered to a fixed question."""
    return content_key(kind, *(tensor.detach().float().cpu().numpy().tobytes() for tensor in tensors))


class VaePictures:
    """Latents (C, H, W) as the network sees them."""

    def __init__(self, vae: Any, latent_format: comfy.latent_formats.LatentFormat) -> None:
        self.vae, self.latent_format = vae, latent_format
        ramp = torch.linspace(0, 1, PROBE_SIZE).expand(1, PROBE_SIZE, PROBE_SIZE)
        probe = vae.encode(torch.stack([ramp, ramp.transpose(1, 2), 1 - ramp], dim=-1))
        channels = latent_format.latent_channels
        if probe.ndim != 4 or probe.shape[1] != channels:
            raise ValueError(
                f"the VAE makes latents of the shape {tuple(probe.shape)}; this network works on {channels} "
                f"channels (batch, {channels}, height, width). Connect the VAE of the base; for a new "
                "DreamOmni network that is Flux's or a small one."
            )
        self.identity = tensors_key("vae", [latent_format.process_in(probe)])

    def __call__(self, image: Image.Image) -> Tensor:
        """Encode one picture."""
        latent = self.vae.encode(image_of(image))
        return self.latent_format.process_in(latent)[0].float().cpu().clone()

    def decode(self, latent: Tensor) -> Image.Image:
        """The picture of a latent (C, H, W)."""
        return picture_of(self.vae.decode(self.latent_format.process_out(latent[None])))


class PixelPictures:
    """RGB (3, H, W) in -1..1, for networks without a VAE."""

    identity = "pixels"

    def __call__(self, image: Image.Image) -> Tensor:
        """Encode one picture."""
        return pixels_of(image)

    def decode(self, latent: Tensor) -> Image.Image:
        """The picture of RGB in -1..1."""
        return picture_of((latent.permute(1, 2, 0) + 1) / 2)


class NoPictures:
    """A language model's samples hold no latents."""

    identity = "none"

    def __call__(self, image: Image.Image) -> Tensor:
        """One zero."""
        return no_latent(image)

    def decode(self, latent: Tensor) -> Image.Image:
        """Nothing to see."""
        raise ValueError("a language model draws no pictures")


class ClipPrompts:
    """`context` (L, D) and `pooled` (P,) of a FLUX CLIP, as inference gives them to the model."""

    def __init__(self, clip: Any) -> None:
        self.clip = clip
        self.identity = tensors_key("clip", list(self.encode("a picture").values()))

    def encode(self, prompt: str) -> dict[str, Tensor]:
        """Both encodings of a text."""
        context, pooled = self.clip.encode_from_tokens(self.clip.tokenize(prompt), return_pooled=True)
        if pooled is None:
            raise ValueError(
                "the connected CLIP gives no pooled encoding. FLUX.1 Kontext needs both its text encoders: "
                "use DualCLIPLoader with clip_l and t5xxl, type flux."
            )
        return {
            "context": context[0].to(torch.bfloat16).cpu().clone(),
            "pooled": pooled[0].float().cpu().clone(),
        }

    def __call__(self, prompt: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Encode one prompt; pictures are not looked at."""
        return self.encode(prompt)


class VlmPrompts:
    """Hidden states of a VLM for prompt and pictures."""

    def __init__(self, vlm: Any, plan: EncodePlan) -> None:
        self.vlm, self.plan = vlm, plan
        self.identity = content_key("vlm", vlm.identity, str(plan.vlm_layer), str(plan.max_tokens))

    def __call__(self, prompt: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """`tokens` (L, D), `attention_mask` and `image_index` (L,)."""
        features = self.vlm.hidden_states(prompt, list(images), self.plan.vlm_layer, self.plan.max_tokens)
        return {
            "tokens": features.tokens[0].to(torch.bfloat16).cpu().clone(),
            "attention_mask": features.attention_mask[0].cpu().clone(),
            "image_index": features.image_index[0].cpu().clone(),
        }


class ProcessorPrompts:
    """Token ids of a processor that puts pictures into slots of the text."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        probe = processor.training_entry("a picture", [])
        self.identity = tensors_key("processor", list(probe.values()))

    def __call__(self, prompt: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What the processor keeps of a prompt with pictures of these sizes."""
        return self.processor.training_entry(prompt, [(image.height, image.width) for image in images])


class TextPrompts:
    """The words themselves."""

    identity = "text"

    def __call__(self, prompt: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """`utf8`, at least one byte long."""
        return {"utf8": torch.tensor(list(prompt.encode()) or [32], dtype=torch.uint8)}


class RewrittenPrompts:
    """An encoder that sees what the translator makes of instruction and pictures, as inference does.

    The pictures are the dataset's own: the translator gets them in the sizes that Rewrite Prompt shows it,
    whatever size the LoRA is trained at. `mode` is the words' kind of task, edit or generate.
    """

    def __init__(self, inner: PromptEncoder, vlm: Any, mode: str = "edit") -> None:
        self.inner, self.vlm, self.mode = inner, vlm, mode
        # The side: entries of before were made of pictures in other sizes.
        seen = f"side {vlm.picture_side}"
        self.identity = content_key("rewritten", seen, vlm.identity, mode, inner.identity)

    def for_mode(self, mode: str) -> RewrittenPrompts:
        """The same for samples of another kind."""
        return self if mode == self.mode else RewrittenPrompts(self.inner, self.vlm, mode)

    def __call__(self, prompt: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Encode the rewritten prompt; without pictures or words (dropout) the prompt stays."""
        if not prompt.strip() or not images:
            return self.inner(prompt, [])
        request = rewrite_request(prompt, self.mode)
        seen = [in_bucket(image_of(image), self.vlm.picture_side) for image in images]
        reply = self.vlm.generate_text(
            request, seen, DEFAULT_MAX_NEW_TOKENS, lambda stream: check_cancelled()
        )
        try:
            rewritten = parse_reply(reply.text, reply.complete)
        except ReplyFormatError as error:
            # The error's own remedy names settings of Rewrite Prompt, which training does not have.
            raise ReplyFormatError(
                f"{error.fault}. It was asked: {request!r}", error.reply, TEACH_LONGER
            ) from error
        return self.inner(rewritten, [])


def required(value: Any, name: str, why: str) -> Any:
    """An optional input that this run needs after all."""
    if value is None:
        raise ValueError(f"connect {name}: {why}")
    return value


def latent_format_of(config: RunConfig) -> comfy.latent_formats.LatentFormat:
    """How the family's network sees latents."""
    return latent_format(load_family(config.family).latent_space(config))


def picture_encoder(config: RunConfig, plan: EncodePlan, vae: Any) -> PictureEncoder | Any:
    """What encodes pictures for a run; ValueError when its VAE is not connected."""
    if plan.image_encoding == "none":
        return NoPictures()
    if plan.image_encoding == "pixels":
        return PixelPictures()
    vae = required(vae, "vae", f"{config.family} is trained on latents of its VAE")
    return VaePictures(vae, latent_format_of(config))


def prompt_encoder(plan: EncodePlan, clip: Any, vlm: Any, processor: Any) -> PromptEncoder:
    """What encodes prompts for a run; ValueError when it is not connected."""
    if plan.prompt_encoding == "clip":
        return ClipPrompts(required(clip, "clip", "prompts are encoded by the model's own text encoders"))
    if plan.prompt_encoding == "vlm":
        return VlmPrompts(required(vlm, "vlm", "prompts and pictures are encoded by the model's VLM"), plan)
    if plan.prompt_encoding == "processor":
        return ProcessorPrompts(required(processor, "processor", "it comes from Load OmniGen"))
    if plan.prompt_encoding == "answers":
        vlm = required(vlm, "vlm", "its tokenizer and templates are used")
        return AnswerEncoder(vlm.processor, vlm.identity)
    return TextPrompts()

"""OmniGen through ComfyUI's own guiders and samplers, against diffusers' OmniGenPipeline."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, OmniGenPipeline
from PIL import Image
from tiny_omnigen import (
    byte_tokenizer,
    diffusers_model,
    tiny_config,
    write_diffusers,
    write_official,
)
from transformers import PreTrainedTokenizerFast

pytestmark = pytest.mark.host

SIZES = [(40, 48), (70, 32), (48, 53)]  # height, width in px before the size rule
PROMPTS = [
    "a cat on a roof",
    "<img><|image_1|></img> with a red roof",
    "Put <img><|image_1|></img> beside <img><|image_2|></img> at night",
    "<img><|image_3|></img> in the style of <img><|image_1|></img>, lit like <img><|image_2|></img>.",
]
STEPS = 5
TEXT_SCALE, IMAGE_SCALE = 2.5, 1.6


def picture(height: int, width: int, seed: int) -> torch.Tensor:
    values = torch.randint(0, 256, (1, height, width, 3), generator=torch.Generator().manual_seed(seed))
    return values.float() / 255


def pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image[0] * 255).round().to(torch.uint8).numpy())


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(7)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[4, 4, 4, 4],
        norm_num_groups=2,
        latent_channels=4,
        scaling_factor=0.13025,
    ).eval()
    with torch.no_grad():  # log variance -30: the pipeline's draw is then the mean
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -100
        vae.quant_conv.weight[:4] *= 8
    return vae


class HostVAE:
    """What ComfyUI's VAE object does, on the diffusers network."""

    def __init__(self, network):
        self.network, self.calls = network, 0

    def encode(self, image):
        self.calls += 1
        with torch.no_grad():
            return self.network.encode(image.movedim(-1, 1) * 2 - 1).latent_dist.mode()


def references(count, task="generate", batch=1):
    from pack.dit.references import ReferenceSet, Task

    # As a set without resizing would hold them, but not filled up: the size rule is what is tested.
    pictures = [picture(*size, seed) for seed, size in enumerate(SIZES[:count])]
    if batch > 1:
        pictures[0] = torch.cat([picture(*SIZES[0], 10 + item) for item in range(batch)])
    return ReferenceSet(Task(task), tuple(pictures))


def encode(processor, vae, prompt, refs=None, **options):
    from pack.nodes.omnigen import OmniGenEncode

    options = {"width": 64, "height": 48, "negative_prompt": "ugly", "max_image_size": 64} | options
    return OmniGenEncode.execute(processor, vae, prompt, references=refs, **options).args


def sample(guider, noise, sampler="euler", steps=STEPS):
    import comfy.samplers

    sigmas = torch.linspace(1, 0, steps + 1)
    with torch.inference_mode():
        return guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.sampler_object(sampler), sigmas, disable_pbar=True
        )


def dual_guider(model, positive, image_only, negative, text_scale=TEXT_SCALE, image_scale=IMAGE_SCALE):
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    scales = (text_scale, image_scale, "regular")
    return DualCFGGuider.execute(model, positive, image_only, negative, *scales).args[0]


def pipeline(autoencoder, config, negative="ugly"):
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), model_max_length=131072)
    pipe = OmniGenPipeline(diffusers_model(config), scheduler, autoencoder, tokenizer)
    pipe.set_progress_bar_config(disable=True)
    call = type(pipe.multimodal_processor).__call__
    # The pipeline offers no negative prompt of one's own; its processor does.
    pipe.multimodal_processor = Negative(pipe.multimodal_processor, call, negative)
    return pipe


class Negative:
    def __init__(self, processor, call, negative):
        self.processor, self.call, self.negative = processor, call, negative

    def __getattr__(self, name):
        return getattr(self.processor, name)

    def __call__(self, *args, **kwargs):
        return self.call(self.processor, *args, negative_prompt=self.negative, **kwargs)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    from pack.model_loaders.omnigen import load_omnigen

    folder = write_official(tmp_path_factory.mktemp("omnigen"), tiny_config())
    return load_omnigen(folder, "fp32")


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_guided_picture_equals_diffusers(count, loaded, autoencoder):
    model, processor = loaded
    noise = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(count))
    refs = references(count) if count else None
    positive, negative, image_only, latent = encode(processor, HostVAE(autoencoder), PROMPTS[count], refs)
    assert latent["samples"].shape == noise.shape
    ours = sample(dual_guider(model, positive, image_only, negative), noise)
    theirs = pipeline(autoencoder, tiny_config())(
        PROMPTS[count],
        [pil(image) for image in refs.images] if refs else None,
        height=48,
        width=64,
        num_inference_steps=STEPS,
        max_input_image_size=64,
        guidance_scale=TEXT_SCALE,
        img_guidance_scale=IMAGE_SCALE,
        latents=noise.clone(),
        output_type="latent",
        return_dict=False,
    )[0]
    assert (theirs - noise).abs().mean() > 0.3
    torch.testing.assert_close(ours * 0.13025, theirs, atol=1e-4, rtol=1e-4)


def test_a_batch_equals_diffusers(loaded, autoencoder):
    """Two latents of one prompt; diffusers gets the prompt twice."""
    model, processor = loaded
    noise = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(9))
    refs = references(2)
    positive, negative, image_only, _ = encode(processor, HostVAE(autoencoder), PROMPTS[2], refs)
    ours = sample(dual_guider(model, positive, image_only, negative), noise)
    theirs = pipeline(autoencoder, tiny_config())(
        [PROMPTS[2]] * 2,
        [[pil(image) for image in refs.images]] * 2,
        height=48,
        width=64,
        num_inference_steps=STEPS,
        max_input_image_size=64,
        guidance_scale=TEXT_SCALE,
        img_guidance_scale=IMAGE_SCALE,
        latents=noise.clone(),
        output_type="latent",
        return_dict=False,
    )[0]
    torch.testing.assert_close(ours * 0.13025, theirs, atol=1e-4, rtol=1e-4)


def test_two_branches_without_pictures_through_the_plain_guider(loaded, autoencoder):
    import comfy.samplers

    model, processor = loaded
    noise = torch.randn(1, 4, 6, 8)
    positive, negative, image_only, _ = encode(processor, HostVAE(autoencoder), PROMPTS[0])
    assert image_only is negative
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(TEXT_SCALE)
    two = sample(guider, noise)
    three = sample(dual_guider(model, positive, image_only, negative), noise)
    torch.testing.assert_close(two, three, atol=1e-5, rtol=1e-5)


def test_the_guider_computes_the_published_formula(loaded, autoencoder):
    """One evaluation of each branch alone, combined by hand."""

    import comfy.samplers

    model, processor = loaded
    noise = torch.randn(1, 4, 6, 8)
    branches = encode(processor, HostVAE(autoencoder), PROMPTS[2], references(2))[:3]

    def alone(conditioning):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(conditioning, conditioning)
        guider.set_cfg(1.0)
        return sample(guider, noise, steps=1)

    positive, negative, image_only = (alone(branch) for branch in branches)
    by_hand = negative + IMAGE_SCALE * (image_only - negative) + TEXT_SCALE * (positive - image_only)
    guided = sample(dual_guider(model, branches[0], branches[2], branches[1]), noise, steps=1)
    torch.testing.assert_close(guided, by_hand, atol=1e-4, rtol=1e-4)


def test_sources_of_a_batch_are_edited_one_by_one(loaded, autoencoder):
    model, processor = loaded
    vae = HostVAE(autoencoder)
    refs = references(2, "edit", batch=2)
    positive, negative, image_only, latent = encode(processor, vae, PROMPTS[2], refs)
    assert latent["samples"].shape[0] == 2
    noise = torch.randn(*latent["samples"].shape)
    both = sample(dual_guider(model, positive, image_only, negative), noise)
    for item in range(2):
        from pack.dit.references import ReferenceSet

        single = ReferenceSet(refs.task, (refs.images[0][item : item + 1], refs.images[1]))
        positive, negative, image_only, _ = encode(processor, vae, PROMPTS[2], single)
        one = sample(dual_guider(model, positive, image_only, negative), noise[item : item + 1])
        # A batch is cut into other pieces than one picture; guidance enlarges the rounding.
        torch.testing.assert_close(both[item : item + 1], one, atol=1e-4, rtol=1e-4)


def test_a_picture_named_twice_is_encoded_once(loaded, autoencoder):
    vae = HostVAE(autoencoder)
    prompt = "<img><|image_1|></img> and again <img><|image_1|></img>"
    positive, _, image_only, _ = encode(loaded[1], vae, prompt, references(1))
    assert vae.calls == 1
    assert (positive[0][0] == -1).sum() == 2 * (image_only[0][0] == -1).sum()


def test_other_words_do_not_encode_the_picture_again(loaded, autoencoder):
    vae, refs = HostVAE(autoencoder), references(1)
    first, other = (
        encode(loaded[1], vae, prompt, refs)[0][0][1]["reference_latents"][0]
        for prompt in (PROMPTS[1], "<img><|image_1|></img> in the snow")
    )
    assert vae.calls == 1
    fresh = encode(loaded[1], HostVAE(autoencoder), PROMPTS[1], refs)[0][0][1]["reference_latents"][0]
    assert torch.equal(first, fresh) and torch.equal(other, fresh)
    smaller = encode(loaded[1], vae, PROMPTS[1], refs, max_image_size=32)[0][0][1]["reference_latents"][0]
    assert vae.calls == 2
    assert smaller.shape != first.shape


def test_a_latent_that_reference_conditioning_kept_is_still_checked(loaded):
    from pack.dit.omnigen.resolution import fit_reference
    from pack.dit.references import picture_key
    from pack.model_loaders.encode_cache import ENCODED

    vae, refs = WrongVAE(), references(1)
    fitted = fit_reference(refs.images[0], 64)
    ENCODED.get(vae, picture_key(fitted), lambda: vae.encode(fitted))
    with pytest.raises(ValueError, match="load the SDXL VAE"):
        encode(loaded[1], vae, PROMPTS[1], refs)


@pytest.mark.parametrize(
    ("options", "task", "size"),
    [
        ({}, "edit", (32, 48)),
        ({}, "generate", (48, 64)),
        ({"output_size": "image 1"}, "generate", (32, 48)),
        ({"output_size": "width and height"}, "edit", (48, 64)),
    ],
)
def test_size_of_the_result(options, task, size, loaded, autoencoder):
    latent = encode(loaded[1], HostVAE(autoencoder), PROMPTS[1], references(1, task), **options)[3]
    assert latent["samples"].shape[-2:] == (size[0] // 8, size[1] // 8)


def test_mentions_and_few_shot(loaded, autoencoder):
    vae, processor = HostVAE(autoencoder), loaded[1]
    tagged = encode(processor, vae, "<img><|image_1|></img> with a red roof", references(1))[0]
    plain = encode(processor, vae, "image 1 with a red roof", references(1), prompt_style="mentions")[0]
    assert torch.equal(tagged[0][0], plain[0][0])
    turned = "image 1, the image 90 degrees turned"
    plain = encode(processor, vae, turned, references(1), prompt_style="mentions")[0]
    turned = turned.replace("image 1", "<img><|image_1|></img>")
    assert torch.equal(plain[0][0], encode(processor, vae, turned, references(1))[0][0][0])
    few = encode(processor, vae, "", references(3), prompt_style="few-shot")[0]
    order = [-value for value in few[0][0].unique_consecutive().tolist() if value < 0]
    assert order == [1, 2, 3]


class WrongVAE:
    def encode(self, image):
        return torch.zeros(len(image), 16, image.shape[1] // 8, image.shape[2] // 8)


@pytest.mark.parametrize(
    ("prompt", "count", "options", "message"),
    [
        ("a hat", 1, {}, "picture 1 is wired but"),
        ("<img><|image_1|></img>", 0, {}, "has no picture: 0 are wired"),
        ("a", 0, {"output_size": "image 1"}, "needs a picture"),
        ("a", 0, {"width": 65}, "multiples of 16, got 65 x 48"),
        ("<img><|image_1|></img>", 1, {"max_image_size": 17}, "max_image_size must be a multiple of 16"),
        (
            "image 1, image 3",
            2,
            {"prompt_style": "mentions"},
            "'image 3' at character 10 .*2 are wired. With",
        ),
        ("", 2, {"prompt_style": "few-shot"}, "3 or 5 pictures; got 2"),
        ("word " * 27000, 0, {}, "the prompt is too long: .* the model reaches 131072"),
    ],
)
def test_bad_input_to_encode(prompt, count, options, message, loaded, autoencoder):
    refs = references(count) if count else None
    with pytest.raises(ValueError, match=message):
        encode(loaded[1], HostVAE(autoencoder), prompt, refs, **options)


def test_a_vae_of_another_model(loaded):
    with pytest.raises(ValueError, match="load the SDXL VAE"):
        encode(loaded[1], WrongVAE(), PROMPTS[1], references(1))


def test_a_picture_of_200_to_1(loaded, autoencoder):
    from pack.dit.references import ReferenceSet, Task

    long = ReferenceSet(Task.GENERATE, (torch.zeros(1, 16, 3200, 3),))
    with pytest.raises(ValueError, match=r"3200 x 16 px becomes 3\d\d\d x 16 px.*crop the picture"):
        encode(loaded[1], HostVAE(autoencoder), PROMPTS[1], long, max_image_size=1024)


def test_conditioning_of_another_model(loaded):
    model, _ = loaded
    stock = [[torch.zeros(1, 77, 32), {}]]
    with pytest.raises(ValueError, match=r"tensor \(1, 77, 32\).*is not OmniGen's"):
        sample(dual_guider(model, stock, stock, stock), torch.zeros(1, 4, 4, 4))


def test_conditionings_that_stock_nodes_emptied_or_joined(loaded, autoencoder):
    import nodes

    model, processor = loaded
    noise = torch.zeros(1, 4, 6, 8)
    positive, negative, image_only, _ = encode(processor, HostVAE(autoencoder), PROMPTS[1], references(1))
    for side in (positive, negative):
        (emptied,) = nodes.ConditioningZeroOut().zero_out(side)
        with pytest.raises(ValueError, match=r"ConditioningZeroOut.*Use OmniGen Encode's negative output"):
            sample(dual_guider(model, positive, image_only, emptied), noise)
        (joined,) = nodes.ConditioningConcat().concat(positive, side)
        with pytest.raises(ValueError, match=r"Conditioning \(Concat\).*one 'OmniGen Encode'"):
            sample(dual_guider(model, joined, image_only, negative), noise)
    once = sample(dual_guider(model, positive, image_only, negative), noise, steps=1)
    assert once.isfinite().all()


def test_loader_node_finds_the_folder(models_dir):
    from pack.nodes.omnigen import LoadOmniGen

    write_diffusers(models_dir / "omnigen" / "v1", tiny_config())
    assert LoadOmniGen.define_schema().inputs[0].options == ["v1"]
    model, _ = LoadOmniGen.execute("v1", "fp32").args
    assert model.model.diffusion_model.config == tiny_config()
    with pytest.raises(FileNotFoundError, match=r"no model folder '\.\./v1'"):
        LoadOmniGen.execute("../v1", "fp32")

"""DreamOmni folders as ComfyUI MODEL, VLM and VAE, with ComfyUI's own samplers, patchers and previews."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from dreamomni_sampling import SIGMAS, STEPS, conditioning, draw, load, sample
from pack.dit.dreamomni.latent import LatentSpec
from pack.dit.dreamomni.network import DreamOmniNetwork
from pack.dit.dreamomni.vae import PixelBlocks
from safetensors.torch import save_file
from tiny_dreamomni import VLM_WIDTH, random_weights, toy_config, vae_latent, write_network

pytestmark = pytest.mark.host


def by_hand(config, weights, positive, noise, sigmas=SIGMAS):
    """Euler on the plain network, without ComfyUI."""
    network = DreamOmniNetwork(config)
    network.load_state_dict(weights)
    tokens, extras = positive[0]
    spec, latent = config.latent, noise
    pictures = [(p - spec.shift) * spec.scale for p in extras.get("reference_latents", [])]
    with torch.no_grad():
        for sigma, following in pairwise(sigmas):
            velocity = network(
                latent,
                torch.tensor([sigma]),
                tokens,
                extras.get("attention_mask"),
                extras["dreamomni_image_index"],
                pictures,
            )
            latent = latent + (following - sigma) * velocity
    return latent / spec.scale + spec.shift


@pytest.mark.parametrize("prediction", ["clean", "velocity"])
def test_sampling_in_comfyui_equals_the_plain_network(tmp_path, prediction) -> None:
    config = toy_config(prediction=prediction, latent=vae_latent())
    model = load(write_network(tmp_path / "toy", config))
    mask = torch.ones(1, 7, dtype=torch.bool)
    mask[0, 5:] = False
    positive = conditioning(pictures=[draw(1, 6, 8, 6, seed=2), draw(1, 6, 4, 8, seed=3)], mask=mask)
    expected = by_hand(config, random_weights(config), positive, draw(1, 6, 8, 6, seed=9))
    torch.testing.assert_close(sample(model, positive), expected, rtol=1e-3, atol=1e-3)


def test_words_masks_picture_numbers_and_pictures_all_count(tmp_path) -> None:
    model = load(write_network(tmp_path / "toy"))
    pictures = [draw(1, 48, 4, 4, seed=2), draw(1, 48, 4, 6, seed=3)]
    mask = torch.ones(1, 7, dtype=torch.bool)
    mask[0, 5:] = False
    plain = conditioning(pictures=pictures)
    renumbered = conditioning(pictures=pictures)
    renumbered[0][1]["dreamomni_image_index"] = torch.zeros(1, 7, dtype=torch.long)
    result = sample(model, plain)
    for other in (
        conditioning(seed=5, pictures=pictures),
        conditioning(pictures=pictures, mask=mask),
        renumbered,
        conditioning(pictures=pictures[::-1]),
        conditioning(pictures=pictures[:1]),
        conditioning(),
    ):
        assert (sample(model, other) - result).abs().max() > 1e-4


def test_without_source_tokens_reference_latents_change_nothing(tmp_path) -> None:
    model = load(write_network(tmp_path / "toy", toy_config(source_tokens=False)))
    pictures = [draw(1, 48, 4, 4, seed=2)]
    assert torch.equal(sample(model, conditioning(pictures=pictures)), sample(model, conditioning()))


@pytest.mark.parametrize("scheme", ["index+offset", "index", "offset", "none"])
def test_the_position_node_places_references_by_another_scheme(tmp_path, scheme) -> None:
    from pack.dit.positions import PositionScheme
    from pack.model_loaders.patches import attach_position_encoding

    model = load(write_network(tmp_path / "toy"))
    positive = conditioning(pictures=[draw(1, 48, 4, 4, seed=2), draw(1, 48, 4, 6, seed=3)])
    placed = sample(attach_position_encoding(model, PositionScheme(scheme)), positive)
    other = toy_config(reference_positions=scheme)
    expected = by_hand(other, random_weights(other), positive, draw(1, 48, 8, 6, seed=9))
    torch.testing.assert_close(placed, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(placed, sample(model, positive)) == (scheme == "index+offset")


def test_guidance_of_alike_conditionings_runs_them_together(tmp_path) -> None:
    model = load(write_network(tmp_path / "toy"))
    positive = conditioning(pictures=[draw(1, 48, 4, 4, seed=2)])
    negative = conditioning(seed=6, pictures=[draw(1, 48, 4, 4, seed=2)])
    once, other = (sample(model, side, sigmas=[1.0, 0.0]) for side in (positive, negative))
    guided = sample(model, positive, negative, cfg=2.5, sigmas=[1.0, 0.0])
    torch.testing.assert_close(guided, other + 2.5 * (once - other), rtol=1e-3, atol=1e-3)


def test_guidance_with_negatives_of_another_length(tmp_path) -> None:
    model = load(write_network(tmp_path / "toy"))
    positive, negative = conditioning(pictures=[draw(1, 48, 4, 4, seed=2)]), conditioning(seed=6, length=3)
    once = sample(model, positive, negative, cfg=1.0, sigmas=[1.0, 0.0])
    other = sample(model, negative, positive, cfg=1.0, sigmas=[1.0, 0.0])
    guided = sample(model, positive, negative, cfg=2.5, sigmas=[1.0, 0.0])
    torch.testing.assert_close(guided, other + 2.5 * (once - other), rtol=1e-3, atol=1e-3)


def test_ksampler_and_custom_sampling_agree(tmp_path) -> None:
    import comfy.sample
    import comfy.samplers

    model = load(write_network(tmp_path / "toy"))
    positive, latent, noise = conditioning(), torch.zeros(1, 48, 8, 6), draw(1, 48, 8, 6, seed=9)
    sampled = comfy.sample.sample(
        model, noise, STEPS, 1.0, "euler", "simple", positive, positive, latent, disable_pbar=True
    )
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    assert sigmas[0] == 1.0
    torch.testing.assert_close(sample(model, positive, sigmas=sigmas.tolist()), sampled, rtol=1e-4, atol=1e-4)


def test_sampler_custom_advanced_gives_the_same_picture(tmp_path) -> None:
    from comfy_extras import nodes_custom_sampler as nodes

    model = load(write_network(tmp_path / "toy"))
    positive, negative = conditioning(pictures=[draw(1, 48, 4, 4, seed=2)]), conditioning(seed=6)
    noise = nodes.Noise_RandomNoise(7)
    latent = {"samples": torch.zeros(1, 48, 8, 6)}
    guider = nodes.CFGGuider.execute(model, positive, negative, 2.0)[0]
    sampler = nodes.KSamplerSelect.execute("euler")[0]
    output = nodes.SamplerCustomAdvanced.execute(noise, guider, sampler, torch.tensor(SIGMAS), latent)
    expected = sample(model, positive, negative, cfg=2.0, noise=noise.generate_noise(latent))
    torch.testing.assert_close(output[0]["samples"], expected, rtol=1e-4, atol=1e-4)


def test_a_batch_that_would_be_cut_is_refused(tmp_path) -> None:
    model = load(write_network(tmp_path / "toy"))
    three = conditioning(pictures=[draw(3, 48, 4, 4, seed=2)])
    with pytest.raises(ValueError, match=r"reference 1 is a batch of 3 but 1 picture\(s\) are sampled"):
        sample(model, three)
    assert len(sample(model, three, latent=torch.zeros(3, 48, 8, 6))) == 3
    tokens, extras = conditioning()[0]
    requests = [[tokens.expand(3, -1, -1), extras]]
    with pytest.raises(ValueError, match=r"batch of 3, .* but 2 picture\(s\) are sampled"):
        sample(model, requests, latent=torch.zeros(2, 48, 8, 6))


@pytest.mark.parametrize("named", ["attention_mask", "dreamomni_image_index"])
def test_two_prompts_joined_by_a_stock_node_are_refused(tmp_path, named) -> None:
    import nodes

    model = load(write_network(tmp_path / "toy"))
    first = conditioning(mask=torch.ones(1, 7, dtype=torch.bool))
    first[0][1] = {named: first[0][1][named]}
    (joined,) = nodes.ConditioningConcat().concat(first, conditioning(seed=2, length=5))
    with pytest.raises(ValueError, match=r"12 VLM tokens, but says for 7 .*Concat.* one 'VLM Encode'"):
        sample(model, joined)
    assert sample(model, first).isfinite().all()


def test_a_batch_equals_its_items(tmp_path) -> None:
    model = load(write_network(tmp_path / "toy"))
    tokens, extras = conditioning()[0]
    two = torch.cat([tokens, draw(1, 7, VLM_WIDTH, seed=12)])
    index = extras["dreamomni_image_index"].expand(2, -1)
    pictures = draw(2, 48, 4, 4, seed=2)
    noise, latent = draw(2, 48, 8, 6, seed=9), torch.zeros(2, 48, 8, 6)
    together = sample(
        model,
        [[two, {"dreamomni_image_index": index, "reference_latents": [pictures]}]],
        latent=latent,
        noise=noise,
    )
    for item in range(2):
        alone = [
            [
                two[item : item + 1],
                {"dreamomni_image_index": index[:1], "reference_latents": [pictures[item : item + 1]]},
            ]
        ]
        result = sample(model, alone, latent=latent[:1], noise=noise[item : item + 1])
        torch.testing.assert_close(result[0], together[item], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", ["diffusion_model.", "lora_unet_"])
def test_lora_files_with_comfyui_names_change_the_named_weights(tmp_path, names) -> None:
    import comfy.sd

    config = toy_config()
    model = load(write_network(tmp_path / "toy", config))
    target = "decoder.0.blocks.1.qkv"
    down, up = draw(2, 32, seed=21), draw(96, 2, seed=22)
    key = names + (target if names.endswith(".") else target.replace(".", "_"))
    parts = ("lora_A", "lora_B") if names.endswith(".") else ("lora_down", "lora_up")
    lora = {f"{key}.{parts[0]}.weight": down, f"{key}.{parts[1]}.weight": up}
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 0.5, 0.0)
    weights = random_weights(config)
    weights[f"{target}.weight"] = weights[f"{target}.weight"] + 0.5 * up @ down
    positive = conditioning()
    expected = by_hand(config, weights, positive, draw(1, 48, 8, 6, seed=9))
    torch.testing.assert_close(sample(patched, positive), expected, rtol=1e-3, atol=1e-3)
    unpatched = by_hand(config, random_weights(config), positive, draw(1, 48, 8, 6, seed=9))
    torch.testing.assert_close(sample(model, positive), unpatched, rtol=1e-3, atol=1e-3)
    assert (expected - unpatched).abs().max() > 1e-2


@pytest.mark.parametrize("prefix", ["base_model.model.", "transformer.", "transformer.base_model.model.", ""])
def test_peft_files_are_read_by_the_task_lora(tmp_path, models_dir, prefix) -> None:
    from pack.model_loaders.lora import apply_lora

    model = load(write_network(tmp_path / "toy"))
    target = "decoder.0.merge_noise"
    down, up = draw(2, 64, seed=21), draw(32, 2, seed=22)
    lora = {f"{prefix}{target}.lora_A.weight": down, f"{prefix}{target}.lora_B.weight": up}
    save_file(lora, models_dir / "loras" / "peft.safetensors")
    patched, report = apply_lora(model, "peft.safetensors", 0.5)
    assert (report.num_modules, report.unmatched) == (1, ())
    weights = random_weights(toy_config())
    weights[f"{target}.weight"] = weights[f"{target}.weight"] + 0.5 * up @ down
    positive = conditioning()
    expected = by_hand(toy_config(), weights, positive, draw(1, 48, 8, 6, seed=9))
    torch.testing.assert_close(sample(patched, positive), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn", "fp8_e5m2", "bf16"])
def test_smaller_storage_is_stored_small_and_stays_near(tmp_path, weight_dtype) -> None:
    from pack.model_loaders.dreamomni import WEIGHT_DTYPES

    folder = write_network(tmp_path / "toy")
    small = load(folder, weight_dtype)
    stored = {parameter.dtype for parameter in small.model.diffusion_model.parameters()}
    assert stored == {WEIGHT_DTYPES[weight_dtype]}
    positive = conditioning(pictures=[draw(1, 48, 4, 4, seed=2)])
    exact = sample(load(folder), positive)
    error = (sample(small, positive) - exact).norm() / exact.norm()
    assert 0 < error < {"bf16": 0.1, "fp8_e4m3fn": 0.5, "fp8_e5m2": 0.9}[weight_dtype]


def test_forced_partial_load_gives_the_same_picture(tmp_path) -> None:
    folder = write_network(tmp_path / "toy", toy_config(groups=2))
    positive = conditioning(pictures=[draw(1, 48, 4, 4, seed=2)])
    whole, partial = load(folder), load(folder)
    expected = sample(whole, positive)
    partial.model.model_lowvram = False
    partial.load(torch.device("cpu"), lowvram_model_memory=20_000, force_patch_weights=False)
    lowered = [m for m in partial.model.modules() if getattr(m, "comfy_cast_weights", False)]
    assert partial.model.model_lowvram
    assert len(lowered) > 10
    tokens, extras = positive[0]
    noise = draw(1, 48, 8, 6, seed=9)
    with torch.no_grad():
        arguments = {
            "context": tokens,
            "image_index": extras["dreamomni_image_index"],
            "ref_latents": extras["reference_latents"],
        }
        full = whole.model.diffusion_model(noise, torch.tensor([0.5]), **arguments)
        cast = partial.model.diffusion_model(noise, torch.tensor([0.5]), **arguments)
    torch.testing.assert_close(cast, full, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(expected).all()


def test_previews_show_the_pictures_colours(tmp_path) -> None:
    import comfy.latent_formats
    import latent_preview

    model = load(write_network(tmp_path / "toy"))
    picture = torch.ones(1, 3, 32, 24) * torch.tensor([0.8, -0.2, -0.9]).view(1, 3, 1, 1)
    shape = model.model.latent_format
    previewer = latent_preview.Latent2RGBPreviewer(shape.latent_rgb_factors, shape.latent_rgb_factors_bias)
    shown = previewer.decode_latent_to_preview(PixelBlocks(4).encode(picture))
    assert shown.size == (6, 8)
    assert shown.getpixel((3, 3)) == pytest.approx((229, 102, 12), abs=1)
    from pack.model_loaders.dreamomni_model import latent_format

    assert isinstance(latent_format(LatentSpec()), comfy.latent_formats.Flux)
    sdxl = LatentSpec(kind="sdxl", channels=4, scale=0.13025, shift=0.0)
    assert isinstance(latent_format(sdxl), comfy.latent_formats.SDXL)


def test_cancel_stops_within_one_step(tmp_path) -> None:
    import comfy.model_management

    model, seen = load(write_network(tmp_path / "toy")), []

    def cancel_after_one(step, denoised, latent, total):
        seen.append(step)
        comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(model, conditioning(), callback=cancel_after_one)
    comfy.model_management.interrupt_current_processing(False)
    assert seen == [0]


def test_memory_grows_with_references_and_words(tmp_path) -> None:
    model = load(write_network(tmp_path / "toy")).model
    alone = model.memory_required([1, 48, 8, 8], {})
    kwargs = {"cross_attn": draw(1, 40, VLM_WIDTH), "reference_latents": [draw(1, 48, 8, 8)] * 2}
    shapes = {name: [shape] for name, shape in model.extra_conds_shapes(**kwargs).items()}
    conds = model.extra_conds(**kwargs, device=torch.device("cpu"), noise=draw(1, 48, 8, 8))
    assert {name: [cond.size()] for name, cond in conds.items() if name in shapes} == shapes
    assert model.memory_required([1, 48, 8, 8], shapes) > 3 * alone


def test_a_wrapper_sees_every_evaluation(tmp_path) -> None:
    from comfy.patcher_extension import WrappersMP

    model, seen = load(write_network(tmp_path / "toy")).clone(), []

    def count(executor, *args, **kwargs):
        seen.append(executor.class_obj)
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    sample(model, conditioning())
    assert seen == [model.model.diffusion_model] * 3

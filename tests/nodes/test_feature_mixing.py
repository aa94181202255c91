"""Feature Mixing on ComfyUI's own Flux: the formula in every block, the host's batches, what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from mixed_flux import mixed_velocity
from tiny_flux import tiny_conditioning, tiny_flux, tiny_latent
from torch import Tensor

pytestmark = pytest.mark.host
SIGMA = 0.7
SOURCE, TARGET = tiny_conditioning(1), tiny_conditioning(2)
EMPTY = {"samples": torch.zeros(1, 16, 8, 12)}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_flux()


def mixed(model: Any, source: list = SOURCE, target: list = TARGET, **more: Any) -> tuple[Any, list, dict]:
    from pack.nodes.feature_mixing import FeatureMixing

    return FeatureMixing.execute(model, source, target, **({"latent": EMPTY} | more)).args


def sampled(
    model: Any,
    x: Tensor,
    positive: list,
    negative: list | None = None,
    cfg: float = 1.0,
    sigmas: Any = (1, 0),
) -> Tensor:
    """Euler over `sigmas` from noise x, through ComfyUI's whole sampling path."""
    import comfy.samplers

    with torch.inference_mode():
        return comfy.samplers.sample(
            model, x, positive, negative or positive, cfg, model.load_device,
            comfy.samplers.sampler_object("euler"), torch.tensor(sigmas, dtype=torch.float32),
            model_options=model.model_options, latent_image=torch.zeros_like(x), disable_pbar=True,
        )  # fmt: skip


def velocity(model: Any, x: Tensor, positive: list, negative: list | None = None, cfg: float = 1.0) -> Tensor:
    """The velocity at SIGMA for the network's input x."""
    # The sampler scales its noise by the first sigma; Euler to 0 gives x - SIGMA * velocity.
    out = sampled(model, x / SIGMA, positive, negative, cfg, (SIGMA, 0.0))
    return (x - model.model.process_latent_in(out)) / SIGMA


@pytest.mark.parametrize(("depth", "single"), [(2, 2), (2, 0), (0, 2)])
@pytest.mark.parametrize("lengths", [(6, 6), (6, 9), (9, 6)])
def test_both_branches_equal_the_formula(depth: int, single: int, lengths: tuple[int, int]) -> None:
    model = tiny_flux(depth=depth, single=single)
    prompts = [tiny_conditioning(seed, tokens) for seed, tokens in enumerate(lengths, start=1)]
    patched, pair, _ = mixed(model, *prompts)
    x = tiny_latent(batch=2)
    expected = mixed_velocity(model.model.diffusion_model, x, SIGMA, prompts)
    unmixed = mixed_velocity(model.model.diffusion_model, x, SIGMA, prompts, is_mixing=False)
    got = velocity(patched, x, pair)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert (expected[1] - unmixed[1]).abs().max() > 1e-2
    assert torch.equal(expected[0], unmixed[0])


def test_odd_sides_are_padded_as_by_the_network(model: Any) -> None:
    patched, pair, _ = mixed(model)
    x = tiny_latent(7, 9, batch=2)
    expected = mixed_velocity(model.model.diffusion_model, x, SIGMA, [SOURCE, TARGET])
    torch.testing.assert_close(velocity(patched, x, pair), expected, atol=1e-5, rtol=0)


STEPS = (1.0, 0.8, 0.5, 0.2, 0.0)


@pytest.mark.parametrize("lengths", [(6, 6), (6, 9), (9, 6)])
def test_the_source_is_the_picture_without_the_node_and_so_is_a_target_that_is_never_mixed(
    model: Any, lengths: tuple[int, int]
) -> None:
    prompts = [tiny_conditioning(seed, tokens) for seed, tokens in enumerate(lengths, start=1)]
    x = tiny_latent(batch=2)
    alone = [sampled(model, x[n : n + 1], prompt, sigmas=STEPS) for n, prompt in enumerate(prompts)]
    patched, pair, _ = mixed(model, *prompts)
    pictures = sampled(patched, x, pair, sigmas=STEPS)
    torch.testing.assert_close(pictures[:1], alone[0], atol=1e-5, rtol=0)
    assert (pictures[1:] - alone[1]).abs().max() > 1e-2
    off, pair, _ = mixed(model, *prompts, start_percent=0.5, end_percent=0.5)
    torch.testing.assert_close(sampled(off, x, pair, sigmas=STEPS), torch.cat(alone), atol=1e-5, rtol=0)


def test_pairs_of_a_batch_are_sampled_as_if_alone(model: Any) -> None:
    patched, pair, latent = mixed(model, latent={"samples": torch.zeros(2, 16, 8, 12)})
    assert latent["samples"].shape == (4, 16, 8, 12)
    x = tiny_latent(batch=4)
    both = sampled(patched, x, pair, sigmas=STEPS)
    one = torch.cat([sampled(patched, x[n : n + 2], pair, sigmas=STEPS) for n in (0, 2)])
    torch.testing.assert_close(both, one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("enough_memory", [True, False])
@pytest.mark.parametrize("negative", [tiny_conditioning(3), tiny_conditioning(3, 8)])
def test_guidance_with_a_negative_prompt(
    model: Any, monkeypatch: pytest.MonkeyPatch, negative: list, enough_memory: bool
) -> None:
    """ComfyUI computes both prompts in one call or in two; the pairs stay together, each prompt mixes."""
    import comfy.model_management as management

    free = management.get_free_memory

    def told(device: Any = None, torch_free_too: bool = False) -> Any:
        return free(device, True) if torch_free_too else 1e12 * enough_memory

    monkeypatch.setattr(management, "get_free_memory", told)
    batches = []
    network = model.model.diffusion_model
    forward = network._forward
    monkeypatch.setattr(network, "_forward", lambda x, *a, **k: batches.append(len(x)) or forward(x, *a, **k))
    patched, pair, _ = mixed(model)
    x = tiny_latent(batch=2)
    got = velocity(patched, x, pair, negative, 3.0)
    together = enough_memory and negative[0][0].shape == SOURCE[0][0].shape
    assert batches == ([4] if together else [2, 2])
    positive = mixed_velocity(network, x, SIGMA, [SOURCE, TARGET])
    away = mixed_velocity(network, x, SIGMA, [negative, negative])
    torch.testing.assert_close(got, away + 3 * (positive - away), atol=1e-4, rtol=0)


def test_start_and_end_count_as_in_comfyui(model: Any) -> None:
    sampling = model.get_model_object("model_sampling")
    sigmas = [float(sampling.percent_to_sigma(at)) for at in (0.0, 0.25, 0.5, 0.75)] + [0.0]
    assert sigmas[2] > 0.6, "a shifted schedule: percent is not 1 - sigma"
    whole, pair, _ = mixed(model)
    part, _, _ = mixed(model, start_percent=0.2, end_percent=0.6)
    none, _, _ = mixed(model, start_percent=1.0, end_percent=1.0)
    x = tiny_latent(batch=2)
    got = sampled(part, x, pair, sigmas=sigmas)

    # The same four steps, each with the model that should be on.
    import comfy.samplers

    class Steps(comfy.samplers.Sampler):
        def sample(self, wrap: Any, sigmas: Tensor, extra: Any, _: Any, noise: Tensor, *__: Any) -> Tensor:
            return wrap(noise, sigmas[:1].expand(len(noise)), **extra)

    def denoised(patcher: Any, state: Tensor, sigma: float) -> Tensor:
        guider = comfy.samplers.CFGGuider(patcher)
        guider.set_conds(pair, pair)
        guider.set_cfg(1.0)
        with torch.inference_mode():
            out = guider.sample(state, torch.zeros_like(state), Steps(), torch.tensor([sigma, 0.0]), seed=0)
        return model.model.process_latent_in(out)

    state = x.clone()
    for number, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        clean = denoised(whole if number in (1, 2) else none, state, sigma)
        state = clean + (state - clean) * after / sigma
    torch.testing.assert_close(got, model.model.process_latent_out(state), atol=1e-4, rtol=0)


class FromSigma:
    """A sampling whose percent is 1 - sigma."""

    def percent_to_sigma(self, percent: float) -> float:
        return 1 - percent


def test_when_mixing_is_on() -> None:
    from pack.model_loaders.feature_mixing import MixingRange

    def on(start: float, end: float) -> list[float]:
        when = MixingRange(start_percent=start, end_percent=end)
        return [sigma for sigma in (1.0000001, 1.0, 0.75, 0.5, 0.25) if when.holds(FromSigma(), sigma)]

    assert on(0, 1) == [1.0000001, 1.0, 0.75, 0.5, 0.25]
    assert on(0, 0.5) == [1.0000001, 1.0, 0.75]
    assert on(0.25, 0.75) == [0.75, 0.5]
    assert on(0, 0) == on(0.5, 0.5) == on(1, 1) == []
    for start, end in ((0.6, 0.5), (-0.1, 1), (0, 1.1)):
        with pytest.raises(ValueError, match=r"must lie between 0 and 1, the end not before the start"):
            MixingRange(start_percent=start, end_percent=end)


def test_loras_and_the_attention_of_others_stack_in_any_order(model: Any) -> None:
    x = tiny_latent(batch=2)
    lora = {"diffusion_model.double_blocks.0.img_attn.qkv.weight": (torch.full((96, 32), 0.1),)}
    asked = []

    def other(attention: Any, q: Tensor, *args: Any, **more: Any) -> Tensor:
        asked.append(len(q))
        return attention(q, *args, **more)

    def with_others(patcher: Any) -> Any:
        changed = patcher.clone()
        assert changed.add_patches(lora)
        changed.model_options["transformer_options"]["optimized_attention_override"] = other
        return changed

    plain, pair, _ = mixed(model)
    first = velocity(with_others(plain), x, pair)
    assert asked == [1] * 2 * 4, "source and target in each of four blocks"
    last = velocity(mixed(with_others(model))[0], x, pair)
    assert torch.equal(first, last)
    assert (first - velocity(plain, x, pair)).abs().max() > 1e-3


def test_the_input_stays_and_the_last_node_wins(model: Any) -> None:
    off, pair, _ = mixed(mixed(model)[0], start_percent=0.5, end_percent=0.5)
    assert not model.wrappers
    assert all(len(found) == 1 for by_key in off.wrappers.values() for found in by_key.values())
    x = tiny_latent(batch=2)
    alone = velocity(model, x[1:], TARGET)
    torch.testing.assert_close(velocity(off, x, pair)[1:], alone, atol=1e-5, rtol=0)


def test_the_settings_of_the_prompts_are_kept(model: Any) -> None:
    _, [[text, more]], _ = mixed(model)
    assert torch.equal(text, torch.cat((SOURCE[0][0], TARGET[0][0])))
    assert torch.equal(more["pooled_output"], torch.cat([c[0][1]["pooled_output"] for c in (SOURCE, TARGET)]))
    assert more["guidance"] == 3.5
    area = (4, 4, 0, 0)
    (_, [[_, more]], _) = mixed(model, tiny_conditioning(1, area=area), tiny_conditioning(2, area=area))
    assert more["area"] == area


def test_masks_and_noise_follow_their_pictures(model: Any) -> None:
    samples = tiny_latent(batch=3)
    masks = torch.arange(3.0)[:, None, None].expand(3, 8, 12)
    given = {"samples": samples, "noise_mask": masks, "batch_index": [0, 4, 2], "kept": 1}
    _, _, latent = mixed(model, latent=given)
    assert torch.equal(latent["samples"], samples[[0, 0, 1, 1, 2, 2]])
    assert latent["noise_mask"][:, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert latent["batch_index"] == [0, 1, 8, 9, 4, 5]
    assert latent["kept"] == 1
    _, _, latent = mixed(model, latent={"samples": samples, "noise_mask": masks[1:2]})
    assert latent["noise_mask"].shape == (6, 8, 12)


def without(conditioning: list, key: str) -> list:
    [[text, more]] = conditioning
    return [[text, {name: value for name, value in more.items() if name != key}]]


WIDER = [[torch.zeros(1, 6, 30), TARGET[0][1]]]
TWO_PROMPTS = [[TARGET[0][0].repeat(2, 1, 1), TARGET[0][1]]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": tiny_conditioning(2, guidance=4.0)}, r"'guidance' \(source: 3.5, target: 4.0\)"),
        ({"target": without(TARGET, "guidance")}, r"'guidance' \(source: 3.5, target: not set\)"),
        (
            {"source": tiny_conditioning(1, mask=torch.ones(1, 8, 12))},
            r"'mask' \(source: Tensor, target: not",
        ),
        ({"target": without(TARGET, "pooled_output")}, "target has no pooled text vector"),
        ({"target": WIDER}, r"source's prompt has 24 channels, the target's 30.*same CLIP"),
        ({"source": [*SOURCE, *TARGET]}, r"source holds 2 conditionings, 1 is allowed.*Combine"),
        ({"target": TWO_PROMPTS}, r"target is a batch of 2 prompts, 1 is allowed"),
        ({"latent": {}}, r"needs a latent of pictures .* got none. Connect EmptySD3LatentImage"),
        ({"latent": {"samples": torch.zeros(1, 16, 3, 4, 4)}}, r"got one of shape \(1, 16, 3, 4, 4\)"),
        ({"start_percent": 0.9, "end_percent": 0.2}, "the end not before the start"),
    ],
)
def test_what_the_node_refuses(model: Any, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixed(model, **given)


def test_what_a_run_refuses(model: Any) -> None:
    patched, pair, _ = mixed(model)
    with pytest.raises(ValueError, match=r"3 picture\(s\) are sampled .* which needs pairs"):
        sampled(patched, tiny_latent(batch=3), pair)
    with pytest.raises(ValueError, match="no conditioning of Feature Mixing reaches the sampler"):
        sampled(patched, tiny_latent(batch=2), SOURCE)
    latents = [torch.zeros(1, 16, 4, 4)]
    _, references, _ = mixed(model, *(tiny_conditioning(n, reference_latents=latents) for n in (1, 2)))
    with pytest.raises(ValueError, match="makes pictures from words; the conditioning holds reference pic"):
        sampled(patched, tiny_latent(batch=2), references)
    assert sampled(patched, tiny_latent(batch=2), pair).isfinite().all()


def test_a_host_whose_attention_cannot_be_reached_is_named(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.ldm.flux.math as host

    bare = host.optimized_attention.__wrapped__
    monkeypatch.setattr(host, "optimized_attention", bare)
    patched, pair, _ = mixed(model)
    with pytest.raises(ValueError, match="Feature Mixing did nothing: this MODEL never asked"):
        sampled(patched, tiny_latent(batch=2), pair)


class OtherNetwork(torch.nn.Module):
    pass


def test_models_that_are_not_flux_1_are_refused(model: Any) -> None:
    from copy import copy
    from dataclasses import replace

    two = copy(model.model.diffusion_model)
    two.params = replace(two.params, axes_dim=[8, 8, 8, 8])
    nunchaku = type("ComfyFluxWrapper", (torch.nn.Module,), {"__module__": "ComfyUI-nunchaku.wrappers.flux"})
    for network, got in (
        (OtherNetwork(), r"Flux \(OtherNetwork\)"),
        (nunchaku(), "a nunchaku Flux"),
        (two, r"a Flux with 4 position axes \(FLUX.2\)"),
    ):
        other = model.clone()
        other.add_object_patch("diffusion_model", network)
        with pytest.raises(ValueError, match=rf"Feature Mixing is for FLUX.1; this MODEL is {got}"):
            mixed(other)

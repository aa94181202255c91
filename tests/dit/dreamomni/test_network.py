"""The wiring against plain tensor code, and what every switch must change."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from pack.dit.dreamomni.blocks import DiTBlock
from pack.dit.dreamomni.config import PRESETS, tiny_preset
from pack.dit.dreamomni.initialize import QUIET_CONV, initialize
from pack.dit.dreamomni.network import DreamOmniNetwork

spec = importlib.util.spec_from_file_location("dreamomni_reference", Path(__file__).with_name("reference.py"))
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


def by_hand(network, inputs, pictures):
    return reference.two_group_network(
        dict(network.state_dict()),
        network.config,
        inputs["latent"],
        inputs["sigma"],
        inputs["context"],
        inputs["attention_mask"],
        pictures,
    )


@torch.no_grad()
def test_the_wiring_equals_plain_tensor_code(make_network, make_config, inputs) -> None:
    network = make_network(make_config())
    expected = by_hand(network, inputs, inputs["ref_latents"])
    actual = network(**inputs)
    assert actual.abs().mean() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_without_source_tokens_pictures_enter_through_the_vlm_only(make_network, make_config, inputs) -> None:
    network = make_network(make_config(source_tokens=False))
    torch.testing.assert_close(network(**inputs), by_hand(network, inputs, []), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_exchanging_two_skips_changes_the_output(make_network, make_config, inputs) -> None:
    network = make_network(make_config())
    right = network(**inputs)

    class Crossed(type(network)):
        def run_groups(self, tokens, num_image, block_inputs):
            saved = []
            for group in self.encoder:
                tokens = group(tokens, num_image, block_inputs)
                saved.append(tokens)
            for group, skip in zip(self.decoder, saved, strict=True):
                tokens = group(tokens, num_image, block_inputs, skip)
            return tokens

    network.__class__ = Crossed
    assert (network(**inputs) - right).abs().max() > 1e-3


@torch.no_grad()
def test_exchanging_the_conv_skips_changes_the_output(make_network, make_config, inputs) -> None:
    network = make_network(make_config())
    right = network(**inputs)
    plain = network.exit.forward
    network.exit.forward = lambda tokens, time, a, b, source: plain(tokens, time, b, a, source)
    assert (network(**inputs) - right).abs().max() > 1e-3


@torch.no_grad()
def test_noise_and_vlm_tokens_have_merges_of_their_own(make_network, make_config, inputs) -> None:
    network = make_network(make_config())
    right = network(**inputs)
    for group in network.decoder:
        group.merge_noise, group.merge_vlm = group.merge_vlm, group.merge_noise
    assert (network(**inputs) - right).abs().max() > 1e-3


@pytest.mark.parametrize(
    "change",
    [
        {"block_skips": False},
        {"conv_skips": False},
        {"conv_skip_merge": "add"},
        {"downsample": "pixel-unshuffle"},
        {"upsample": "pixel-shuffle"},
        {"qk_norm": False},
        {"qkv_bias": False},
        {"exit_norm": False},
        {"vlm_norm": False},
        {"time_layers": 2},
        {"modulation_order": "silu-linear"},
        {"modulation_form": "one-plus-alpha"},
        {"residual_gate": True},
        {"position_encoding": "none"},
        {"position_encoding": "sincos"},
        {"position_encoding": "rope+sincos"},
        {"vlm_image_index": True},
        {"role_embeddings": True},
        {"reference_positions": "index"},
        {"reference_positions": "offset"},
        {"reference_positions": "none"},
        {"prediction": "clean"},
        {"patch": 2},
    ],
    ids=lambda change: "-".join(f"{k}={v}" for k, v in change.items()),
)
@torch.no_grad()
def test_every_switch_runs_and_changes_the_output(make_network, make_config, inputs, change) -> None:
    plain, changed = make_network(make_config()), make_network(make_config(**change))
    shared = {
        name: value
        for name, value in plain.state_dict().items()
        if changed.state_dict().get(name, value[:0]).shape == value.shape
    }
    changed.load_state_dict(shared, strict=False)
    output = changed(**inputs)
    assert output.shape == inputs["latent"].shape
    assert torch.isfinite(output).all()
    assert (output - plain(**inputs)).abs().max() > 1e-4


@torch.no_grad()
def test_masked_vlm_tokens_change_nothing(make_network, make_config, inputs) -> None:
    network = make_network(make_config())
    before = network(**inputs)
    inputs["context"][1, 3:] = 100.0
    after = network(**inputs)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    inputs["context"][1, 2, 0] += 1.0
    assert (network(**inputs)[1] - before[1]).abs().max() > 1e-3


@torch.no_grad()
def test_every_picture_counts_and_so_does_their_order(make_network, make_config, inputs) -> None:
    network = make_network(make_config())
    right = network(**inputs)
    first, second = inputs["ref_latents"]
    for pictures in ([first], [second], [second, first], []):
        changed = network(**{**inputs, "ref_latents": pictures})
        assert (changed - right).abs().max() > 1e-3


@torch.no_grad()
def test_a_request_does_not_see_the_others_of_its_batch(make_network, make_config, inputs) -> None:
    network = make_network(make_config(role_embeddings=True, vlm_image_index=True))
    together = network(**inputs)
    for row in range(2):
        alone = network(
            inputs["latent"][row : row + 1],
            inputs["sigma"][row : row + 1],
            inputs["context"][row : row + 1],
            inputs["attention_mask"][row : row + 1],
            inputs["image_index"][row : row + 1],
            [picture[row : row + 1] for picture in inputs["ref_latents"]],
        )
        torch.testing.assert_close(alone[0], together[row], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_odd_sizes_are_padded_and_cut_back(make_network, make_config, inputs) -> None:
    network = make_network(make_config(patch=2))
    odd = inputs["latent"][..., :5, :7]
    output = network(**{**inputs, "latent": odd, "ref_latents": [inputs["ref_latents"][0][..., :3, :5]]})
    assert output.shape == odd.shape
    whole = torch.nn.functional.pad(odd, (0, 1, 0, 3), mode="replicate")
    padded = network(**{**inputs, "latent": whole, "ref_latents": [inputs["ref_latents"][0][..., :3, :5]]})
    torch.testing.assert_close(output, padded[..., :5, :7], rtol=1e-9, atol=1e-9)


def test_clean_prediction_becomes_velocity_in_one_place(make_network, make_config, inputs) -> None:
    network = make_network(make_config(prediction="clean", clean_sigma_floor=0.4))
    clean = network.predict(**inputs)
    velocity = network(**inputs)
    share = torch.tensor([0.9, 0.4], dtype=torch.float64).view(2, 1, 1, 1)
    torch.testing.assert_close(inputs["latent"] - share * velocity, clean, rtol=1e-9, atol=1e-9)


def euler(network, inputs, steps: int = 4):
    latent = inputs["latent"]
    sigmas = torch.linspace(1, 0, steps + 1, dtype=latent.dtype)
    for sigma, following in pairwise(sigmas):
        velocity = network(**{**inputs, "latent": latent, "sigma": sigma.expand(len(latent))})
        latent = latent + (following - sigma) * velocity.to(latent.dtype)
    return latent


@torch.no_grad()
def test_sampling_the_tiny_preset_agrees_in_float32_and_float64() -> None:
    config = tiny_preset()
    exact = DreamOmniNetwork(config, dtype=torch.float64)
    initialize(exact, torch.Generator().manual_seed(0))
    torch.nn.init.normal_(exact.exit.out.weight, std=0.05, generator=torch.Generator().manual_seed(1))
    single = DreamOmniNetwork(config, dtype=torch.float32)
    single.load_state_dict(exact.state_dict())
    generator = torch.Generator().manual_seed(2)
    draws = {
        "latent": torch.randn(1, 48, 8, 8, generator=generator, dtype=torch.float64),
        "context": torch.randn(1, 7, 128, generator=generator, dtype=torch.float64),
    }
    picture = torch.randn(1, 48, 8, 8, generator=generator, dtype=torch.float64)
    expected = euler(exact, {**draws, "ref_latents": [picture]})
    floats = {name: value.float() for name, value in draws.items()}
    actual = euler(single, {**floats, "ref_latents": [picture.float()]})
    assert (expected - draws["latent"]).abs().mean() > 0.1
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_fresh_network_predicts_zero_and_every_weight_learns(make_config, inputs) -> None:
    network = DreamOmniNetwork(make_config(role_embeddings=True), dtype=torch.float64)
    initialize(network, torch.Generator().manual_seed(3))
    assert network(**inputs).abs().max() == 0
    generator = torch.Generator().manual_seed(4)
    for name, weight in network.named_parameters():
        if name == "exit.out.weight" or "modulation.linear.weight" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=generator)
    loss = (network(**inputs) - inputs["latent"]).square().mean()
    loss.backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


def test_a_fresh_merge_lets_its_main_path_through(make_config) -> None:
    network = DreamOmniNetwork(make_config())
    initialize(network, torch.Generator().manual_seed(2))
    width = network.config.width
    tokens = torch.randn(1, 5, width, generator=torch.Generator().manual_seed(3))
    for group in network.decoder:
        for merge in (group.merge_noise, group.merge_vlm):
            alone = merge(torch.cat([tokens, torch.zeros_like(tokens)], dim=-1))
            assert torch.nn.functional.cosine_similarity(alone, tokens, dim=-1).min() > 0.9
            assert merge.weight[:, width:].abs().max() > 0


def test_fresh_residual_branches_are_xavier_made_quiet(make_config) -> None:
    network, plain = (DreamOmniNetwork(make_config()) for _ in range(2))
    initialize(network, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    for module in plain.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            torch.nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
    number = 2 * sum(isinstance(module, DiTBlock) for module in network.modules())
    shares = {"attention_out": number**-0.5, "feedforward_out": number**-0.5, "conv_out": QUIET_CONV}
    drawn, found = dict(plain.named_modules()), set()
    for name, module in network.named_modules():
        last = name.rpartition(".")[2]
        if last in shares:
            torch.testing.assert_close(module.weight, drawn[name].weight * shares[last])
            found.add(last)
    assert found == shares.keys() and QUIET_CONV == 0.5


def test_equal_seeds_give_equal_starts(make_config) -> None:
    one, two, other = (DreamOmniNetwork(make_config()) for _ in range(3))
    for network, seed in ((one, 5), (two, 5), (other, 6)):
        initialize(network, torch.Generator().manual_seed(seed))
    pairs = list(zip(one.parameters(), two.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.vlm_in.weight, other.vlm_in.weight)


def test_a_fresh_modulation_leaves_its_input_as_it_is(make_config) -> None:
    for order in ("linear-silu", "silu-linear"):
        for form in ("alpha", "one-plus-alpha"):
            config = make_config(modulation_order=order, modulation_form=form, residual_gate=True)
            network = DreamOmniNetwork(config)
            initialize(network, torch.Generator().manual_seed(0))
            alpha, beta, gate = network.encoder[0].blocks[0].attention_modulation(torch.randn(3, 20))
            torch.testing.assert_close(alpha, torch.ones_like(alpha), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(gate, torch.ones_like(gate), rtol=1e-5, atol=1e-5)
            assert beta.abs().max() == 0


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("paper-2.5b", 2.55e9, 2.65e9), ("small", 1.55e8, 1.65e8), ("tiny", 4.75e6, 4.85e6)],
)
def test_presets_have_their_size(name: str, low: float, high: float) -> None:
    network = DreamOmniNetwork(PRESETS[name](), device="meta")
    count = sum(parameter.numel() for parameter in network.parameters())
    assert low < count < high


def test_the_paper_preset_is_wired_as_drawn() -> None:
    config = PRESETS["paper-2.5b"]()
    drawn = {
        "block_skips": True,
        "conv_skips": True,
        "time_layers": 1,
        "modulation_order": "linear-silu",
        "modulation_form": "alpha",
        "residual_gate": False,
        "source_tokens": False,
        "role_embeddings": False,
        "vlm_width": 3584,
    }
    assert {name: getattr(config, name) for name in drawn} == drawn


def test_wrong_inputs_are_named(make_network, make_config, inputs) -> None:
    network = make_network(make_config())
    cases = [
        ({"context": None}, "reads VLM tokens with 24 channels, got nothing"),
        ({"context": inputs["context"][..., :7]}, r"got a tensor of shape \(2, 5, 7\)"),
        ({"context": inputs["context"][:1]}, "1 conditionings for 2 latents"),
        ({"latent": inputs["latent"][:, :3]}, "this network works on 4 channels"),
        ({"ref_latents": [inputs["latent"][:, :3]]}, "the latent of picture 1 has shape"),
        ({"ref_latents": inputs["ref_latents"] * 3}, "6 pictures given, this network takes 5"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            network(**{**inputs, **change})


def test_the_network_is_the_config(make_config) -> None:
    assert replace(make_config(), groups=3) != make_config()
    assert len(DreamOmniNetwork(make_config(groups=3), device="meta").decoder) == 3

"""The network against diffusers' OmniGenTransformer2DModel and processor, same tiny random weights."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.omnigen.processor_omnigen import OmniGenCollator, OmniGenMultiModalProcessor
from pack.dit.omnigen.config import OmniGenConfig, config_from_json
from pack.dit.omnigen.embed import grid_positions
from pack.dit.omnigen.layout import sequence_rows
from pack.dit.omnigen.network import OmniGenNetwork
from pack.dit.omnigen.prefix import make_prefix, sequence_from_tensor
from pack.dit.omnigen.prompt import tokenize_prompt
from tiny_omnigen import byte_tokenizer, diffusers_model, own_network, tiny_config
from transformers import PreTrainedTokenizerFast

PROMPTS = {
    0: "a cat on a roof",
    1: "<img><|image_1|></img> with a red roof",
    2: "Put <img><|image_1|></img> beside <img><|image_2|></img> at night",
    3: "<img><|image_3|></img> in the style of <img><|image_1|></img>, lit like <img><|image_2|></img>.",
}
SIZES = [(32, 48), (64, 32), (48, 48)]  # height, width of the references in px


def encode(text, first):
    ids = byte_tokenizer().encode(text, add_special_tokens=False).ids
    return [1, *ids] if first else ids


def processed(prompt, sizes, target):
    """diffusers' ids, mask, positions for one prompt and pictures of those sizes."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer())
    processor = OmniGenMultiModalProcessor(tokenizer)
    pictures = [torch.zeros(3, *size) for size in sizes]
    inputs = processor.process_multi_modal_prompt(prompt, pictures or None)
    return OmniGenCollator().process_mllm_input([inputs], [list(target)])


def dense_mask(calls, length):
    mask = torch.zeros(length, length, dtype=torch.bool)
    for call in calls:
        seen = torch.ones(call.stop - call.start, call.key_stop, dtype=torch.bool)
        mask[call.start : call.stop, : call.key_stop] = seen if call.mask is None else call.mask
    return mask


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_ids_mask_and_positions_equal_diffusers(count):
    ids, positions, mask, *_ = processed(PROMPTS[count], SIZES[:count], (32, 64))
    tokens = tokenize_prompt(PROMPTS[count], [h * w // 256 for h, w in SIZES[:count]], encode)
    assert list(tokens.token_ids) == ids[0].tolist()
    length = len(tokens.token_ids) + 1 + 8
    assert positions[0].tolist() == list(range(length))
    calls = sequence_rows(tokens.slots, len(tokens.token_ids), 8, torch.device("cpu"))
    assert torch.equal(dense_mask(calls, length), mask[0].bool())


def test_a_batch_of_prompts_equals_diffusers_padded_one():
    """We never pad: the rows a padded batch really uses must be ours."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer())
    processor = OmniGenMultiModalProcessor(tokenizer)
    inputs = [
        processor.process_multi_modal_prompt(
            PROMPTS[count], [torch.zeros(3, *size) for size in SIZES[:count]] or None
        )
        for count in (0, 2)
    ]
    ids, positions, mask, *_ = OmniGenCollator().process_mllm_input(inputs, [[32, 32], [32, 32]])
    for row, count in enumerate((0, 2)):
        tokens = tokenize_prompt(PROMPTS[count], [h * w // 256 for h, w in SIZES[:count]], encode)
        pad = ids.shape[1] - len(tokens.token_ids)
        assert list(tokens.token_ids) == ids[row, pad:].tolist()
        assert positions[row, pad:].tolist() == list(range(len(tokens.token_ids) + 5))
        calls = sequence_rows(tokens.slots, len(tokens.token_ids), 4, torch.device("cpu"))
        assert torch.equal(dense_mask(calls, len(tokens.token_ids) + 5), mask[row, pad:, pad:].bool())
        assert not mask[row, pad:, :pad].any()


def compare(config, count, target=(4, 6), batch=1):
    model = diffusers_model(config)
    network = own_network(model, config)
    torch.manual_seed(count)
    references = [torch.randn(1, 4, h // 8, w // 8) for h, w in SIZES[:count]]
    tokens = tokenize_prompt(PROMPTS[count], [h * w // 256 for h, w in SIZES[:count]], encode)
    latent = torch.randn(batch, 4, *target)
    sigma = torch.linspace(0.9, 0.3, batch)
    ids, positions, mask, _, _, slots = processed(PROMPTS[count], SIZES[:count], [s * 8 for s in target])
    in_order = [references[slot.image] for slot in tokens.slots]
    with torch.no_grad():
        theirs = torch.cat(
            [
                model(
                    latent[item : item + 1],
                    1 - sigma[item : item + 1],
                    ids,
                    in_order,
                    slots,
                    mask,
                    positions,
                ).sample
                for item in range(batch)
            ]
        )
        ours = network.velocity(latent, sigma, make_prefix(tokens, references))
    return -theirs, ours


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_velocity_equals_diffusers(count):
    theirs, ours = compare(tiny_config(), count)
    assert theirs.abs().mean() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_velocity_of_a_batch_with_its_own_times():
    theirs, ours = compare(tiny_config(), 2, batch=3)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_long_sequences_take_the_long_factors():
    theirs, ours = compare(tiny_config(original_max_position_embeddings=64), 2)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    _, short = compare(tiny_config(), 2)
    assert (ours - short).abs().max() > 1e-3


def test_grouped_key_heads():
    theirs, ours = compare_grouped()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def compare_grouped():
    """diffusers' OmniGen cannot group; its keys repeated by hand can."""
    config = tiny_config(num_kv_heads=2)
    full = tiny_config()
    model = diffusers_model(full)
    with torch.no_grad():
        for layer in model.layers:
            for linear in (layer.self_attn.to_k, layer.self_attn.to_v):
                heads = linear.weight.unflatten(0, (4, 8))
                linear.weight.copy_(heads[[0, 0, 2, 2]].flatten(0, 1))
    wide = own_network(model, full)
    network = OmniGenNetwork(config)
    weights = wide.state_dict()
    for name in [name for name in weights if "qkv_proj" in name]:
        query, key, value = weights[name].split(32)
        keep = lambda part: part.unflatten(0, (4, 8))[[0, 2]].flatten(0, 1)
        weights[name] = torch.cat([query, keep(key), keep(value)])
    network.load_state_dict(weights)
    latent, sigma = torch.randn(1, 4, 4, 4), torch.tensor([0.5])
    prefix = make_prefix(tokenize_prompt("a dog", [], encode), [])
    with torch.no_grad():
        return wide.velocity(latent, sigma, prefix), network.velocity(latent, sigma, prefix)


def test_position_table_equals_diffusers():
    model = diffusers_model(tiny_config())
    for height, width in [(4, 4), (6, 10), (96, 2)]:
        theirs = model.patch_embedding._cropped_pos_embed(height, width)[0]
        ours = grid_positions(height // 2, width // 2, 32, 192)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_position_table_is_made_where_it_is_used():
    """On a card: only the two axes travel, rounded before they are joined, which gives the same."""
    on_card = grid_positions(6, 10, 32, 192, device="meta", dtype=torch.bfloat16)
    assert (on_card.device.type, on_card.dtype, on_card.shape) == ("meta", torch.bfloat16, (60, 32))
    rounded = grid_positions(6, 10, 32, 192, dtype=torch.bfloat16)
    assert torch.equal(rounded, grid_positions(6, 10, 32, 192).to(torch.bfloat16))


def test_an_odd_latent_is_padded_and_cut():
    config = tiny_config()
    network = own_network(diffusers_model(config), config)
    prefix = make_prefix(tokenize_prompt("a dog", [], encode), [])
    latent = torch.randn(1, 4, 5, 7)
    with torch.no_grad():
        odd = network.velocity(latent, torch.tensor([0.5]), prefix)
        padded = torch.cat((latent, latent[:, :, -1:]), dim=2)
        padded = torch.cat((padded, padded[..., -1:]), dim=3)
        even = network.velocity(padded, torch.tensor([0.5]), prefix)
    assert odd.shape == latent.shape
    torch.testing.assert_close(odd, even[..., :5, :7])


def test_gradients_flow_and_checkpointing_changes_nothing():
    config = tiny_config()
    network = own_network(diffusers_model(config), config)
    references = [torch.randn(1, 4, 4, 6)]
    prefix = make_prefix(tokenize_prompt(PROMPTS[1], [6], encode), references)
    latent, sigma = torch.randn(1, 4, 4, 4), torch.tensor([0.4])
    grads = []
    for checkpointing in (False, True):
        network.gradient_checkpointing = checkpointing
        network.zero_grad()
        network.velocity(latent, sigma, prefix).square().mean().backward()
        grads.append({name: weight.grad.clone() for name, weight in network.named_parameters()})
    assert all(grad.abs().max() > 0 for grad in grads[0].values())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], atol=1e-6, rtol=1e-5)


def test_wire_tensor_round_trip():
    prompt = "<img><|image_1|></img><img><|image_1|></img> and <img><|image_2|></img>"
    tokens = tokenize_prompt(prompt, [6, 8], encode)
    sizes = [(2, 3), (4, 2)]
    assert sequence_from_tensor(tokens.as_tensor(), sizes) == tokens
    with pytest.raises(ValueError, match="was another size"):
        sequence_from_tensor(tokens.as_tensor(), [(2, 3), (4, 3)])
    with pytest.raises(ValueError, match="names reference 2, the conditioning holds 1"):
        sequence_from_tensor(tokens.as_tensor(), sizes[:1])


def test_adjacent_pictures_of_one_reference_are_two_slots():
    prompt = "<img><|image_1|></img><img><|image_1|></img>"
    tokens = tokenize_prompt(prompt, [6], encode)
    assert [slot.stop - slot.start for slot in tokens.slots] == [6, 6]


def test_too_long_and_too_large():
    config = tiny_config(max_position_embeddings=4200)
    network = own_network(diffusers_model(config), config)
    prefix = make_prefix(tokenize_prompt("x" * 4200, [], encode), [])
    with pytest.raises(ValueError, match="the model reaches 4200"):
        network.velocity(torch.zeros(1, 4, 4, 4), torch.tensor([1.0]), prefix)
    with pytest.raises(ValueError, match="positions end at 3072 px"):
        grid_positions(193, 2, 32, 192)


def test_a_latent_of_another_size_than_its_slot():
    tokens = tokenize_prompt(PROMPTS[1], [6], encode)
    with pytest.raises(ValueError, match="reference 1 has 4 tokens, its place in the prompt 6"):
        make_prefix(tokens, [torch.zeros(1, 4, 4, 4)])
    with pytest.raises(ValueError, match="names reference 1, the conditioning holds 0"):
        make_prefix(tokens, [])


def test_both_config_files_are_read():
    official = {
        "hidden_size": 3072,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 8192,
        "vocab_size": 32064,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {"type": "su", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
    }
    diffusers = {
        key: value for key, value in official.items() if key not in ("num_hidden_layers", "rope_theta")
    }
    diffusers |= {"num_layers": 32, "rope_base": 10000, "in_channels": 4, "pos_embed_max_size": 192}
    expected = OmniGenConfig(short_factor=(1.0,) * 48, long_factor=(2.0,) * 48)
    assert config_from_json(official) == config_from_json(diffusers) == expected
    with pytest.raises(ValueError, match=r"not an OmniGen v1 config .*Flux"):
        config_from_json({"hidden_size": 8, "_class_name": "FluxTransformer2DModel"})
    with pytest.raises(ValueError, match="48 numbers"):
        config_from_json(official | {"rope_scaling": {"short_factor": [1.0], "long_factor": [1.0]}})

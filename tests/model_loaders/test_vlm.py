"""Our VLM against transformers' own path: the same inputs, logits, tokens and hidden states."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.host

FAMILIES = ["qwen2_5_vl", "qwen2_vl"]
SIZES = [(200, 130), (64, 64), (56, 280), (300, 40), (113, 87)]
INSTRUCTION = "Replace the bag in the first image with the bag in the second image. It is editing task."


def pictures(count: int) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(count)
    pixels = [torch.randint(0, 256, (h, w, 3), generator=generator) for w, h in SIZES[:count]]
    return [Image.fromarray(picture.byte().numpy()) for picture in pixels]


def tensors(images: list[Image.Image]) -> list[torch.Tensor]:
    import numpy as np

    return [torch.from_numpy(np.array(image)).float()[None] / 255 for image in images]


class Reference:
    """transformers' model and processor, used as its documentation says."""

    def __init__(self, folder: Path, family: str) -> None:
        import transformers

        names = {
            "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor"),
            "qwen2_vl": ("Qwen2VLForConditionalGeneration", "Qwen2VLProcessor"),
        }[family]
        self.model = getattr(transformers, names[0]).from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = getattr(transformers, names[1]).from_pretrained(folder)

    def inputs(self, text: str, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": text}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )


@pytest.fixture(scope="module")
def references(vlm_folder):
    return {family: Reference(vlm_folder(family), family) for family in FAMILIES}


@pytest.fixture(scope="module")
def vlms(vlm_folder):
    from pack.model_loaders.vlm import load_vlm

    return {family: load_vlm(vlm_folder(family), "fp32") for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", range(6))
def test_inputs_tokens_and_logits_are_those_of_transformers(
    vlms, references, family: str, count: int
) -> None:
    from pack.vlm.inputs import build_inputs

    ours, reference = vlms[family], references[family]
    expected = dict(reference.inputs(INSTRUCTION, pictures(count)))
    ready = ours.make_ready(build_inputs(ours.processor, INSTRUCTION, pictures(count)), 8)
    assert ready.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(ready[name], value), name
    with torch.no_grad():
        generated = reference.model.generate(
            **expected, do_sample=False, max_new_tokens=8, return_dict_in_generate=True, output_logits=True
        )
        logits = ours.network(**ready).logits[:, -1]
    torch.testing.assert_close(logits, generated.logits[0], atol=1e-5, rtol=1e-5)
    new = generated.sequences[0, expected["input_ids"].shape[1] :].tolist()
    kept: list[int] = []
    ours.generate_text(
        INSTRUCTION, tensors(pictures(count)), 8, lambda stream: kept.append(list(stream.tokens))
    )
    assert kept[-1] == new


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_s_logits_are_those_of_transformers(vlms, references, family: str) -> None:
    ours, reference = vlms[family], references[family]
    inputs = reference.inputs(INSTRUCTION, pictures(3))
    options = {
        "do_sample": False,
        "max_new_tokens": 6,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    ours.make_ready(dict(inputs), 6)
    with torch.no_grad():
        expected = reference.model.generate(**inputs, **options).logits
        found = ours.network.generate(**inputs, **options).logits
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1, 3, -1, -2, -4])
def test_hidden_states_are_those_of_transformers(vlms, references, family: str, layer: int) -> None:
    reference = references[family]
    inputs = reference.inputs(INSTRUCTION, pictures(2))
    with torch.no_grad():
        expected = reference.model(**inputs, output_hidden_states=True).hidden_states[layer]
    features = vlms[family].hidden_states(INSTRUCTION, tensors(pictures(2)), layer)
    torch.testing.assert_close(features.tokens, expected, atol=1e-5, rtol=1e-5)
    pads = inputs["input_ids"] == 151655
    assert torch.equal(features.image_index > 0, pads)
    assert features.image_index.unique_consecutive().tolist() == [0, 1, 0, 2, 0]
    assert features.attention_mask.all()
    assert features.attention_mask.dtype == torch.bool


def test_grid_positions_reach_the_model(vlms) -> None:
    """Transformers 5 places pictures on a grid only when told which tokens they are, and else is silent."""
    import inspect

    network = vlms["qwen2_5_vl"].network
    if "mm_token_type_ids" not in inspect.signature(network.forward).parameters:
        pytest.skip("transformers 4 finds the pictures itself")
    seen: list[torch.Tensor] = []
    hook = network.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["mm_token_type_ids"]), with_kwargs=True
    )
    vlms["qwen2_5_vl"].generate_text("hello", tensors(pictures(2)), 1)
    hook.remove()
    assert int(seen[0].sum()) == int((seen[0] == 1).sum()) > 0


def test_a_batch_of_sources_is_encoded_one_by_one_and_padded(vlms) -> None:
    vlm = vlms["qwen2_5_vl"]
    batch = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    features = vlm.hidden_states("a cat", [batch])
    alone = vlm.hidden_states("a cat", [batch[1:]])
    assert features.tokens.shape[0] == 2
    torch.testing.assert_close(features.tokens[1:], alone.tokens, atol=1e-5, rtol=1e-5)


def test_requests_of_different_lengths_are_padded_with_a_mask() -> None:
    from pack.vlm.encoder import VLMFeatures, join_features

    short, long = (
        VLMFeatures(
            tokens=torch.ones(1, length, 2),
            attention_mask=torch.ones(1, length, dtype=torch.bool),
            image_index=torch.ones(1, length, dtype=torch.long),
        )
        for length in (2, 4)
    )
    joined = join_features([short, long])
    assert joined.attention_mask.tolist() == [[True, True, False, False], [True] * 4]
    assert joined.image_index.tolist() == [[1, 1, 0, 0], [1] * 4]
    assert joined.tokens[0, 2:].abs().sum() == 0


def test_too_many_tokens_and_unknown_layers_are_refused(vlms) -> None:
    vlm = vlms["qwen2_5_vl"]
    with pytest.raises(ValueError, match=r"prompt and 1 pictures make \d+ tokens, over the limit of 20"):
        vlm.hidden_states("a cat", tensors(pictures(1)), max_tokens=20)
    with pytest.raises(ValueError, match="layer 4 does not exist; this VLM has 3 blocks"):
        vlm.hidden_states("a cat", [], layer=4)


def test_a_picture_of_extreme_aspect_is_refused(vlms) -> None:
    with pytest.raises(ValueError, match="differ by more than 200 times"):
        vlms["qwen2_5_vl"].generate_text("hello", [torch.zeros(1, 2, 600, 3)], 1)


def test_an_unknown_precision_is_refused(vlm_folder) -> None:
    from pack.model_loaders.vlm import load_vlm

    with pytest.raises(ValueError, match="unknown precision 'int3'; choose one of auto, bf16"):
        load_vlm(vlm_folder("qwen2_vl"), "int3")


def test_nothing_is_read_before_it_is_needed_and_nothing_from_the_network(vlm_folder, monkeypatch) -> None:
    from pack.model_loaders.vlm import load_vlm

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    vlm = load_vlm(vlm_folder("qwen2_vl"), "auto")
    assert vlm.patcher is None
    assert vlm.identity.endswith("-auto")
    vlm.generate_text("hello", tensors(pictures(1)), 2)
    assert vlm.patcher is vlm.model_patcher


def test_auto_keeps_small_weights_and_computes_in_fp32_on_the_cpu(vlm_folder) -> None:
    from pack.model_loaders.vlm import load_vlm

    vlm = load_vlm(vlm_folder("qwen2_5_vl"), "auto")
    features = vlm.hidden_states("a cat", tensors(pictures(1)))
    assert {parameter.dtype for parameter in vlm.network.parameters()} == {torch.bfloat16}
    assert features.tokens.dtype == torch.float32


def test_numbers_that_overflow_are_refused(vlm_folder) -> None:
    from pack.model_loaders.vlm import load_vlm

    vlm = load_vlm(vlm_folder("qwen2_5_vl"), "fp16")
    with torch.no_grad():
        vlm.network.model.language_model.layers[1].mlp.down_proj.weight.fill_(60000)
    with pytest.raises(ValueError, match=r"overflow in this precision\. Choose bf16, fp32 or auto"):
        vlm.generate_text("hello", [], 4)
    with pytest.raises(ValueError, match="hidden states are not finite"):
        vlm.hidden_states("hello", [])


def test_tied_embeddings_stay_one_tensor(tmp_path: Path) -> None:
    """The 2B and 3B models keep no output layer in their files: it is the embedding."""
    from pack.model_loaders.vlm import load_vlm
    from tiny_vlm import build_model, write_vlm

    model = build_model("qwen2_5_vl", tied=True, tie_word_embeddings=True)
    vlm = load_vlm(write_vlm(tmp_path / "tied", model=model), "fp32")
    inputs = {"input_ids": torch.tensor([[1, 2, 3]])}
    ready = vlm.make_ready({**inputs, "attention_mask": torch.ones(1, 3, dtype=torch.long)}, 1)
    with torch.no_grad():
        torch.testing.assert_close(vlm.network(**ready).logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert vlm.network.lm_head.weight is vlm.network.model.language_model.embed_tokens.weight

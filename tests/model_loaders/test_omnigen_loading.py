"""OmniGen folders of every layout become the same MODEL, and bad ones say what is wrong."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_omnigen import tiny_config, write_diffusers, write_official

pytestmark = pytest.mark.host


def weights_of(patcher) -> dict[str, torch.Tensor]:
    return patcher.model.diffusion_model.state_dict()


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def test_three_layouts_are_one_model(tmp_path):
    from pack.model_loaders.omnigen import load_omnigen

    config = tiny_config()
    official, processor = load_omnigen(write_official(tmp_path / "a", config), "fp32")
    single, _ = load_omnigen(write_diffusers(tmp_path / "b", config), "fp32")
    sharded, _ = load_omnigen(write_diffusers(tmp_path / "c", config, "1MB"), "fp32")
    assert len(list((tmp_path / "c" / "transformer").glob("*.safetensors"))) > 1
    expected = weights_of(official)
    for other in (single, sharded):
        assert weights_of(other).keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(other).items())
    assert processor.config == config


def test_a_lone_safetensors_file_of_any_name_and_fp8(tmp_path):
    from pack.model_loaders.omnigen import load_omnigen

    folder = write_official(tmp_path / "a", tiny_config(), torch.float8_e4m3fn)
    (folder / "model.safetensors").rename(folder / "omnigen_v1_fp8.safetensors")
    patcher, _ = load_omnigen(folder, "fp8_e4m3fn")
    assert weights_of(patcher)["llm.layers.0.self_attn.qkv_proj.weight"].dtype == torch.float8_e4m3fn
    assert patcher.model.manual_cast_dtype in (torch.bfloat16, torch.float32)


def test_fp8_words_are_looked_up_where_torch_cannot_in_fp8(tmp_path, monkeypatch):
    from pack.dit.omnigen.prefix import make_prefix
    from pack.model_loaders.omnigen import load_omnigen

    folder = write_official(tmp_path / "a", tiny_config(), torch.float8_e4m3fn)
    patcher, processor = load_omnigen(folder, "fp8_e4m3fn")
    network, tokens = patcher.model.diffusion_model, processor.tokenize("a cat", [])
    table = weights_of(patcher)["llm.embed_tokens.weight"]
    assert table.dtype == torch.float8_e4m3fn
    original = torch.nn.functional.embedding

    def as_in_old_torch(ids, weight, *rest, **more):
        if weight.element_size() == 1:
            raise NotImplementedError("\"index_select_cuda\" not implemented for 'Float8_e4m3fn'")
        return original(ids, weight, *rest, **more)

    monkeypatch.setattr(torch.nn.functional, "embedding", as_in_old_torch)
    with torch.no_grad():
        words = network.embed_prefix(make_prefix(tokens, []), torch.bfloat16, torch.device("cpu"))
    assert words.dtype == torch.bfloat16
    assert torch.equal(words[0], table.to(torch.bfloat16)[list(tokens.token_ids)])


def test_scaled_fp8_is_unscaled(tmp_path):
    from pack.model_loaders.omnigen import load_omnigen

    folder = write_official(tmp_path / "a", tiny_config())
    name = "llm.layers.0.mlp.down_proj.weight"
    before = load_file(folder / "model.safetensors")[name]

    def scale(weights):
        weights[name] = (weights[name] / 0.01).to(torch.float8_e4m3fn)
        weights[name.replace(".weight", ".scale_weight")] = torch.tensor(0.01)
        weights["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)

    edit_weights(folder, scale)
    patcher, _ = load_omnigen(folder, "fp32")
    torch.testing.assert_close(weights_of(patcher)[name], before, rtol=0.07, atol=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("llm.norm.weight"), r"1 missing: llm\.norm\.weight"),
        (lambda w: w.update(lora=torch.zeros(1)), r"1 unexpected: lora"),
        (
            lambda w: w.update({"llm.norm.weight": torch.zeros(7)}),
            r"1 of another shape: llm\.norm\.weight \(7,\) instead of \(32,\)",
        ),
        (lambda w: w.update(pos_embed=w["pos_embed"] * 0), "position table .* is not OmniGen v1's"),
    ],
)
def test_wrong_weights_are_listed(tmp_path, change, message):
    from pack.model_loaders.omnigen import load_omnigen

    folder = write_official(tmp_path / "a", tiny_config())
    edit_weights(folder, change)
    with pytest.raises(ValueError, match=message):
        load_omnigen(folder, "fp32")


def test_missing_files_are_named(tmp_path):
    from pack.model_loaders.omnigen import load_omnigen

    folder = write_diffusers(tmp_path / "c", tiny_config(), "1MB")
    shard = sorted((folder / "transformer").glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {shard.name}"):
        load_omnigen(folder, "fp32")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    for name in list((folder / "transformer").glob("*.safetensors*")):
        name.unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights \(model\.safetensors or"):
        load_omnigen(folder, "fp32")
    (folder / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer \(tokenizer\.json or"):
        load_omnigen(folder, "fp32")
    (folder / "transformer" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no config"):
        load_omnigen(folder, "fp32")


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": {}}'])
def test_a_broken_index_is_named(tmp_path, text):
    from pack.model_loaders.omnigen import load_omnigen

    folder = write_official(tmp_path / "a", tiny_config())
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json is no readable index of shards .*download it again"):
        load_omnigen(folder, "fp32")


def test_two_loose_files_are_ambiguous(tmp_path):
    from pack.model_loaders.omnigen import load_omnigen

    folder = write_official(tmp_path / "a", tiny_config())
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / "two.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=r"one\.safetensors, two\.safetensors: keep one"):
        load_omnigen(folder, "fp32")


@pytest.mark.parametrize("name", ["weights.bin", "sub/weights.pt", "model.safetensors.ckpt"])
def test_pickled_weights_are_not_unpickled(tmp_path, monkeypatch, name):
    from pack.model_loaders.omnigen import load_omnigen

    folder = write_official(tmp_path / "a", tiny_config())
    torch.save({"x": torch.ones(2)}, folder / name.rpartition("/")[2])
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": name}}))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    with pytest.raises(ValueError, match=rf"index\.json names {name}, which may run code when it is read"):
        load_omnigen(folder, "fp32")


def test_a_tokenizer_of_another_model(tmp_path):
    from pack.model_loaders.omnigen import load_omnigen

    folder = write_official(tmp_path / "a", tiny_config())
    path = folder / "tokenizer.json"
    fields = json.loads(path.read_text())
    path.write_text("nonsense")
    with pytest.raises(ValueError, match=r"not a readable tokenizer\.json"):
        load_omnigen(folder, "fp32")
    fields["added_tokens"] = [word for word in fields["added_tokens"] if word["content"] != "<|end|>"]
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"tokenizer of another model: it does not know <\|end\|>"):
        load_omnigen(folder, "fp32")
    small = write_official(tmp_path / "b", tiny_config(vocab_size=260))
    with pytest.raises(ValueError, match="tokenizer of another model: it has 268 words"):
        load_omnigen(small, "fp32")


def test_fp16_is_refused_with_the_reason(tmp_path, monkeypatch):
    from pack.model_loaders.omnigen import load_omnigen

    from comfy.cli_args import args

    folder = write_official(tmp_path / "a", tiny_config())
    with pytest.raises(ValueError, match="cannot run in fp16: its activations overflow"):
        load_omnigen(folder, "fp16")
    with pytest.raises(ValueError, match="allowed are default, bf16"):
        load_omnigen(folder, "int3")
    monkeypatch.setattr(args, "fp16_unet", True)
    with pytest.raises(ValueError, match="cannot run in fp16"):
        load_omnigen(folder, "default")


def test_a_config_of_another_model(tmp_path):
    from pack.model_loaders.omnigen import load_omnigen

    folder = write_official(tmp_path / "a", tiny_config())
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        load_omnigen(folder, "fp32")
    (folder / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(ValueError, match="it names FluxTransformer2DModel"):
        load_omnigen(folder, "fp32")

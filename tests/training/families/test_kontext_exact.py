"""The exact reference mask against one masked pass over everything, written independently."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from pack.dit.reference_branch import REFERENCE_GUIDANCE, REFERENCE_POOLED, REFERENCE_SIGMA
from pack.training.adapters import inject_lora, lora_parameters
from pack.training.families.kontext import KontextFamily
from pack.training.recompute import recompute_blocks

from tests.training.families.test_kontext import CPU, run_config, sample
from tests.training.tiny_flux import saved_flux, tiny_flux

TEXT, TARGET, FIRST, SECOND = 5, 12, 6, 6


class MaskedPass:
    """One pass of [text; target; references] with a mask, modulation per token and LoRA on two parts only.

    It walks through diffusers' own modules, without the code under test.
    """

    def __init__(self, network, inputs, ids, sigmas):
        live = TEXT + TARGET
        self.mask = torch.zeros(live + FIRST + SECOND, live + FIRST + SECOND, dtype=torch.bool)
        self.mask[:live] = True
        self.mask[live : live + FIRST, live : live + FIRST] = True
        self.mask[live + FIRST :, live + FIRST :] = True
        self.rotary = network.pos_embed(torch.cat([inputs["txt_ids"], inputs["img_ids"], *ids]))

        def temb(sigma, guidance, pooled):
            return network.time_text_embed(sigma * 1000, guidance * 1000, pooled)

        pooled = inputs["pooled_projections"]
        fixed = torch.full_like(sigmas, REFERENCE_SIGMA), torch.full_like(sigmas, REFERENCE_GUIDANCE)
        self.live_temb = temb(sigmas, inputs["guidance"], pooled)
        self.still_temb = temb(*fixed, torch.full_like(pooled, REFERENCE_POOLED))

    @staticmethod
    def layer(module, x, count):
        """A linear layer whose LoRA acts on the first `count` tokens."""
        base = module.base_layer if hasattr(module, "base_layer") else module
        return torch.cat([module(x[:, :count]), base(x[:, count:])], dim=1)

    def per_token(self, norm, x, count):
        """Modulation by the live embedding for the first `count` tokens, the fixed one for the rest."""
        a, b = norm(x[:, :count], emb=self.live_temb), norm(x[:, count:], emb=self.still_temb)
        others = x.shape[1] - count
        rest = [
            torch.cat([u[:, None].expand(-1, count, -1), v[:, None].expand(-1, others, -1)], dim=1)
            for u, v in zip(a[1:], b[1:], strict=True)
        ]
        return torch.cat([a[0], b[0]], dim=1), rest

    def attend(self, q, k, v):
        q, k = (apply_rotary_emb(x, self.rotary, sequence_dim=1) for x in (q, k))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask).transpose(1, 2).flatten(2)

    def double(self, block, text, image):
        attn, layer = block.attn, self.layer
        x, (gate, shift, scale, gate_mlp) = self.per_token(block.norm1, image, TARGET)
        c, c_gate, c_shift, c_scale, c_gate_mlp = block.norm1_context(text, emb=self.live_temb)
        q, k = (
            attn.norm_q(heads(layer(attn.to_q, x, TARGET))),
            attn.norm_k(heads(layer(attn.to_k, x, TARGET))),
        )
        cq, ck = attn.norm_added_q(heads(attn.add_q_proj(c))), attn.norm_added_k(heads(attn.add_k_proj(c)))
        v, cv = heads(layer(attn.to_v, x, TARGET)), heads(attn.add_v_proj(c))
        out = self.attend(*(torch.cat(pair, dim=1) for pair in ((cq, q), (ck, k), (cv, v))))
        image = image + gate * layer(attn.to_out[0], out[:, TEXT:], TARGET)
        text = text + c_gate[:, None] * attn.to_add_out(out[:, :TEXT])
        image = image + gate_mlp * block.ff(block.norm2(image) * (1 + scale) + shift)
        moved = block.norm2_context(text) * (1 + c_scale[:, None]) + c_shift[:, None]
        return text + c_gate_mlp[:, None] * block.ff_context(moved), image

    def single(self, block, joint):
        attn, layer, live = block.attn, self.layer, TEXT + TARGET
        x, (gate,) = self.per_token(block.norm, joint, live)
        q, k = attn.norm_q(heads(layer(attn.to_q, x, live))), attn.norm_k(heads(layer(attn.to_k, x, live)))
        out = self.attend(q, k, heads(layer(attn.to_v, x, live)))
        return joint + gate * block.proj_out(torch.cat([out, block.act_mlp(block.proj_mlp(x))], dim=2))


def heads(x):
    return x.unflatten(-1, (1, 128))


def masked_velocity(network, family, batch, noisy, sigmas):
    from pack.training.families import kontext

    inputs = kontext.flux_inputs(network, batch, noisy, sigmas)
    references = [kontext.packed(r) for r in batch.conditions["references"]]
    grids = [kontext.latent_grid(*r.shape[-2:]) for r in batch.conditions["references"]]
    ids = kontext.reference_position_ids(grids, kontext.PositionScheme.INDEX_OFFSET)
    through = MaskedPass(network, inputs, ids, sigmas)
    image = network.x_embedder(torch.cat([inputs["hidden_states"], *references], dim=1))
    text = network.context_embedder(inputs["encoder_hidden_states"])
    for block in network.transformer_blocks:
        text, image = through.double(block, text, image)
    joint = torch.cat([text, image], dim=1)
    for block in network.single_transformer_blocks:
        joint = through.single(block, joint)
    final = network.proj_out(network.norm_out(joint[:, TEXT : TEXT + TARGET], through.live_temb))
    return kontext.unpacked(final, *noisy.shape[-2:])


SIZES = {"of different sizes": ((4, 6), (6, 4)), "that go together": ((4, 6), (4, 6))}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_result_and_gradients_equal_the_masked_pass(tmp_path: Path, recompute: bool, sizes: tuple) -> None:
    family = KontextFamily()
    path = saved_flux(tmp_path, tiny_flux(num_layers=2, num_single_layers=2))
    gradients, answers = [], []
    item = sample(references=sizes)
    noisy, sigmas = torch.randn(1, 16, 8, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([0.7])
    for exact in (True, False):
        config = run_config(path, reference_attention="exact" if exact else "full")
        network = family.load_network(config, CPU)
        inject_lora(network, config.adapter, family.adapter_targets(config), seed=1)
        torch.manual_seed(2)
        for parameter in lora_parameters(network).values():
            parameter.data = torch.randn_like(parameter) * 0.1
        runs: list[int] = []
        network.x_embedder.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        if exact and recompute:
            assert recompute_blocks(network, family.block_classes(network), offload=True) == 4
        batch = family.collate([item], config, CPU, torch.float32)
        answer = (family.predict_velocity if exact else lambda n, *a: masked_velocity(n, family, *a))(
            network, batch, noisy, sigmas
        )
        assert len(runs) == (1 + len(set(sizes)) if exact else 1)
        answer.square().mean().backward()
        answers.append(answer.detach())
        gradients.append(lora_parameters(network))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-5)
    for name, parameter in gradients[0].items():
        torch.testing.assert_close(parameter.grad, gradients[1][name].grad, rtol=1e-4, atol=1e-6)


def test_what_a_reference_keeps_depends_on_nothing_but_itself(tmp_path: Path) -> None:
    from pack.training.families.kontext import flux_inputs, packed, reference_position_ids
    from pack.training.families.kontext_exact import KeptReferences, write_references

    family = KontextFamily()
    config = run_config(saved_flux(tmp_path, tiny_flux()), reference_attention="exact")
    network = family.load_network(config, CPU)
    inject_lora(network, config.adapter, family.adapter_targets(config), seed=1)
    kept = []
    for seed, sigma in ((1, 0.9), (2, 0.1)):
        item = sample(seed=seed)
        batch = family.collate([item], config, CPU, torch.float32)
        inputs = flux_inputs(network, batch, torch.randn(1, 16, 8, 6), torch.tensor([sigma]))
        kept.append(KeptReferences())
        reference = torch.ones(1, 16, 4, 6)
        from pack.dit.positions import Grid, PositionScheme

        ids = reference_position_ids([Grid(2, 3)], PositionScheme.INDEX_OFFSET)[0]
        write_references(network, inputs, [packed(reference)], [ids], kept[-1])
        for parameter in lora_parameters(network).values():
            parameter.data = torch.randn_like(parameter)
    for layer, keys in kept[0].keys.items():
        assert torch.equal(keys[0], kept[1].keys[layer][0])
        assert torch.equal(kept[0].values[layer][0], kept[1].values[layer][0])


def test_references_go_together_while_they_lie_alike_and_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from pack.dit.positions import Grid, PositionScheme, reference_position_ids
    from pack.training.families import kontext_exact

    grids = [Grid(2, 3), Grid(2, 3), Grid(3, 2), Grid(2, 3), Grid(2, 3), Grid(2, 3)]
    ids = reference_position_ids(grids, PositionScheme.INDEX_OFFSET)
    tokens = [torch.zeros(1, grid.num_tokens, 4) for grid in grids]
    assert kontext_exact.passes(tokens, ids) == [[0, 1], [2], [3, 4, 5]]
    monkeypatch.setattr(kontext_exact, "MOST_TOKENS", 12)
    assert kontext_exact.passes(tokens, ids) == [[0, 1], [2], [3, 4], [5]]
    monkeypatch.setattr(kontext_exact, "MOST_TOKENS", 1)
    assert kontext_exact.passes(tokens, ids) == [[n] for n in range(6)]
    assert kontext_exact.passes([], []) == []

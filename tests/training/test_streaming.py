"""A base streamed from host memory: what is copied when, nothing in use overwritten, the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pack.training.adapters import inject_lora, lora_parameters
from pack.training.config import AdapterConfig, MemoryConfig
from pack.training.families.kontext import KontextFamily
from pack.training.frozen import FrozenLinear, frozen_linear, stream_layers
from pack.training.recompute import recompute_blocks
from pack.training.streaming import AGAIN, BACKWARD, FORWARD, Conveyor, Slot
from torch import Tensor, nn

from tests.training.families.test_kontext import run_config, sample
from tests.training.tiny_flux import saved_flux, tiny_flux

CPU = torch.device("cpu")


class Layer:
    """A weight that knows its number."""

    def __init__(self, number: int, size: int) -> None:
        self.number, self.weight = number, torch.full((size,), float(number))


class LateLane:
    """Copies as late as a device may: when somebody waits; and refuses to fill what is still being read."""

    def __init__(self) -> None:
        self.pending: dict[int, tuple[Slot, Tensor]] = {}
        self.read: set[int] = set()
        self.order: list[int] = []

    def copy(self, slot: Slot, weight: Tensor) -> None:
        assert id(slot) not in self.read, "filled before its reader was done"
        self.pending[id(slot)] = slot, weight
        self.order.append(int(weight[0]))

    def wait(self, slot: Slot) -> None:
        if id(slot) in self.pending:
            _, weight = self.pending.pop(id(slot))
            slot.shaped(weight).copy_(weight)
        self.read.add(id(slot))

    def done(self, slot: Slot) -> None:
        self.read.remove(id(slot))


def belt(count: int, ahead: int) -> tuple[Conveyor, list[Layer], LateLane]:
    layers, lane = [Layer(number, 4 + number % 3) for number in range(count)], LateLane()
    return Conveyor(layers, CPU, ahead, lane), layers, lane


def use(conveyor: Conveyor, layer: Layer, phase: str) -> None:
    with conveyor.lent(layer, phase) as weight:
        assert torch.equal(weight, layer.weight)


def one_step(conveyor: Conveyor, layers: list[Layer], block: int = 3) -> None:
    """Forward through all; then block by block from the end: again forward, then backward."""
    for layer in layers:
        use(conveyor, layer, FORWARD)
    for start in range(len(layers) - block, -1, -block):
        part = layers[start : start + block]
        for layer in part:
            use(conveyor, layer, AGAIN)
        for layer in reversed(part):
            use(conveyor, layer, BACKWARD)


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_after_one_step_every_weight_is_there_before_it_is_needed(ahead: int) -> None:
    conveyor, layers, lane = belt(9, ahead)
    one_step(conveyor, layers)
    assert conveyor.in_time < 27, "nothing can be known in the first pass"
    conveyor.in_time = conveyor.copies = 0
    lane.order.clear()
    one_step(conveyor, layers)
    assert conveyor.in_time == 27
    # Forward 9, again 9, and backward only what the ring does not hold any more.
    assert conveyor.copies <= 27 - 3 * ahead
    assert [number for number in lane.order if number > ahead][:3] == [ahead + 1, ahead + 2, ahead + 3]


def test_the_next_copies_start_while_a_layer_is_in_use() -> None:
    conveyor, layers, lane = belt(4, 2)
    for _ in range(2):
        for layer in layers:
            use(conveyor, layer, FORWARD)
    lane.order.clear()
    with conveyor.lent(layers[0], FORWARD):
        held = {slot.layer.number for slot in conveyor.slots}
    assert held == {0, 1, 2}
    with conveyor.lent(layers[1], FORWARD):
        assert lane.order[-1] == 3


def test_a_wrong_guess_costs_a_copy_and_no_number() -> None:
    conveyor, layers, _ = belt(5, 2)
    drawn = torch.randint(5, (200,), generator=torch.Generator().manual_seed(3)).tolist()
    for number in drawn:
        use(conveyor, layers[number], FORWARD)
    assert conveyor.in_time < 200


def streamed(path: Path, precision: str, **memory: object) -> tuple[nn.Module, MemoryConfig]:
    config = run_config(path, **memory)
    network = KontextFamily().load_network(config, CPU)
    held = MemoryConfig(precision=precision)
    for block in (*network.transformer_blocks, *network.single_transformer_blocks):
        for module in list(block.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    whole = nn.Linear(child.in_features, child.out_features)
                    whole.weight, whole.bias = child.weight, child.bias
                    setattr(module, name, frozen_linear(whole, held, CPU))
    return network, held


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("references", ["full", "exact"])
def test_a_streamed_step_is_the_step_bit_for_bit(tmp_path: Path, precision: str, references: str) -> None:
    """With gradient checkpointing, which runs every block's forward twice."""
    path, results = saved_flux(tmp_path, tiny_flux()), []
    for with_ring in (False, True):
        family = KontextFamily()
        network, _ = streamed(path, precision, reference_attention=references)
        conveyor = stream_layers(network, CPU) if with_ring else None
        inject_lora(network, AdapterConfig(rank=4, alpha=4), ["attn.to_q", "attn.to_v"], seed=1)
        for parameter in lora_parameters(network).values():
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.05
        recompute_blocks(network, family.block_classes(network), False)
        batch = family.collate(
            [sample()], run_config(path, reference_attention=references), CPU, torch.float32
        )
        for _ in range(2):
            before = (conveyor.clock, conveyor.in_time) if conveyor is not None else (0, 0)
            network.zero_grad()
            loss = family.loss(
                network, batch, torch.ones(1, 16, 8, 6), torch.tensor([0.5]), run_config(path)
            ).sum()
            loss.backward()
        results.append([loss.detach(), *(p.grad for p in lora_parameters(network).values())])
        if conveyor is not None:
            uses = conveyor.clock - before[0]
            assert conveyor.in_time - before[1] >= 0.9 * uses > 0
            assert all(m.weight.device == CPU for m in network.modules() if isinstance(m, FrozenLinear))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_only_weights_lie_in_host_memory_and_all_else_is_on_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the meta device, where an operation with a tensor of another device fails."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # it does not know meta
    meta = torch.device("meta")
    memory = MemoryConfig(precision="int8", stream_base=True)
    network = nn.Sequential(*(frozen_linear(nn.Linear(8, 8), memory, meta) for _ in range(3)))
    stream_layers(network, meta)
    for layer in network:
        assert (layer.weight.device, layer.scale.device, layer.bias.device) == (CPU, meta, meta)
    inject_lora(network, AdapterConfig(rank=2, alpha=2), ["0", "1", "2"], seed=0)
    for name, module in network.named_modules():
        if name.endswith((".lora_A.default", ".lora_B.default")):
            module.to(meta)
    out = network(torch.zeros(4, 8, device=meta))
    out.sum().backward()
    assert all(parameter.grad.device == meta for parameter in lora_parameters(network).values())


@pytest.mark.gpu
def test_a_layer_streamed_to_a_card_is_the_layer_on_the_card() -> None:
    cuda, memory = torch.device("cuda"), MemoryConfig(precision="bf16", stream_base=True)
    torch.manual_seed(0)
    plain = [nn.Linear(1024, 1024, dtype=torch.bfloat16) for _ in range(8)]
    network = nn.Sequential(*(frozen_linear(linear, memory, cuda) for linear in plain))
    conveyor = stream_layers(network, cuda)
    assert conveyor is not None
    here = nn.Sequential(*plain).to(cuda)
    x = torch.randn(256, 1024, device=cuda, dtype=torch.bfloat16, requires_grad=True)
    for _ in range(3):
        (expected,) = torch.autograd.grad(here(x).square().sum(), x)
        (got,) = torch.autograd.grad(network(x).square().sum(), x)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert all(linear.weight.is_pinned() for linear in network)

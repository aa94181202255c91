"""What the backward pass keeps in host memory, with page-locked memory and without."""

from __future__ import annotations

import pytest
import torch
from pack.training.recompute import HostMemory, recomputed
from torch import Tensor

from tests.training.toy import ToyBlock


def gradients(host: HostMemory | None) -> list[Tensor]:
    torch.manual_seed(0)
    block, x = ToyBlock(8), torch.randn(3, 8, requires_grad=True)
    forward = recomputed(block.forward, host)
    return list(torch.autograd.grad(forward(x=forward(x)).square().sum(), [x, *block.parameters()]))


@pytest.mark.parametrize("most", [0, 1, 100])
def test_kept_tensors_take_ordinary_memory_when_the_system_gives_no_other(
    most: int, caplog: pytest.LogCaptureFixture
) -> None:
    given = []

    def allocate(tensor: Tensor) -> Tensor:
        if tensor.numel() and len(given) == most:
            raise RuntimeError("CUDA error: out of memory")
        given.extend([tensor] * (tensor.numel() > 0))  # PyTorch keeps an empty mark of its own too
        return torch.empty_like(tensor)

    for mine, plain in zip(gradients(HostMemory(allocate)), gradients(None), strict=True):
        assert torch.equal(mine, plain)
    assert len(given) == min(most, 2), "the inputs of both blocks and nothing else"
    assert caplog.text.count("kept activations are not all page-locked, steps are slower") == (most < 2)


def test_an_error_of_the_copy_is_not_taken_for_a_refusal() -> None:
    host = HostMemory(lambda tensor: torch.empty(1))
    with pytest.raises(RuntimeError, match=r"\[2, 3\]"):
        host.take(torch.zeros(2, 3))
    assert not host.was_refused


@pytest.mark.gpu
def test_page_locked_memory_gives_back_what_it_took() -> None:
    from pack.training.recompute import pinned_like

    host, tensor = HostMemory(pinned_like), torch.randn(64, 64, device="cuda", dtype=torch.bfloat16)
    device, kept = host.take(tensor)
    assert kept.is_pinned() and device == tensor.device
    assert torch.equal(host.give_back((device, kept)), tensor)

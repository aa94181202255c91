"""Counting of tensors by the benchmarks."""

from __future__ import annotations

import torch
from pack.bench.memory import PeakBytes

MIB = 2**18
"""Numbers of 4 bytes in a MiB."""


def test_new_tensors_count_while_they_live_and_views_do_not() -> None:
    given = torch.zeros(MIB)
    with PeakBytes() as counted:
        one = given + 1
        two = one.view(2, -1)[0] + 0
        del one
        three = two.mul_(2)
        assert counted.live == 2**19
        given.view(2, -1).add_(1)
        del two, three
    assert (counted.live, counted.peak) == (0, 2**20 + 2**19)


def test_memory_of_inputs_that_are_gone_counts_when_it_is_used_again() -> None:
    """Freed and taken again, memory mostly has the same address."""
    given, made = [torch.ones(64) for _ in range(200)], []
    with PeakBytes() as counted:
        while given:
            given[-1].view(-1)
            given.pop()
            made.append(torch.empty(64))
    assert counted.peak == 200 * 64 * 4

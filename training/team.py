"""The processes of a run: one alone, or several started by `accelerate launch`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True)
class Team:
    """`rank` of `size` processes; the one of rank 0 writes files and talks."""

    accelerator: Accelerator | None = None

    @classmethod
    def joined(cls, cpu: bool) -> Team:
        """The processes accelerate's environment describes; a process on its own gets a team of one."""
        from accelerate import Accelerator  # loaded when a run begins

        accelerator = Accelerator(cpu=cpu)
        return cls(accelerator if accelerator.num_processes > 1 else None)

    @property
    def rank(self) -> int:
        """This process, from 0."""
        return self.accelerator.process_index if self.accelerator else 0

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.accelerator.num_processes if self.accelerator else 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def shard(self, items: Sequence[Any]) -> list[Any]:
        """This process's part of a list, the same for every call with an equally long list."""
        return list(items)[self.rank :: self.size]

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return self.accelerator.reduce(value, "sum") if self.accelerator else value

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up every gradient over all processes; a missing one counts as zero."""
        if self.accelerator is None:
            return
        chosen = list(parameters)
        gradients = [torch.zeros_like(part) if part.grad is None else part.grad for part in chosen]
        # One message for all: a message for each tensor costs more than its numbers.
        whole = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for parameter, flat in zip(chosen, whole.split([part.numel() for part in chosen]), strict=True):
            parameter.grad = flat.view_as(parameter)

    def wait(self) -> None:
        """Until every process is here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.sum(torch.tensor(float(flag), device=device)).item() > 0)

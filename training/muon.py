"""Muon for the matrices inside the blocks and AdamW for everything else, as one optimizer.

Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; its update is scaled to AdamW's root mean
square (Liu et al. 2025, arXiv 2502.16982), so that both share one learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from .config import OptimizerConfig


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers that step together; their groups and states are numbered one after the other.

    Raises ImportError where PyTorch has no Muon (before 2.9), ValueError when there is nothing for it to do.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        parameters: Iterable[nn.Parameter],
        hidden: Iterable[nn.Parameter],
        learning_rate: float,
    ) -> None:
        muon = getattr(torch.optim, "Muon", None)
        if muon is None:
            raise ImportError(f"the Muon optimizer needs PyTorch 2.9 or newer, this is {torch.__version__}")
        matrices = list(hidden)
        if not matrices:
            raise ValueError("Muon trains matrices inside blocks and this run trains none; choose adamw")
        known = {id(parameter) for parameter in matrices}
        rest = [parameter for parameter in parameters if id(parameter) not in known]
        decay = config.weight_decay
        self.parts: list[torch.optim.Optimizer] = [
            muon(matrices, lr=learning_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        ]
        if rest:
            betas = (config.beta1, config.beta2)
            self.parts.append(
                torch.optim.AdamW(rest, lr=learning_rate, betas=betas, eps=config.epsilon, weight_decay=decay)
            )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """Show the parts' own groups, so that a changed learning rate reaches them."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step of both."""
        assert closure is None
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Both states, the second one's parameters numbered behind the first one's."""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        first = 0
        for part in self.parts:
            own = part.state_dict()
            state |= {first + number: values for number, values in own["state"].items()}
            groups += [
                {**group, "params": [first + number for number in group["params"]]}
                for group in own["param_groups"]
            ]
            first += sum(len(group["params"]) for group in part.param_groups)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        groups, first = list(state_dict["param_groups"]), 0
        for part in self.parts:
            own = [groups.pop(0) for _ in part.param_groups]
            count = sum(len(group["params"]) for group in part.param_groups)
            numbers = range(first, first + count)
            state = {n - first: values for n, values in state_dict["state"].items() if n in numbers}
            shifted = [{**group, "params": [n - first for n in group["params"]]} for group in own]
            part.load_state_dict({"state": state, "param_groups": shifted})
            first += count
        self._share_groups()

"""Weights in bf16 that small steps still move: AdamW with stochastic rounding.

Between 1 and 2, bfloat16 has 128 numbers. A step of a millionth of a weight lies far below
half of such a gap, so rounding to the nearest number undoes it, every time. Here the step is
computed in float32 and the result rounded up or down by chance, with the probabilities that
make its mean right (Croci et al. 2022, doi:10.1098/rsos.211631): of many weights, as many
move a whole gap as the step is long.

What is drawn is a function of the seed, the step and the parameter. There is nothing to save,
a resumed training draws the same, and so do all processes that hold a copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

#: numbers that are updated at once: 12 bytes each, for as long as that takes
CHUNK = 1 << 26


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """bfloat16 of float32 numbers: the neighbour below or above, on average the number itself.

    A number that bfloat16 has is returned as it is.
    """
    # The upper half of a float32 is the bfloat16 next to it towards zero. A carry out of the
    # lower half, to which up to one gap was added by chance, makes it the next one.
    noise = torch.randint(
        0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator
    )
    bits = values.contiguous().view(torch.int32)
    return (noise.add_(bits) & -(1 << 16)).view(torch.float32).bfloat16()


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW for weights in bfloat16: state and arithmetic in float32, rounded stochastically.

    Weights that are in float32 are rounded to nothing.

    Args:
        params: weights or groups of them.
        lr, betas, eps, weight_decay: as in `torch.optim.AdamW`.
        seed: of what is drawn.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
        seed: int,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self._seed = seed

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of every weight that has a gradient."""
        if closure is not None:
            raise NotImplementedError("the gradients are there before the step")
        place = 0
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group, place)
                place += 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was saved: PyTorch's own would round the state to the weights' bfloat16."""
        super().load_state_dict(state_dict)
        saved = [place for group in state_dict["param_groups"] for place in group["params"]]
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for place, weight in zip(saved, weights, strict=True):
            for name, value in state_dict["state"].get(place, {}).items():
                if name != "step":
                    self.state[weight][name] = value.to(weight.device, torch.float32, copy=True)

    def _update(self, weight: Tensor, slope: Tensor, group: dict[str, Any], place: int) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(weight, dtype=torch.float32)
        count = int(state["step"])
        generator = torch.Generator(weight.device).manual_seed(_mixed(self._seed, count, place))
        flat = [t.view(-1) for t in (weight, slope, state["exp_avg"], state["exp_avg_sq"])]
        for own, gradient, first, second in zip(*(t.split(CHUNK) for t in flat), strict=True):
            exact = own.float()
            adamw(
                [exact],
                [gradient.float()],
                [first],
                [second],
                [],
                [state["step"].clone()],  # which it counts up
                foreach=False,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=float(group["lr"]),
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            half = own.dtype == torch.bfloat16
            own.copy_(round_stochastically(exact, generator) if half else exact)
        state["step"] += 1


def _mixed(*numbers: int) -> int:
    """One seed out of several, such that neighbours have nothing in common (splitmix64)."""
    mask, value = (1 << 64) - 1, 0
    for number in numbers:
        value = (value ^ number) + 0x9E3779B97F4A7C15 & mask
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & mask
        value = (value ^ value >> 27) * 0x94D049BB133111EB & mask
        value ^= value >> 31
    return value >> 1

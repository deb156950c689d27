"""What is asked of whoever answers: how many completions, and how they are drawn."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from prefopt.errors import RecipeError

#: smallest temperature that is not 0: logits divided by less are no numbers any more
_WARM = 1e-3


@dataclass(frozen=True, slots=True)
class Settings:
    """How completions are drawn.

    Attributes:
        n: completions a prompt.
        max_new_tokens: a completion that has not ended by then is cut.
        temperature: divides the logits, from 0.001 on; 0 takes the most probable token.
        top_p: keep the most probable tokens that hold this much probability; 1 keeps all.
        top_k: keep this many tokens; 0 keeps all.
        seed: another seed, other samples.
        stop: texts that end a completion, and are not part of it.

    Raises:
        RecipeError: one is out of range or would have no effect.
    """

    n: int = 1
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        warm = _WARM <= self.temperature < math.inf
        limits = (
            ("n", self.n >= 1, "at least 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature == 0.0 or warm, f"0, or {_WARM} or more"),
            ("top_p", 0.0 < self.top_p <= 1.0, "more than 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or more"),
            ("stop", all(self.stop), "texts of one character or more"),
        )
        for name, holds, rule in limits:
            if not holds:
                value = getattr(self, name)
                raise RecipeError(f"{name} must be {rule}", field=name, value=value)
        if self.temperature == 0.0 and (self.n > 1 or self.top_p < 1.0 or self.top_k > 0):
            raise RecipeError(
                "at temperature 0 the most probable token is taken every time, so n, top_p and "
                "top_k have no effect",
                field="temperature",
                value=self.temperature,
                remedy="leave out n, top_p and top_k, or use a temperature above 0",
            )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**asdict(self), "stop": list(self.stop)}

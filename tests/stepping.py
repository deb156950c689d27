"""One optimizer step of any objective on a few groups, in this process or in several.

    python stepping.py MODEL OUT NAME...        (with RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)

writes the step's loss, running state and gradients for each name to OUT, as rank 0 sees them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prefopt.objectives import OBJECTIVES
from prefopt.policies.load import Policy, load_policy
from prefopt.policies.reward import load_reward_model
from prefopt.recipe import ResolvedRecipe, load_recipe
from prefopt.records import Comparison, Completion, Group, Label
from prefopt.training.examples import prepare_data
from prefopt.training.loop import State, accumulate
from prefopt.training.prepare import make_job, make_learner, score_reference, settle

if TYPE_CHECKING:
    import pytest

TEXTS = (
    "Blue is the colour of the sky.",
    "I cannot help with that.",
    "What a dull, clumsy story; I wanted to leave.",
    "Mix flour, water, salt and yeast, then wait. It takes a day.",
)
PROMPTS = (
    "Name a colour.",
    "How do I bake bread?",
    "Tell me about Oslo.",
    "And the film?",
    "Why?",
)


def groups(reads: str = "comparisons") -> list[Group]:
    """Five prompts; each orders its completions, in two sources, with scores."""
    made = []
    for place, prompt in enumerate(PROMPTS):
        count = 2 + place % 3
        order = [(place + shift) % 4 for shift in range(count)]
        completions = tuple(
            Completion(f"{TEXTS[index]} {place}", score=float(count - rank) / 2 + 0.1 * place)
            for rank, index in enumerate(order)
        )
        edges = tuple(Comparison(rank, rank + 1) for rank in range(count - 1))
        labels = tuple(Label(rank, rank == 0) for rank in range(count)) if reads == "labels" else ()
        source = "first" if place % 2 else "second"
        made.append(Group(prompt, completions, edges, labels, source=source))
    return made


def step(
    policy: Policy,
    name: str,
    microbatch_tokens: int,
    groups_: list[Group] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Loss, metrics, running state and gradients of one step over all groups."""
    overrides = {
        "model": "m", "data": "d", "out": "o", "batch_size": 100, "learning_rate": 1e-3,
        "objective.name": name, "microbatch_tokens": microbatch_tokens, **more,
    }  # fmt: skip
    resolved, loss = settle(load_recipe(None, overrides))
    for weight in policy.model.parameters():
        weight.grad = None
    learner = make_learner(policy, resolved.recipe, loss)
    data = prepare_data(policy, resolved.recipe, loss, groups_ or groups(loss.reads), training=True)
    score_reference(learner, [data], lambda count: None)
    job, state = make_job(learner, data), State()
    _nudge(policy)  # away from the reference, where many objectives have special values
    tally, _ = accumulate(job, data.steps[0], state)
    _nudge(policy, -1.0)
    return {
        "means": tally.means(),
        "running": state.running,
        "pieces": len(data.steps[0].microbatches),
        "gradients": {
            key: weight.grad.clone()
            for key, weight in policy.model.named_parameters()
            if weight.grad is not None
        },
    }


def _nudge(policy: Policy, sign: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight += sign * 0.02 * torch.randn(weight.shape, generator=generator)


def train_with_a_kill(recipe: ResolvedRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, die before the sixth step, and go on with the same command."""
    from prefopt.training.train import train

    with killed_after(5, monkeypatch):
        train(recipe, progress=False)
    train(recipe, progress=False)


@contextmanager
def killed_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A training in this block must die, once it has done so many steps."""
    import pytest

    from prefopt.training import loop

    accumulate = loop.accumulate

    def dies(job: Any, step: Any, state: loop.State) -> Any:
        if state.step == steps:
            raise RuntimeError("killed")
        return accumulate(job, step, state)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "accumulate", dies)
        with pytest.raises(RuntimeError, match="killed"):
            yield


def learner_of(name: str, model: str | Path) -> Policy:
    """What an objective trains: a policy, or a reward model with a drawn head."""
    if OBJECTIVES[name].head == "reward":
        return load_reward_model(model, seed=0)
    return load_policy(model)


def main(model: str, out: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    if int(os.environ["WORLD_SIZE"]) > 1:
        torch.distributed.init_process_group("gloo")
    learners = {OBJECTIVES[name].head: learner_of(name, model) for name in names}
    results = {name: step(learners[OBJECTIVES[name].head], name, 60) for name in names}
    if int(os.environ["RANK"]) == 0:
        torch.save(results, Path(out))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])

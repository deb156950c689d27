"""What this machine really does: its rate, its memory, and if asked to, three training steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from prefopt.constraints import Constraint
from prefopt.engine.cache import ScoreCache
from prefopt.objectives.loss import Weighted
from prefopt.planning.machines import Machine, memory_of_this, told
from prefopt.policies.load import default_device, usable_device
from prefopt.recipe import Recipe
from prefopt.training.examples import Prepared
from prefopt.training.loop import State, accumulate
from prefopt.training.prepare import load_learner, make_job, make_learner
from prefopt.training.references import score_examples

#: seconds that each rate is measured for
_BRIEFLY = 0.3
#: of the machine's matrix-product rate, what a training on a CPU reaches
CPU_SHARE = 0.5
#: steps that are measured, after one that is not
STEPS = 3


@dataclass(frozen=True)
class Measured:
    """Three real steps.

    Attributes:
        seconds_per_token: of a step, its optimizer included; the median.
        reference_per_token: of scoring the reference; 0 where there is none, or it was known.
        steps: how many were measured.
    """

    seconds_per_token: float
    reference_per_token: float
    steps: int


def this_machine(recipe: Recipe, *, width: int, tokens: int) -> Machine:
    """This machine, with the rate of matrix products of a model's shapes.

    Args:
        recipe: which says where to compute.
        width: channels of the model.
        tokens: of a micro-batch.

    Raises:
        PolicyError: there is no such device.
    """
    device = usable_device(recipe.device) if recipe.device else default_device()
    accelerator = device.type != "cpu"
    rate, bandwidth = _rates(device, width, min(tokens, 2048))
    return Machine(
        "this",
        "accelerator" if accelerator else "cpu",
        _memory_of(device) if accelerator else memory_of_this(),
        rate,
        bandwidth,
        share=CPU_SHARE,
        measured=True,
        bf16=accelerator,
    )


def _memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return memory_of_this()  # which such an accelerator shares


def _rates(device: torch.device, width: int, tokens: int) -> tuple[float, float]:
    """Operations and bytes a second."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    left = torch.ones(tokens, width, device=device, dtype=dtype)
    right = torch.ones(width, 4 * width, device=device, dtype=dtype)
    rate = 2 * left.numel() * 4 * width * _runs(lambda: left @ right, device)
    source = torch.ones(1 << 23, device=device)
    target = torch.empty_like(source)
    return rate, 2 * 4 * source.numel() * _runs(lambda: target.copy_(source), device)


def _runs(work: Callable[[], object], device: torch.device) -> float:
    """How often a second something can be done."""
    wait: Callable[[], object] = (
        torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    )
    work()
    wait()
    started, runs = time.perf_counter(), 0
    while time.perf_counter() - started < _BRIEFLY:
        work()
        wait()
        runs += 1
    return runs / (time.perf_counter() - started)


def resident() -> int:
    """Bytes of memory that this process has now; 0 where the system does not tell."""
    return told("/proc/self/status", "VmRSS:") or 0


def measure(
    recipe: Recipe,
    loss: Weighted,
    data: Prepared,
    constraints: tuple[Constraint, ...] = (),
) -> Measured:
    """Load the model and train three steps, which nothing keeps.

    Reference scores of these steps go to the cache, where the training finds them.

    Raises:
        RecipeError, PolicyError, TrainingError: what training would raise.
    """
    policy = load_learner(recipe, loss.head)
    learner = make_learner(policy, recipe, loss, constraints=constraints)
    steps = data.steps[: STEPS + 1]
    scoring = 0.0
    if learner.reference is not None and recipe.reference_scores == "cache":
        started = time.perf_counter()
        computed = score_examples(
            data.examples, steps, learner.reference.score, ScoreCache(), learner.cache_key
        )
        if computed:
            tokens = sum(step.tokens for step in steps)
            scoring = (time.perf_counter() - started) / tokens
    job = make_job(learner, data)
    state, found = State(), []
    for step in steps:
        started = time.perf_counter()
        accumulate(job, step, state)
        job.optimizer.step()
        job.optimizer.zero_grad(set_to_none=True)
        if policy.device.type != "cpu":
            torch.accelerator.synchronize()
        found.append((time.perf_counter() - started) / step.tokens)
    kept = found[1:] or found
    return Measured(statistics.median(kept), scoring, len(kept))

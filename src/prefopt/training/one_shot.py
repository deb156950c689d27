"""One shot: multipliers of constraints that are solved before the first step.

The dual of the constrained problem needs rewards and costs of samples of the reference, and
nothing of the policy that is going to be trained. The rewards have to be in log-odds, the
unit in which comparisons speak.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefopt.constraints import (
    Constraint,
    DualSolution,
    Measure,
    make_reward,
    measure_all,
    solve_dual,
)
from prefopt.engine.logps import completion_logps
from prefopt.engine.tokens import Column, TokenGroup
from prefopt.errors import RecipeError
from prefopt.policies.export import model_folder
from prefopt.policies.load import Policy, is_reward_model, load_policy
from prefopt.records import Comparison, Completion, Group, Prompt
from prefopt.sampling.generate import sample_tokens, to_texts
from prefopt.training.loop import Record

#: completions of each prompt that the dual is solved on
SAMPLES = 32
#: the column of the data that says what the probe's reward thinks of each completion
REWARD = "reward"


def reward_column(reward: Measure) -> dict[str, Column]:
    """The same for what the probe's reward thinks of the data, for `reward_scale`."""

    def column(prompt: Prompt, texts: Sequence[str]) -> list[float]:
        return measure_all(reward, [(prompt, text) for text in texts], name=REWARD)

    return {REWARD: column}


def reward_scale(groups: Iterable[TokenGroup]) -> float:
    """Log-odds of the data's comparisons in one unit of the reward.

    A dual is only right in the unit in which comparisons speak: β·log(π*/π_ref) is a reward
    whose differences are log-odds. A reward model or a rule has any unit. So its differences
    are scaled to fit the comparisons: the maximum of Σ w[p·log σ(sΔ) + (1 − p)·log σ(−sΔ)]
    over s, with half a comparison won and half one lost at the typical Δ beside the data, so
    that a reward which is never wrong does not become infinite.

    Args:
        groups: with comparisons and the column `reward`.

    Raises:
        RecipeError: the reward does not tell the compared completions apart, or prefers
            those that lost.
    """
    edges: list[Comparison] = []
    found: list[float] = []
    for group in groups:
        rewards = torch.tensor(group.columns[REWARD], dtype=torch.float64)
        for edge in group.comparisons:
            edges.append(edge)
            found.append(float(rewards[edge.preferred] - rewards[edge.dispreferred]))
    gaps = torch.tensor(found, dtype=torch.float64)
    chances = torch.tensor([edge.probability for edge in edges], dtype=torch.float64)
    weights = torch.tensor([edge.weight for edge in edges], dtype=torch.float64)
    typical = float(gaps.square().mean().sqrt()) if edges else 0.0
    if typical == 0.0:
        raise _no_reward("does not tell the compared completions apart")
    gaps = torch.cat([gaps / typical, torch.ones(1).double()])
    chances = torch.cat([chances, torch.full((1,), 0.5).double()])
    weights = torch.cat([weights, torch.ones(1).double()])
    low, high = 0.0, 100.0  # the slope falls in s: it is bisected
    for _ in range(60):
        middle = (low + high) / 2
        slope = float((weights * gaps * (chances - (middle * gaps).sigmoid())).sum())
        low, high = (middle, high) if slope > 0 else (low, middle)
    if low < 1e-3:
        raise _no_reward("prefers completions that lost as often as those that won")
    return low / typical


def solve_multipliers(
    reference: Policy,
    prompts: Sequence[Prompt],
    constraints: Sequence[Constraint],
    reward: Measure,
    *,
    scale: float,
    beta: float,
    max_new_tokens: int,
    seed: int = 0,
    samples: int = SAMPLES,
    batch_size: int = 32,
) -> Record:
    """The multipliers of the constraints in mode `one_shot`, from samples of the reference.

    They are those of `solve_dual`, whose policy is π_ref·exp((r − Σλc)/β): exact for
    objectives that lead to it under Bradley–Terry comparisons, such as `dpo`, and for others
    about right.

    Args:
        reference: the policy that training starts from, or is kept close to.
        prompts: what it answers, `samples` times each.
        constraints: those in other modes are left out.
        reward: what a completion is worth.
        scale: `reward_scale` of it.
        beta: β of the objective.
        max_new_tokens: as in the probe.
        seed: of the samples.
        samples: completions of each prompt.
        batch_size: completions that are sampled at once; never changes the result.

    Returns:
        A record of kind `dual`: `multipliers`, `limits`, and the costs that the reference
        has (`reference_costs`), that are expected at the optimum (`expected_costs`) and that
        are the least reachable (`smallest_costs`), by constraint; `reward_scale`,
        `effective_samples`, `samples`.

    Raises:
        RecipeError: a limit that no finite multiplier keeps on these samples.
    """
    chosen = [constraint for constraint in constraints if constraint.mode == "one_shot"]
    groups = sample_tokens(
        reference,
        prompts,
        n=samples,
        max_new_tokens=max_new_tokens,
        seed=seed,
        batch_size=batch_size,
    )
    texts = to_texts(reference, groups)
    pairs = [(p, text) for p, own in zip(prompts, texts, strict=True) for text in own]
    shape = (len(prompts), samples)
    numbers = [measure_all(reward, pairs, name=REWARD), *(c.costs(pairs) for c in chosen)]
    columns = torch.tensor(numbers, dtype=torch.float64)
    rewards = columns[0].reshape(shape)
    costs = columns[1:].T.reshape(*shape, len(chosen))
    solution = solve_dual(scale * rewards, costs, [c.limit for c in chosen], beta=beta)
    if solution.infeasible:
        raise _unreachable(chosen, solution, costs)
    return {**_record(chosen, solution, costs), "reward_scale": scale}


def _record(chosen: Sequence[Constraint], solution: DualSolution, costs: Tensor) -> Record:
    names = [constraint.name for constraint in chosen]

    def by_name(values: Iterable[float]) -> dict[str, float]:
        return dict(zip(names, values, strict=True))

    return {
        "kind": "dual",
        "step": 0,
        "multipliers": by_name(solution.multipliers),
        "limits": by_name(constraint.limit for constraint in chosen),
        "reference_costs": by_name(costs.mean((0, 1)).tolist()),
        "expected_costs": by_name(solution.expected_costs),
        "smallest_costs": by_name(solution.smallest_costs),
        "effective_samples": solution.effective_samples,
        "samples": costs.shape[0] * costs.shape[1],
    }


class ImplicitReward:
    """What a policy that was trained on preferences thinks: log π − log π_ref of a completion.

    It is the policy's own reward up to its β (Rafailov et al. 2023, arXiv:2305.18290, eq. 5),
    which `reward_scale` finds; duals on it are PeCAN (Huang et al. 2024, arXiv:2405.19544).

    Args:
        policy: trained on preferences.
        reference: what it was kept close to.
        microbatch_tokens: tokens that are scored at once; never changes the result.
    """

    def __init__(self, policy: Policy, reference: Policy, *, microbatch_tokens: int = 8192) -> None:
        self.policy, self.reference = policy, reference
        self.microbatch_tokens = microbatch_tokens

    def __call__(self, prompt: Prompt, completion: str) -> float:
        return self.many([(prompt, completion)])[0]

    @torch.no_grad()
    def many(self, pairs: Sequence[tuple[Prompt, str]]) -> list[float]:
        """The rewards of many pairs; completions of one prompt share its computation."""
        members: dict[Prompt, list[int]] = {}
        for place, (prompt, _) in enumerate(pairs):
            members.setdefault(prompt, []).append(place)
        groups = [
            Group(prompt, tuple(Completion(pairs[place][1]) for place in places))
            for prompt, places in members.items()
        ]
        gap = self._logps(self.policy, groups) - self._logps(self.reference, groups)
        rewards = [0.0] * len(pairs)
        order = [place for places in members.values() for place in places]
        for place, value in zip(order, gap.tolist(), strict=True):
            rewards[place] = value
        return rewards

    def _logps(self, policy: Policy, groups: Sequence[Group]) -> Tensor:
        logps = completion_logps(policy, groups, microbatch_tokens=self.microbatch_tokens)
        return logps.double().cpu()


def make_training_reward(choice: Any, *, reference: str, device: Any = None) -> Measure:
    """The reward that a recipe names for its probe.

    It is that of `make_reward`, except that `reward_model` may also name a policy that was
    trained on preferences, as a run folder or a model: then it is its implicit reward.

    Args:
        choice: `probe.reward` of the recipe.
        reference: folder or hub id of the model that such a policy is compared with.
        device: for models.

    Raises:
        RecipeError, PolicyError: it cannot be made.
    """
    name = choice.reward_model
    if name is None:
        return make_reward(choice, device=device)
    if not _is_policy(model_folder(name)):
        found = choice.model_copy(update={"reward_model": model_folder(name)})  # a run has its own
        return make_reward(found, device=device)
    policy = load_policy(model_folder(name), device=device)
    return ImplicitReward(policy, load_policy(model_folder(reference), device=device))


def _is_policy(name: str | Path) -> bool:
    """Whether a folder holds a causal model, or an adapter of one."""
    folder = Path(name)
    if is_reward_model(folder):
        return False
    if (folder / "adapter_config.json").exists():
        return True
    if not (folder / "config.json").exists():
        return False
    from transformers import AutoConfig

    kinds = AutoConfig.from_pretrained(folder).architectures or []
    return any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds)


def _unreachable(
    chosen: Sequence[Constraint], solution: DualSolution, costs: Tensor
) -> RecipeError:
    places = solution.infeasible
    first = chosen[places[0]]
    least = ", ".join(
        f"'{chosen[j].name}' costs at least {solution.smallest_costs[j]:.4g}, its limit is "
        f"{chosen[j].limit:g}"
        for j in places
    )
    together = all(solution.smallest_costs[j] < chosen[j].limit for j in places)
    how = "be kept together, though each could alone" if together else "be kept"
    return RecipeError(
        f"limits that no finite multiplier reaches: on {costs.shape[0]} prompts with "
        f"{costs.shape[1]} samples of the reference each they cannot {how}; {least}",
        field=f"constraints.{first.name}.limit",
        value=first.limit,
        remedy="raise the limit above that, start from a policy that says cheaper things, or use "
        "mode safe_dpo, which allows none at all",
    )


def _no_reward(reason: str) -> RecipeError:
    return RecipeError(
        f"the reward {reason}, so no multiplier can be solved in its unit",
        field="probe.reward",
        remedy="give the reward that the comparisons were made by, a model that was trained on "
        "them, or use mode lagrangian, which needs none",
    )

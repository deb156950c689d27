"""The one table of objectives: a name, a function, and what it needs.

Adding an objective is a function in this folder, a row here and a test.
"""

from __future__ import annotations

from collections.abc import Mapping

from prefopt.errors import RecipeError
from prefopt.objectives import (
    absolute,
    adaptive,
    corrupted,
    coupled,
    divergences,
    likelihood,
    listwise,
    pairwise,
    rewards,
    tokenwise,
    unpaired,
)
from prefopt.objectives.objective import Objective

OBJECTIVES: Mapping[str, Objective] = {
    row.name: row
    for row in (
        Objective(
            pairwise.dpo,
            use="The default: comparisons, soft labels included, and a reference to stay close to.",
        ),
        Objective(
            pairwise.robust_dpo,
            use="When a known share of the labels is flipped and DPO should undo it.",
        ),
        Objective(
            pairwise.geometric_dpo,
            use="When soft labels say how strong a preference is, not how often it is held.",
        ),
        Objective(
            pairwise.ipo,
            use="When labels are nearly certain and DPO's margins would grow without end.",
        ),
        Objective(
            pairwise.hinge,
            use="When pairs that are told apart by a margin should be left alone.",
        ),
        Objective(
            pairwise.exo,
            use="When the policy should seek the preferred mode rather than cover both sides.",
        ),
        Objective(
            pairwise.dpo_norm,
            reward=pairwise.dpo_norm_reward,
            use="When lengths differ much and DPO's sums favour long completions.",
        ),
        Objective(
            pairwise.dpop,
            use="When the preferred side loses probability, as with pairs that differ by little.",
        ),
        Objective(
            pairwise.length_dpo,
            reward=pairwise.length_dpo_reward,
            use="When preferred completions are longer and the policy should not learn that.",
        ),
        Objective(
            pairwise.discopop,
            use="To try a loss found by search, which at the reference first pushes the wrong way.",
        ),
        Objective(
            pairwise.modpo,
            needs_rewards=True,
            reward=pairwise.modpo_reward,
            use="When comparisons speak for one objective and a reward is known for another.",
        ),
        Objective(
            pairwise.reward_distillation,
            needs_rewards=True,
            soft=False,
            use="When a reward model is at hand and labels are too sure or too few.",
        ),
        Objective(
            absolute.nca,
            use="When the preferred side's probability must not fall.",
        ),
        Objective(
            absolute.sppo,
            use="In rounds on the policy's own samples, with win rates as soft labels.",
        ),
        Objective(
            absolute.apo_zero,
            use="When the data is better than the policy: raise one side, lower the other.",
        ),
        Objective(
            absolute.apo_down,
            use="When the policy is already better than the data: lower both sides, one less.",
        ),
        Objective(
            divergences.f_dpo,
            reward=divergences.f_dpo_reward,
            use="When reverse KL costs too much diversity: Jensen–Shannon, forward KL or between.",
        ),
        Objective(
            likelihood.sft,
            needs_reference=False,
            reads="preferred",
            use="Before preferences, or added to an objective that lets the preferred side sink.",
        ),
        Objective(
            likelihood.odds,
            needs_reference=False,
            reward=likelihood.log_odds,
            use="With `sft` as a further term: ORPO, with weights of your own.",
        ),
        Objective(
            likelihood.orpo,
            needs_reference=False,
            reward=likelihood.log_odds,
            use="When a base model learns the task and the preferences in one stage.",
        ),
        Objective(
            likelihood.simpo,
            needs_reference=False,
            reward=likelihood.simpo_reward,
            use="When there is no room for a reference and lengths should not count.",
        ),
        Objective(
            likelihood.cpo,
            needs_reference=False,
            reward=likelihood.cpo_reward,
            use="When preferred completions are near perfect, as translations can be.",
        ),
        Objective(
            likelihood.alpha_po,
            needs_reference=False,
            reward=likelihood.alpha_po_reward,
            use="When SimPO lets both sides sink, or not enough: one more shape to choose.",
        ),
        Objective(
            rewards.reward,
            needs_reference=False,
            rewards_option="margin",
            reward=rewards.reward_itself,
            head="reward",
            use="To make a reward model: a judge, or what a probe or a constraint measures by.",
        ),
        Objective(
            coupled.bco,
            couples_batch=True,
            running=coupled.bco_running,
            use="When each side should be good or bad by itself, and all rewards may drift.",
        ),
        Objective(
            coupled.aot,
            soft=False,
            couples_batch=True,
            use="When the distribution of margins counts, not every single pair; large steps.",
        ),
        Objective(
            coupled.aot_unpaired,
            soft=False,
            couples_batch=True,
            use="When all good completions should be above all bad ones, prompt by prompt or not.",
        ),
        Objective(
            adaptive.beta_dpo,
            couples_batch=True,
            running=adaptive.beta_dpo_running,
            use="When pairs differ much in quality and no single β suits all steps.",
        ),
        Objective(
            adaptive.group_dro,
            needs_sources=True,
            couples_batch=True,
            running=adaptive.group_dro_running,
            use="When sources disagree and the one that is served worst should be served better.",
        ),
        Objective(
            corrupted.dpo_corrupted,
            companions="corrupted",
            use="When the policy learns to prefer completions whatever the prompt says.",
        ),
        Objective(
            tokenwise.ld_dpo,
            tokens=("policy", "reference"),
            use="When the longer side should win or lose by its beginning, not by its length.",
        ),
        Objective(
            tokenwise.tdpo,
            tokens=("kl",),
            reward=tokenwise.tdpo_reward,
            use="When the policy must keep what it does not compare: divergence token by token.",
        ),
        Objective(
            tokenwise.wpo,
            tokens=("log_collision",),
            use="When the comparisons are of completions that the policy would hardly write.",
        ),
        Objective(
            listwise.plackett_luce,
            reads="rankings",
            use="When more than two completions of a prompt are ranked.",
        ),
        Objective(
            unpaired.kto,
            reads="labels",
            companions="mismatched",
            couples_batch=True,
            use="When completions are marked good or bad one by one, above all if unevenly many.",
        ),
        Objective(
            unpaired.bco_unpaired,
            reads="labels",
            couples_batch=True,
            running=unpaired.bco_unpaired_running,
            use="When marks are trusted, and KTO would give up on what it gets most wrong.",
        ),
        Objective(
            unpaired.apo_zero_unpaired,
            reads="labels",
            use="When marks are few, or all prompts alike: no companions, no step to wait for.",
        ),
    )
}


def find_objective(name: str, *, field: str = "objective.name") -> Objective:
    """The row of that name.

    Args:
        name: of the objective.
        field: the recipe's key that named it, for the message.

    Raises:
        RecipeError: there is none.
    """
    try:
        return OBJECTIVES[name]
    except KeyError:
        raise RecipeError(
            f"there is no objective '{name}'",
            field=field,
            value=name,
            remedy=f"choose one of: {', '.join(sorted(OBJECTIVES))}",
        ) from None

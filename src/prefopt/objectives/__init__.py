"""Losses: pure functions of scores and judgements, and the table that lists them."""

from prefopt.objectives.absolute import apo_down, apo_zero, nca, sppo
from prefopt.objectives.adaptive import beta_dpo, group_dro
from prefopt.objectives.corrupted import dpo_corrupted
from prefopt.objectives.coupled import aot, aot_unpaired, bco
from prefopt.objectives.divergences import f_dpo
from prefopt.objectives.likelihood import alpha_po, cpo, odds, orpo, sft, simpo
from prefopt.objectives.listwise import plackett_luce
from prefopt.objectives.objective import Objective
from prefopt.objectives.pairwise import (
    discopop,
    dpo,
    dpo_norm,
    dpop,
    exo,
    geometric_dpo,
    hinge,
    ipo,
    length_dpo,
    modpo,
    reward_distillation,
    robust_dpo,
)
from prefopt.objectives.registry import OBJECTIVES, find_objective
from prefopt.objectives.rewards import reward
from prefopt.objectives.scores import Comparisons, Judgements, Labels, Rankings, Scores
from prefopt.objectives.tokenwise import ld_dpo, tdpo, wpo
from prefopt.objectives.unpaired import apo_zero_unpaired, bco_unpaired, kto

__all__ = [
    "OBJECTIVES",
    "Comparisons",
    "Judgements",
    "Labels",
    "Objective",
    "Rankings",
    "Scores",
    "alpha_po",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "bco",
    "bco_unpaired",
    "beta_dpo",
    "cpo",
    "discopop",
    "dpo",
    "dpo_corrupted",
    "dpo_norm",
    "dpop",
    "exo",
    "f_dpo",
    "find_objective",
    "geometric_dpo",
    "group_dro",
    "hinge",
    "ipo",
    "kto",
    "ld_dpo",
    "length_dpo",
    "modpo",
    "nca",
    "odds",
    "orpo",
    "plackett_luce",
    "reward",
    "reward_distillation",
    "robust_dpo",
    "sft",
    "simpo",
    "sppo",
    "tdpo",
    "wpo",
]

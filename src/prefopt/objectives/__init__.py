"""Losses: pure functions of scores and comparisons, and the table that lists them."""

from prefopt.objectives.pairwise import dpo, ipo, sft
from prefopt.objectives.registry import OBJECTIVES, Objective, find_objective
from prefopt.objectives.scores import Comparisons, Scores

__all__ = [
    "OBJECTIVES",
    "Comparisons",
    "Objective",
    "Scores",
    "dpo",
    "find_objective",
    "ipo",
    "sft",
]

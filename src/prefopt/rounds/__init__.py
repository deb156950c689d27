"""The loop: sample, select, judge, check, train, evaluate; again, and it can be killed."""

from prefopt.rounds.loop import run_rounds
from prefopt.rounds.settings import RoundsFile, load_rounds

__all__ = ["RoundsFile", "load_rounds", "run_rounds"]

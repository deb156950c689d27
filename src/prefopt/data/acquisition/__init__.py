"""Which comparisons to ask about next, from a pool and from what is known of it."""

from prefopt.data.acquisition.acquiring import Acquired, acquire
from prefopt.data.acquisition.scores import Scores, read_scores, write_scores
from prefopt.data.acquisition.selection import Selection, select
from prefopt.data.acquisition.stopping import Verdict, verdict
from prefopt.data.acquisition.strategies import STRATEGIES

__all__ = [
    "STRATEGIES",
    "Acquired",
    "Scores",
    "Selection",
    "Verdict",
    "acquire",
    "read_scores",
    "select",
    "verdict",
    "write_scores",
]

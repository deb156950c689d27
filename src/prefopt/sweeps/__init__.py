"""Sweeps: one recipe trained at many settings, and which of them is best."""

from prefopt.sweeps.settings import Goal, Sweep, SweepFile, load_sweep
from prefopt.sweeps.sweep import SweepResult, run_sweep

__all__ = ["Goal", "Sweep", "SweepFile", "SweepResult", "load_sweep", "run_sweep"]

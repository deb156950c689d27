"""Text out of a policy."""

from prefopt.sampling.generate import sample

__all__ = ["sample"]

"""Text out of a policy."""

from prefopt.sampling.generate import sample, sample_tokens, to_texts

__all__ = ["sample", "sample_tokens", "to_texts"]

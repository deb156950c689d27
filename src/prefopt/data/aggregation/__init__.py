"""Votes of several annotators become comparisons with probabilities, by a rule that is named."""

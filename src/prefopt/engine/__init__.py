"""From token groups to log-probabilities: tokens, trees, attention, scores and their cache."""

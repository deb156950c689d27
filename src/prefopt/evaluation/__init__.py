"""Whether a policy is preferred: implicit rewards, win rates, intervals."""

"""What a policy is worth: rankings, win rates, divergence, agreement, and how sure that is."""

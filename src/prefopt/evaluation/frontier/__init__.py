"""The controlled experiment: reward against KL in a world where the optimum is known exactly."""

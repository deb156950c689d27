"""From a recipe to a trained policy."""

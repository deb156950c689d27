"""Whoever can say which of two completions is better: rules, models, servers, people."""

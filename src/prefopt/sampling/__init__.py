"""Text out of a policy, local or behind a server."""

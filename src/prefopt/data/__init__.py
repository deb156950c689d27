"""Preferences as groups: reading, checking and mixing them. Nothing here imports torch."""

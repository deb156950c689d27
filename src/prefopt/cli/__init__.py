"""The `prefopt` command: one verb a stage."""

from prefopt.cli.app import main

__all__ = ["main"]

"""A run folder as one self-contained HTML page."""

from prefopt.report.build import build_report

__all__ = ["build_report"]

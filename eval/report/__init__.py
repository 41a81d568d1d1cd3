"""Results as one HTML file with pictures, which opens without a network."""

from .page import write_report

__all__ = ["write_report"]

"""A trained model as plain transformers folders, which load without this project."""

from .towers import export

__all__ = ["export"]

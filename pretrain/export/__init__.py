"""A model as folders for other programs: the towers as plain transformers classes, a converted checkpoint as ours."""

from .full import convert
from .towers import export

__all__ = ["convert", "export"]

"""Write a model as folders for other programs.

`export` writes the towers as plain transformers classes; `convert` writes a checkpoint of the
authors' release as a model of this project.
"""

from .full import convert
from .towers import export

__all__ = ["convert", "export"]

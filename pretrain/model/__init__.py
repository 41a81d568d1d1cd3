"""The GLSCL model: two towers, two-stream fusion and heads, as one transformers model."""

from .configuration import GLSCLConfig
from .modeling import GLSCLModel
from .processing import GLSCLProcessor

__all__ = ["GLSCLConfig", "GLSCLModel", "GLSCLProcessor"]

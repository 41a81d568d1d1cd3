"""The objectives of pre-training: features in, losses out (definitions in docs/objectives.md).

The five of GLSCL, where semantic completion is four losses, and the two optional terms of TCL. Each
file declares its own; this list is the only other place that names them.
"""

from .completion import GLOBAL_IMAGE, GLOBAL_TEXT, LOCAL_IMAGE, LOCAL_TEXT
from .contrastive import CONTRASTIVE
from .masked_language import MASKED_LANGUAGE
from .matching import MATCHING
from .objective import Objective
from .tcl import GLOBAL_LOCAL, INTRA_MODAL

# The order of the keys in config.yaml and of the terms in a sum: changing it changes the rounding
# of the total loss.
OBJECTIVES = (
    CONTRASTIVE,
    MATCHING,
    MASKED_LANGUAGE,
    GLOBAL_IMAGE,
    GLOBAL_TEXT,
    LOCAL_IMAGE,
    LOCAL_TEXT,
    INTRA_MODAL,
    GLOBAL_LOCAL,
)

__all__ = ["OBJECTIVES", "Objective"]

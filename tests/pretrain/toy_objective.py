"""An objective in one file, as a contributor would write it.

It contrasts each text with the dropped view of its image, which no other objective does. In the
project, one line in `pretrain/objectives/__init__.py` would be all that is missing.
"""

from pretrain.objectives.nce import nce
from pretrain.objectives.objective import Objective, duplicate_ids


def _loss(features, config, counts):
    return nce(
        features.contrastive_text,
        features.views.dropped_image,
        features.temperature,
        ids=duplicate_ids(features, config),
    )


CONTRASTS = ("contrastive_text", "views.dropped_image", "temperature")
TOY = Objective("toy", weight=0.5, loss=_loss, contrasts=CONTRASTS, reads_views=True)

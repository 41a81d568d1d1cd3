"""An engine in one file, as a contributor would write it: DDP that the launcher's file asks for."""

from pretrain.parallel.ddp import DDP
from pretrain.parallel.engines import flag


class Toy(DDP):
    """Like DDP, with the same type of start, so that only `is_requested` tells them apart."""

    name = "toy"

    @classmethod
    def is_requested(cls) -> bool:
        return flag("ACCELERATE_USE_TOY")
